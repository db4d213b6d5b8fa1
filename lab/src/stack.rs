//! Everything one needs to see an event travel: PostgreSQL, Kafka, the basket API, the relay.

use std::path::{Path, PathBuf};
use std::time::Duration;

use sqlx::{Connection, PgConnection};
use testbed::guard::Folder;
use testbed::kafka::{Kafka, KafkaOptions};
use testbed::postgres::{PgVersion, Postgres, PostgresOptions};
use testbed::process::{Launch, Program};
use testbed::{net, wait};

use crate::Failure;

/// Bearer token of the API: it listens on the loopback address and lives for one run.
pub const TOKEN: &str = "development-token";
/// Where basket events go.
pub const TOPIC: &str = "outbox.event.basket";
/// Partitions of the topic: enough to show that keys stay in theirs.
const PARTITIONS: i32 = 3;
/// Database of the shop.
const DATABASE: &str = "shop";
/// A program that is not ready after this has a reason, and its log says it.
const READY_WITHIN: Duration = Duration::from_secs(60);

/// What to start.
#[derive(Clone, Debug)]
pub struct StackOptions {
    /// Version of PostgreSQL.
    pub postgres: PgVersion,
    /// 1 or 3.
    pub brokers: usize,
    /// Start the API.
    pub api: bool,
    /// Start the relay.
    pub relay: bool,
    /// The relay's configuration in place of the stack's own.
    pub relay_config: Option<PathBuf>,
}

impl Default for StackOptions {
    fn default() -> Self {
        StackOptions {
            postgres: PgVersion::default(),
            brokers: 1,
            api: true,
            relay: true,
            relay_config: None,
        }
    }
}

/// Started servers and programs.
pub struct Stack {
    /// PostgreSQL.
    pub postgres: Postgres,
    /// Kafka.
    pub kafka: Kafka,
    /// The basket API.
    pub api: Option<Program>,
    /// The relay.
    pub relay: Option<Program>,
    options: StackOptions,
    programs: PathBuf,
    ports: Ports,
    folder: Folder,
}

struct Ports {
    api: u16,
    api_admin: u16,
    relay_admin: u16,
}

impl Stack {
    /// Starts PostgreSQL and Kafka, with the shop's schema and topic, and none of the programs yet. `programs` is the
    /// folder they were built into; `progress` is told what is up.
    pub async fn servers(
        options: StackOptions,
        programs: PathBuf,
        progress: impl Fn(&str),
    ) -> Result<Stack, Failure> {
        let postgres = async {
            // Commit times tell how long an event took from COMMIT to its consumer.
            let settings = vec![("track_commit_timestamp".to_owned(), "on".to_owned())];
            let wanted =
                PostgresOptions { version: options.postgres, settings, ..PostgresOptions::default() };
            let started = Postgres::start(wanted).await;
            progress("PostgreSQL is up");
            started
        };
        let kafka = async {
            let started =
                Kafka::start(KafkaOptions { brokers: options.brokers, ..KafkaOptions::default() }).await;
            progress("Apache Kafka is up");
            started
        };
        let (postgres, kafka) = tokio::try_join!(postgres, kafka)?;
        let mut connection = PgConnection::connect(&postgres.url("postgres")).await?;
        sqlx::raw_sql("CREATE DATABASE shop").execute(&mut connection).await?;
        connection.close().await?;
        let ports =
            Ports { api: net::free_port()?, api_admin: net::free_port()?, relay_admin: net::free_port()? };
        let folder = Folder::new("stack")?;
        let stack = Stack { postgres, kafka, api: None, relay: None, options, programs, ports, folder };
        let replicas = i32::try_from(stack.options.brokers).unwrap_or(1);
        // The broker's clock stamps records as it appends them: what a consumer's lag is measured against.
        let settings = [("message.timestamp.type", "LogAppendTime")];
        stack.kafka.create_topic(TOPIC, PARTITIONS, replicas, &settings).await?;
        stack.migrate().await?;
        progress("schema and topic are there");
        Ok(stack)
    }

    /// Starts the programs the options name, and waits until they are ready.
    pub async fn programs(&mut self, progress: impl Fn(&str)) -> Result<(), Failure> {
        if self.options.api {
            self.start_api().await?;
            progress("basket-api is ready");
        }
        if self.options.relay {
            self.start_relay().await?;
            progress("outbox-relay is streaming");
        }
        Ok(())
    }

