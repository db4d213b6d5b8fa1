//! A database, a topic, and a relay between them, for one measurement.

use std::path::Path;
use std::time::Duration;

use testbed::certificates::Authority;
use testbed::guard::Folder;
use testbed::kafka::{Kafka, KafkaOptions};
use testbed::postgres::{Postgres, PostgresOptions, ServerTls};
use testbed::process::{Launch, Program};
use testbed::{Database, net, unique, wait};

use crate::Failure;

/// Partitions of the topic, as in the figures this project compares itself with.
pub const PARTITIONS: i32 = 6;
/// Nothing measured here takes longer.
const WITHIN: Duration = Duration::from_secs(600);

/// Servers of a measurement: PostgreSQL with fsync, one broker.
pub struct Servers {
    /// PostgreSQL.
    pub postgres: Postgres,
    /// Kafka.
    pub kafka: Kafka,
    tls: bool,
}

impl Servers {
    /// Starts them. With `tls`, the relay's connections to PostgreSQL are encrypted.
    pub async fn start(tls: bool) -> Result<Servers, Failure> {
        let setting = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        let settings = vec![
            setting("track_commit_timestamp", "on"),
            setting("max_wal_size", "8GB"),
            setting("checkpoint_timeout", "30min"),
        ];
        let certificate = Authority::new("bench")?.server(&["127.0.0.1"])?;
        let server_tls = tls.then_some(ServerTls { certificate, client_authority: None });
        let options =
            PostgresOptions { fsync: true, settings, tls: server_tls, ..PostgresOptions::default() };
        let (postgres, kafka) =
            tokio::try_join!(Postgres::start(options), Kafka::start(KafkaOptions::default()))?;
        Ok(Servers { postgres, kafka, tls })
    }
}

/// One database with its topic and slot.
pub struct Site {
    /// The database.
    pub database: Database,
    /// `aggregatetype` of its rows.
    pub aggregate: String,
    /// The relay's slot.
    pub slot: String,
    bootstrap: String,
    port: u16,
    tls: bool,
    folder: Folder,
}

impl Site {
    /// On `servers`, with slot, checkpoint and topic of `partitions` there: the relay has run once.
    pub async fn new(servers: &Servers, programs: &Path, partitions: i32) -> Result<Site, Failure> {
        let site = Site {
            database: Database::on(&servers.postgres.url("postgres"), "bench").await?,
            aggregate: unique("bench"),
            slot: unique("slot"),
            bootstrap: servers.kafka.bootstrap(),
            port: servers.postgres.port(),
            tls: servers.tls,
            folder: Folder::new("bench")?,
        };
        servers.kafka.create_topic(&site.topic(), partitions, 1, &[]).await?;
        let mut relay = site.relay(programs)?;
        relay.until_streaming().await?;
        relay.program.terminate()?;
        relay.program.wait(WITHIN).await?;
        Ok(site)
    }

    /// Its topic.
    pub fn topic(&self) -> String {
        format!("outbox.event.{}", self.aggregate)
    }

    /// Starts the relay; does not wait.
    pub fn relay(&self, programs: &Path) -> Result<Relay, Failure> {
        let admin = net::free_port()?;
        let path = self.folder.path().join("relay.yaml");
        let text = format!(
            "version: 1\nname: bench\nsource: {{host: 127.0.0.1, port: {}, tls: {{mode: {}}}, database: {}, user: postgres, \
             publication: {{name: outbox}}, slot: {{name: {}}}}}\nsink: {{bootstrapServers: '{}', tls: {{mode: disable}}}}\n\
             admin: {{listen: '127.0.0.1:{admin}'}}\n",
            self.port,
            if self.tls { "require" } else { "disable" },
            self.database.name(),
            self.slot,
            self.bootstrap
        );
        std::fs::write(&path, text)?;
        let program = Launch::new("outbox-relay", programs.join("outbox-relay"))
            .arg("run")
            .arg("--config")
            .arg(path)
            .start()?;
        Ok(Relay { program, admin })
    }
}

/// A relay being measured.
pub struct Relay {
    /// The process.
    pub program: Program,
    admin: u16,
}

impl Relay {
    /// Waits until the stream is open.
    pub async fn until_streaming(&self) -> Result<(), Failure> {
        self.until_metric("outbox_relay_streaming", 1.0).await
    }

    /// Waits until a metric, summed over its labels, has reached `least`.
    pub async fn until_metric(&self, name: &str, least: f64) -> Result<(), Failure> {
        let url = format!("http://127.0.0.1:{}/metrics", self.admin);
        let reached = wait::until(format!("{name} of {least}"), WITHIN, async || {
            let text = match reqwest::get(&url).await {
                Ok(answer) => answer.text().await.unwrap_or_default(),
                Err(error) => return Err(error.to_string()),
            };
            let values =
                text.lines().filter(|line| line.starts_with(name)).filter_map(|line| line.rsplit_once(' '));
            let sum: f64 = values.filter_map(|(_, value)| value.parse::<f64>().ok()).sum();
            if sum >= least { Ok(()) } else { Err(sum.to_string()) }
        });
        Ok(reached.await?)
    }
}
