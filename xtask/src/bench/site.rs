//! The servers of a measurement, and a database with its topics for one reader.

use futures::{StreamExt, TryStreamExt, stream};
use sqlx::AssertSqlSafe;
use testbed::certificates::Authority;
use testbed::guard::Folder;
use testbed::kafka::{Kafka, KafkaOptions};
use testbed::postgres::{Postgres, PostgresOptions, ServerTls};
use testbed::{Database, unique};

use crate::Failure;

/// Partitions of a topic, as in the figures this project compares itself with.
pub const PARTITIONS: i32 = 6;
/// The broker says when a record arrived: what a producer says would be the event's own time.
const BY_ARRIVAL: [(&str, &str); 1] = [("message.timestamp.type", "LogAppendTime")];
/// Topics that are created side by side.
const CREATED_AT_ONCE: usize = 8;

/// PostgreSQL with fsync, and one broker.
pub struct Servers {
    /// PostgreSQL.
    pub postgres: Postgres,
    /// Kafka.
    pub kafka: Kafka,
    /// Whether readers encrypt their connections to PostgreSQL.
    pub tls: bool,
}

impl Servers {
    /// Starts them.
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
        stream::iter(&topics)
            .map(|topic| servers.kafka.create_topic(topic, partitions, 1, &BY_ARRIVAL))
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
            tls: servers.tls,
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
}
