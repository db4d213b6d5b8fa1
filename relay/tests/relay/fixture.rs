//! A site (database, topic, names) and the relay that serves it.

use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use serde_json::Value;
use sqlx::postgres::PgConnectOptions;
use sqlx::{AssertSqlSafe, PgConnection};
use testbed::checker::{self, Verdict};
use testbed::guard::Folder;
use testbed::kafka::{Kafka, KafkaOptions, create_topic};
use testbed::load::{Load, LoadOptions, Log};
pub use testbed::long_matrix;
use testbed::postgres::{PgVersion, Postgres, PostgresOptions};
use testbed::process::{Launch, Program};
use testbed::records::{Record, read_all};
use testbed::{Database, net, shared, unique, wait};
use tokio::sync::{Semaphore, SemaphorePermit};

/// A generous deadline, because several servers share two cores.
pub const TIMEOUT: Duration = Duration::from_secs(120);
pub const PARTITIONS: i32 = 3;
/// The password of the testbed's servers.
pub const PASSWORD: &str = "testbed-password";

/// Tests that start their own servers are heavy: three run at a time.
static HEAVY: Semaphore = Semaphore::const_new(3);

/// Waits for a permit to run a heavy test.
pub async fn heavy_permit() -> SemaphorePermit<'static> {
    HEAVY.acquire().await.unwrap()
}

/// A database with an outbox, the topic of its events, and the name of the relay's slot.
pub struct Site {
    pub database: Database,
    pub bootstrap: String,
    /// `aggregatetype` of the test's rows.
    pub aggregate: String,
    pub slot: String,
    /// Lines added to the configuration.
    pub extra: String,
    folder: Folder,
}

impl Site {
    /// On the shared servers.
    pub async fn shared() -> Site {
        let servers = shared().await.unwrap();
        Site::on(&servers.postgres_url("postgres"), servers.kafka_bootstrap()).await
    }

    /// On the given servers, with the topic created.
    pub async fn on(postgres_url: &str, bootstrap: &str) -> Site {
        let database = Database::on(postgres_url, "relay").await.unwrap();
        let site = Site::without_topic(database, bootstrap);
        create_topic(bootstrap, &site.topic(), PARTITIONS, 1, &[]).await.unwrap();
        site
    }

    pub fn without_topic(database: Database, bootstrap: &str) -> Site {
        Site {
            database,
            bootstrap: bootstrap.to_owned(),
            aggregate: unique("test"),
            slot: unique("slot"),
            extra: String::new(),
            folder: Folder::new("site").unwrap(),
        }
    }

    pub fn topic(&self) -> String {
        format!("outbox.event.{}", self.aggregate)
    }

    fn source(&self) -> PgConnectOptions {
        PgConnectOptions::from_str(self.database.url()).unwrap()
    }

    /// Writes the configuration, changed by `edit`.
    pub fn config(&self, admin: u16, edit: impl FnOnce(String) -> String) -> PathBuf {
        let source = self.source();
        let text = format!(
            "version: 1\nname: relay\nsource: {{host: 127.0.0.1, port: {}, tls: {{mode: disable}}, database: {}, user: postgres, \
             publication: {{name: outbox}}, slot: {{name: {}}}}}\nsink: {{bootstrapServers: '{}', tls: {{mode: disable}}}}\n\
             admin: {{listen: '127.0.0.1:{admin}'}}\n{}",
            source.get_port(),
            self.database.name(),
            self.slot,
            self.bootstrap,
            self.extra
        );
        let path = self.folder.path().join(format!("relay-{admin}.yaml"));
        std::fs::write(&path, edit(text)).unwrap();
        path
    }

    /// Starts a relay and waits until it is ready.
    pub async fn relay(&self) -> Relay {
        let relay = self.launch(|text| text);
        relay.until_ready().await;
        relay
    }

    /// Starts a relay that may never become ready.
    pub fn launch(&self, edit: impl FnOnce(String) -> String) -> Relay {
        self.launch_with(&[], edit)
    }

    /// Starts a relay with environment variables.
    pub fn launch_with(&self, variables: &[(&str, &str)], edit: impl FnOnce(String) -> String) -> Relay {
        let program = Launch::new("outbox-relay", env!("CARGO_BIN_EXE_outbox-relay"));
        self.launch_by(program, variables, edit)
    }

