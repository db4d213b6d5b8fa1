//! The servers of a measurement, and a database with its topics for one reader.

use std::time::Duration;

use clap::Args;
use futures::{StreamExt, TryStreamExt, stream};
use serde::Serialize;
use sqlx::AssertSqlSafe;
use testbed::certificates::Authority;
use testbed::guard::Folder;
use testbed::kafka::{Kafka, KafkaOptions};
use testbed::postgres::{Postgres, PostgresOptions, ServerTls};
use testbed::process::Program;
use testbed::{Database, unique, wait};

use crate::Failure;

/// Partitions of a topic, as in the figures this project compares itself with.
pub const PARTITIONS: i32 = 6;
/// The broker says when a record arrived: what a producer says would be the event's own time.
const BY_ARRIVAL: [(&str, &str); 1] = [("message.timestamp.type", "LogAppendTime")];
/// Longer than any reader takes to start.
const READS_WITHIN: Duration = Duration::from_secs(120);
/// Topics that are created side by side.
const CREATED_AT_ONCE: usize = 8;

/// Which servers to start.
#[derive(Args, Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct ServerOptions {
    /// Encrypts the readers' connections to PostgreSQL. pg_recvlogical reads without TLS.
    #[arg(long)]
    pub tls: bool,
    /// Brokers. With 3, topics have three replicas, and a record is acknowledged when two have it.
    #[arg(long, default_value_t = 1, value_parser = brokers)]
    pub brokers: usize,
}

fn brokers(text: &str) -> Result<usize, String> {
    match text {
        "1" => Ok(1),
        "3" => Ok(3),
        _ => Err("1 or 3".to_owned()),
    }
}

/// PostgreSQL with fsync, and Kafka.
pub struct Servers {
    /// PostgreSQL.
    pub postgres: Postgres,
    /// Kafka.
    pub kafka: Kafka,
    /// What was asked for.
    pub options: ServerOptions,
}

impl Servers {
    /// Starts them.
    pub async fn start(wanted: ServerOptions) -> Result<Servers, Failure> {
        let setting = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        let settings = vec![
            setting("track_commit_timestamp", "on"),
            setting("max_wal_size", "8GB"),
            setting("checkpoint_timeout", "30min"),
        ];
        let certificate = Authority::new("bench")?.server(&["127.0.0.1"])?;
        let server_tls = wanted.tls.then_some(ServerTls { certificate, client_authority: None });
        let options =
            PostgresOptions { fsync: true, settings, tls: server_tls, ..PostgresOptions::default() };
        let brokers = KafkaOptions { brokers: wanted.brokers, ..KafkaOptions::default() };
        let (postgres, kafka) = tokio::try_join!(Postgres::start(options), Kafka::start(brokers))?;
        Ok(Servers { postgres, kafka, options: wanted })
    }

    /// Copies of each record.
    pub fn replicas(&self) -> usize {
        self.options.brokers
    }
}

/// One database, and the topics its rows go to.
pub struct Site {
    /// The database.
    pub database: Database,
    /// `aggregatetype` of its rows, or what it begins with if there are several.
    pub aggregate: String,
    /// The reader's slot.
    pub slot: String,
    /// The topics.
    pub topics: Vec<String>,
    /// Brokers.
    pub bootstrap: String,
    /// PostgreSQL's port.
    pub port: u16,
    /// Whether the reader encrypts its connections to PostgreSQL.
    pub tls: bool,
    /// For configuration and state of the reader.
    pub folder: Folder,
}

impl Site {
    /// On `servers`, with topics of `partitions`, one for each name that `aggregatetypes` makes of the site's own.
    pub async fn new(
        servers: &Servers,
        partitions: i32,
        aggregatetypes: impl FnOnce(&str) -> Vec<String>,
    ) -> Result<Site, Failure> {
        let aggregate = unique("bench");
        let topics: Vec<String> =
            aggregatetypes(&aggregate).iter().map(|name| format!("outbox.event.{name}")).collect();
        let replicas = i32::try_from(servers.replicas())?;
        stream::iter(&topics)
            .map(|topic| servers.kafka.create_topic(topic, partitions, replicas, &BY_ARRIVAL))
            .buffer_unordered(CREATED_AT_ONCE)
            .try_collect::<Vec<()>>()
            .await?;
        Ok(Site {
            database: Database::on(&servers.postgres.url("postgres"), "bench").await?,
            aggregate,
            slot: unique("slot"),
            topics,
            bootstrap: servers.kafka.bootstrap(),
            port: servers.postgres.port(),
            tls: servers.options.tls,
            folder: Folder::new("bench")?,
        })
    }

    /// What a query for one text returns; `None` for NULL or no row.
    pub async fn text(&self, sql: &str) -> Result<Option<String>, Failure> {
        let mut connection = self.database.connect().await?;
        let found: Option<Option<String>> =
            sqlx::query_scalar(AssertSqlSafe(sql.to_owned())).fetch_optional(&mut connection).await?;
        Ok(found.flatten())
    }

    /// The process that serves the reader's slot; `None` while nothing reads.
    pub async fn walsender(&self) -> Result<Option<u32>, Failure> {
        let active =
            format!("SELECT active_pid::text FROM pg_replication_slots WHERE slot_name = '{}'", self.slot);
        Ok(self.text(&active).await?.map(|pid| pid.parse()).transpose()?)
    }

    /// Waits until a reader reads the slot.
    ///
    /// # Errors
    /// It has ended, or takes too long.
    pub async fn until_read_by(&self, reader: &mut Program) -> Result<(), Failure> {
        let reading =
            wait::until("a reader on its slot", READS_WITHIN, async || match self.walsender().await {
                Ok(Some(_)) => Ok(Ok(())),
                Ok(None) if reader.exit_status().is_some() => Ok(Err(reader.log_tail())),
                Ok(None) => Err(reader.log_tail()),
                Err(error) => Err(error.to_string()),
            });
        Ok(reading.await??)
    }

    /// The reader's port of the connection to that process.
    pub async fn walsender_client_port(&self) -> Result<Option<u16>, Failure> {
        let port = format!(
            "SELECT client_port::text FROM pg_stat_replication JOIN pg_replication_slots ON pid = active_pid
             WHERE slot_name = '{}'",
            self.slot
        );
        Ok(self.text(&port).await?.map(|port| port.parse()).transpose()?)
    }
}