    /// Starts the API and waits until it is ready.
    pub async fn start_api(&mut self) -> Result<(), Failure> {
        let admin = self.ports.api_admin;
        ready(self.launch_api()?, admin).await
    }

    /// Starts the API.
    pub fn launch_api(&mut self) -> Result<&mut Program, Failure> {
        let program = Launch::new("basket-api", self.programs.join("basket-api"))
            .arg("serve")
            .arg(format!("--listen=127.0.0.1:{}", self.ports.api))
            .arg(format!("--admin-listen=127.0.0.1:{}", self.ports.api_admin))
            .arg("--auth=static-token")
            .env("BASKET_DATABASE_URL", self.database_url())
            .env("BASKET_STATIC_TOKEN", TOKEN)
            .start()?;
        Ok(self.api.insert(program))
    }

    /// Starts the relay and waits until it is ready.
    pub async fn start_relay(&mut self) -> Result<(), Failure> {
        let admin = self.ports.relay_admin;
        ready(self.launch_relay()?, admin).await
    }

    /// Starts the relay.
    pub fn launch_relay(&mut self) -> Result<&mut Program, Failure> {
        let config = match &self.options.relay_config {
            Some(config) => config.clone(),
            None => self.write_relay_config()?,
        };
        let program = Launch::new("outbox-relay", self.programs.join("outbox-relay"))
            .arg("run")
            .arg("--config")
            .arg(&config)
            .env("OUTBOX_RELAY__ADMIN__LISTEN", format!("127.0.0.1:{}", self.ports.relay_admin))
            .start()?;
        Ok(self.relay.insert(program))
    }

    /// Address of the shop's database, as its owner.
    pub fn database_url(&self) -> String {
        self.postgres.url(DATABASE)
    }

    /// Address of the API.
    pub fn api_url(&self) -> String {
        format!("http://127.0.0.1:{}", self.ports.api)
    }

    /// Address of the relay's admin listener.
    pub fn relay_admin_url(&self) -> String {
        format!("http://127.0.0.1:{}", self.ports.relay_admin)
    }

    async fn migrate(&self) -> Result<(), Failure> {
        let program = self.programs.join("basket-api");
        let mut migrate = Launch::new("basket-api migrate", program)
            .arg("migrate")
            .env("BASKET_DATABASE_URL", self.database_url())
            .start()?;
        if migrate.wait(READY_WITHIN).await?.success() {
            return Ok(());
        }
        Err(format!("the migrations failed: {}", migrate.log()).into())
    }

    fn write_relay_config(&self) -> Result<PathBuf, Failure> {
        let path = self.folder.path().join("relay.yaml");
        let config =
            relay_config(self.postgres.port(), DATABASE, &self.kafka.bootstrap(), self.ports.relay_admin);
        std::fs::write(&path, config)?;
        Ok(path)
    }

    /// Where the relay's configuration is.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }
}

/// The relay as the README configures it, for servers on this machine.
pub fn relay_config(postgres: u16, database: &str, bootstrap: &str, admin: u16) -> String {
    format!(
        "version: 1\n\
         name: shop\n\
         source:\n\
         \x20 host: 127.0.0.1\n\
         \x20 tls: {{mode: disable}}\n\
         \x20 port: {postgres}\n\
         \x20 database: {database}\n\
         \x20 user: postgres\n\
         \x20 table: public.outbox\n\
         \x20 publication: {{name: outbox}}\n\
         \x20 slot: {{name: outbox}}\n\
         sink:\n\
         \x20 bootstrapServers: '{bootstrap}'\n\
         \x20 tls: {{mode: disable}}\n\
         admin:\n\
         \x20 listen: 127.0.0.1:{admin}\n"
    )
}

/// Waits until `/readyz` answers 200.
async fn ready(program: &mut Program, admin: u16) -> Result<(), Failure> {
    let client = reqwest::Client::new();
    let url = format!("http://127.0.0.1:{admin}/readyz");
    let answered = wait::until(format!("200 from {url}"), READY_WITHIN, async || {
        if let Some(status) = program.exit_status() {
            return Ok(Err(format!("it ended with {status}: {}", program.log_tail())));
        }
        let answer = client.get(&url).send().await.map_err(|error| error.to_string())?;
        let status = answer.status();
        if status.is_success() { Ok(Ok(())) } else { Err(answer.text().await.unwrap_or_default()) }
    });
    Ok(answered.await??)
}