    /// Starts a relay in its own mount namespace, with `hosts` as its `/etc/hosts`.
    pub fn launch_with_hosts(&self, hosts: &str, edit: impl FnOnce(String) -> String) -> Relay {
        let file = self.folder.path().join("hosts");
        std::fs::write(&file, hosts).unwrap();
        let script = r#"mount --bind "$0" /etc/hosts && exec "$@""#;
        let program = Launch::new("outbox-relay", "unshare").arg("--map-root-user").arg("--mount");
        let program = program.arg("sh").arg("-c").arg(script).arg(file);
        self.launch_by(program.arg(env!("CARGO_BIN_EXE_outbox-relay")), &[], edit)
    }

    fn launch_by(
        &self,
        mut launch: Launch,
        variables: &[(&str, &str)],
        edit: impl FnOnce(String) -> String,
    ) -> Relay {
        let admin = net::free_port().unwrap();
        let config = self.config(admin, edit);
        // The variable would take precedence over the file.
        if !std::fs::read_to_string(&config).unwrap().contains("passwordFile") {
            launch = launch.env("OUTBOX_RELAY_SOURCE_PASSWORD", PASSWORD);
        }
        let launch = variables.iter().fold(launch, |launch, (name, value)| launch.env(name, value));
        let program = launch.arg("run").arg("--config").arg(config).start().unwrap();
        Relay { program, admin, client: reqwest::Client::new() }
    }

    /// Runs a command of the program, with the configuration of a relay whose admin port is `admin`.
    pub async fn command(
        &self,
        admin: u16,
        edit: impl FnOnce(String) -> String,
        arguments: &[&str],
    ) -> Answer {
        let mut command = tokio::process::Command::new(env!("CARGO_BIN_EXE_outbox-relay"));
        command.args(arguments).arg("--config").arg(self.config(admin, edit));
        let output = command.env("OUTBOX_RELAY_SOURCE_PASSWORD", PASSWORD).output().await.unwrap();
        let answer = Answer {
            code: output.status.code(),
            out: String::from_utf8(output.stdout).unwrap(),
            err: String::from_utf8(output.stderr).unwrap(),
        };
        let said = format!("{}{}", answer.out, answer.err);
        assert!(!said.contains(PASSWORD) && !said.contains("panicked"), "{said}");
        answer
    }

    pub async fn sql(&self) -> PgConnection {
        self.database.connect().await.unwrap()
    }

    pub async fn execute(&self, sql: &str) {
        self.database.execute(sql).await.unwrap();
    }

    /// One value, as text.
    pub async fn value(&self, sql: &str) -> Option<String> {
        let sql = format!("SELECT ({sql})::text");
        sqlx::query_scalar(AssertSqlSafe(sql)).fetch_one(&mut self.sql().await).await.unwrap()
    }

    pub async fn until_value(&self, sql: &str, expected: &str) {
        wait::until(format!("{expected} from {sql}"), TIMEOUT, async || {
            let seen = self.value(sql).await;
            if seen.as_deref() == Some(expected) { Ok(()) } else { Err(format!("{seen:?}")) }
        })
        .await
        .unwrap();
    }

    /// PostgreSQL's major version.
    pub async fn major(&self) -> u32 {
        let major = self.value("current_setting('server_version_num')::int / 10000").await;
        major.unwrap().parse().unwrap()
    }

    /// Inserts rows with this site's `aggregatetype` in one transaction; `values` are (key, n) pairs.
    pub async fn insert(&self, values: impl IntoIterator<Item = (&str, i32)>) {
        let rows: Vec<String> = values
            .into_iter()
            .map(|(key, n)| {
                format!("(gen_random_uuid(), '{}', '{key}', 'n.v1', '{{\"n\": {n}}}')", self.aggregate)
            })
            .collect();
        let insert = "INSERT INTO outbox (id, aggregatetype, aggregateid, type, payload) VALUES";
        self.execute(&format!("{insert} {}", rows.join(", "))).await;
    }

    pub async fn start_load(&self, rate: f64) -> Load {
        let options = LoadOptions {
            aggregatetype: self.aggregate.clone(),
            topic: self.topic(),
            rate: Some(rate),
            ..LoadOptions::default()
        };
        Load::start(self.database.url(), options).await.unwrap()
    }

    pub async fn records(&self) -> Vec<Record> {
        read_all(&self.bootstrap, &[&self.topic()]).await.unwrap()
    }

    /// Waits until the topic has `count` records, and returns them.
    pub async fn until_records(&self, count: usize) -> Vec<Record> {
        wait::until(format!("{count} records"), TIMEOUT, async || {
            let records = self.records().await;
            if records.len() >= count { Ok(records) } else { Err(format!("{} records", records.len())) }
        })
        .await
        .unwrap()
    }

    /// Stops the load, waits until the relay has delivered and confirmed all of it, and checks the records.
    pub async fn verdict(&self, load: Load, relay: &Relay) -> Verdict {
        let mut log = load.stop().await.unwrap();
        log.settle(self.database.url(), "outbox").await.unwrap();
        self.judge(log, relay).await
    }

    pub async fn judge(&self, log: Log, relay: &Relay) -> Verdict {
        self.until_confirmed(relay).await;
        checker::check(&log, &self.records().await)
    }

    /// Asserts that every row of the table is in Kafka, from any writer.
    pub async fn judge_table(&self, relay: &Relay) {
        let topic = self.topic();
        let log = Log::of_table(self.database.url(), "outbox", |_| topic.clone()).await.unwrap();
        assert_correct(&self.judge(log, relay).await);
    }

    /// Waits until the slot has confirmed all current WAL.
    pub async fn until_confirmed(&self, relay: &Relay) {
        let now = self.value("pg_current_wal_insert_lsn()").await.unwrap();
        // An idle relay confirms only every 10 s, so this may take that long.
        let confirmed = format!(
            "SELECT confirmed_flush_lsn >= '{now}'::pg_lsn FROM pg_replication_slots WHERE slot_name = '{}'",
            self.slot
        );
        wait::until(format!("everything up to {now} confirmed"), TIMEOUT, async || {
            match self.value(&confirmed).await.as_deref() {
                Some("true") => Ok(()),
                _ => Err(format!("{}\n{}", relay.status_text().await, relay.program.log_tail())),
            }
        })
        .await
        .unwrap();
    }
}

/// A dedicated PostgreSQL and Kafka for one test.
pub struct OwnServers {
    pub postgres: Postgres,
    pub kafka: Kafka,
}

impl OwnServers {
    pub async fn start(version: PgVersion, settings: &[(&str, &str)]) -> OwnServers {
        let settings =
            settings.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        let options = PostgresOptions { version, settings, ..PostgresOptions::default() };
        let (postgres, kafka) =
            tokio::try_join!(Postgres::start(options), Kafka::start(KafkaOptions::default())).unwrap();
        OwnServers { postgres, kafka }
    }

    pub async fn site(&self) -> Site {
        Site::on(&self.postgres.url("postgres"), &self.kafka.bootstrap()).await
    }
}

/// The output of a command.
#[derive(Debug)]
pub struct Answer {
    pub code: Option<i32>,
    pub out: String,
    pub err: String,
}

/// A running relay.
pub struct Relay {
    pub program: Program,
    pub admin: u16,
    client: reqwest::Client,
}

impl Relay {
    /// Status and body of an admin path; `None` while the listener does not respond.
    pub async fn ask(&self, path: &str) -> Option<(u16, String)> {
        let answer = self.client.get(format!("http://127.0.0.1:{}{path}", self.admin)).send().await.ok()?;
        Some((answer.status().as_u16(), answer.text().await.ok()?))
    }

    pub async fn status_text(&self) -> String {
        self.ask("/status").await.map_or_else(|| "no answer".to_owned(), |(_, text)| text)
    }

    pub async fn status(&self) -> Value {
        serde_json::from_str(&self.status_text().await).unwrap()
    }

    /// A metric's value, summed over its labels.
    pub async fn metric(&self, name: &str) -> f64 {
        let (_, text) = self.ask("/metrics").await.unwrap();
        let values = text.lines().filter_map(|line| {
            let (series, value) = line.rsplit_once(' ')?;
            (series == name || series.starts_with(&format!("{name}{{")))
                .then(|| value.parse::<f64>().unwrap())
        });
        values.sum()
    }

    pub async fn until_ready(&self) {
        self.until("/readyz", 200, "").await;
    }

    /// Waits for a response with this status that contains the text.
    pub async fn until(&self, path: &str, status: u16, text: &str) -> String {
        wait::until(format!("{status} with '{text}' from {path}"), TIMEOUT, async || {
            match self.ask(path).await {
                Some((seen, body)) if seen == status && body.contains(text) => Ok(body),
                seen => Err(format!("{seen:?}\n{}", self.program.log_tail())),
            }
        })
        .await
        .unwrap()
    }

    /// kill -9.
    pub async fn kill(mut self) {
        self.program.kill().await.unwrap();
    }

    /// SIGTERM; returns the exit code and the log.
    pub async fn stop(mut self) -> (Option<i32>, String) {
        self.program.terminate().unwrap();
        let status = self.program.wait(TIMEOUT).await.unwrap();
        (status.code(), self.program.log())
    }
}

/// Asserts that the checker found no fault.
pub fn assert_correct(verdict: &Verdict) {
    assert!(verdict.is_right(), "\n{verdict}");
}
