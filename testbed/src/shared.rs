//! Servers that many tests use at once, each with its own database and topics.

use std::sync::atomic::{AtomicU64, Ordering};

use serde::{Deserialize, Serialize};
use sqlx::{AssertSqlSafe, Connection, PgConnection};
use tokio::sync::OnceCell;
use url::Url;

use crate::Error;
use crate::kafka::{Kafka, KafkaOptions};
use crate::postgres::{Postgres, PostgresOptions};

/// Environment variable by which `cargo xtask test` names the servers it has started.
pub const VARIABLE: &str = "OUTBOX_TESTBED";

/// Where the shared servers are.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Addresses {
    /// Any database of the PostgreSQL server, as superuser.
    pub postgres_url: String,
    /// Brokers.
    pub kafka_bootstrap: String,
}

/// The shared servers.
pub struct Shared {
    addresses: Addresses,
    /// Held when this process started them.
    _own: Option<(Postgres, Kafka)>,
}

static SHARED: OnceCell<Shared> = OnceCell::const_new();
static UNIQUE: AtomicU64 = AtomicU64::new(0);

/// The servers that `cargo xtask test` has started, or this process's own, started at the first call. A test that
/// stops or kills a server starts one for itself instead.
pub async fn shared() -> Result<&'static Shared, Error> {
    SHARED
        .get_or_try_init(async || {
            let given = std::env::var(VARIABLE).ok().and_then(|json| serde_json::from_str(&json).ok());
            if let Some(addresses) = given {
                return Ok(Shared { addresses, _own: None });
            }
            let (postgres, kafka) = tokio::try_join!(
                Postgres::start(PostgresOptions::default()),
                Kafka::start(KafkaOptions::default())
            )?;
            let addresses =
                Addresses { postgres_url: postgres.url("postgres"), kafka_bootstrap: kafka.bootstrap() };
            Ok(Shared { addresses, _own: Some((postgres, kafka)) })
        })
        .await
}

impl Shared {
    /// Superuser's address of a database.
    pub fn postgres_url(&self, database: &str) -> String {
        with_database(&self.addresses.postgres_url, database)
    }

    /// Brokers.
    pub fn kafka_bootstrap(&self) -> &str {
        &self.addresses.kafka_bootstrap
    }
}

/// A unique name: for databases, slots and topics of one test.
pub fn unique(purpose: &str) -> String {
    let number = UNIQUE.fetch_add(1, Ordering::Relaxed);
    format!("{purpose}_{}_{number}", std::process::id())
}

/// A fresh database with every migration of the repository applied; dropped, with its slots, when done.
pub struct Database {
    url: String,
    name: String,
}

impl Database {
    /// On the shared server.
    pub async fn fresh(purpose: &str) -> Result<Database, Error> {
        let server = shared().await?.postgres_url("postgres");
        Database::on(&server, purpose).await
    }

    /// On the server that `url` leads to.
    pub async fn on(url: &str, purpose: &str) -> Result<Database, Error> {
        Database::empty_on(url, purpose).await?.migrated().await
    }

    /// In another encoding than the server's other databases.
    pub async fn in_encoding(url: &str, purpose: &str, encoding: &str) -> Result<Database, Error> {
        let options = format!("TEMPLATE template0 ENCODING '{encoding}' LOCALE 'C'");
        Database::create(url, purpose, &options).await?.migrated().await
    }

    async fn migrated(self) -> Result<Database, Error> {
        let mut connection = self.connect().await?;
        for migration in crate::migrations()? {
            sqlx::raw_sql(AssertSqlSafe(migration))
                .execute(&mut connection)
                .await
                .map_err(Error::postgres("applying the migrations"))?;
        }
        drop(connection.close().await);
        Ok(self)
    }

    /// Without the migrations.
    pub async fn empty_on(url: &str, purpose: &str) -> Result<Database, Error> {
        Database::create(url, purpose, "").await
    }

    async fn create(url: &str, purpose: &str, options: &str) -> Result<Database, Error> {
        let name = unique(purpose);
        let mut connection =
            PgConnection::connect(url).await.map_err(Error::postgres("connecting to make a database"))?;
        sqlx::raw_sql(AssertSqlSafe(format!("CREATE DATABASE {name} {options}")))
            .execute(&mut connection)
            .await
            .map_err(Error::postgres("making a database"))?;
        drop(connection.close().await);
        Ok(Database { url: with_database(url, &name), name })
    }

    /// Its address, as superuser.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// A connection to it.
    pub async fn connect(&self) -> Result<PgConnection, Error> {
        PgConnection::connect(&self.url).await.map_err(Error::postgres("connecting to a test's database"))
    }

    /// Executes statements.
    pub async fn execute(&self, sql: &str) -> Result<(), Error> {
        let mut connection = self.connect().await?;
        sqlx::raw_sql(AssertSqlSafe(sql))
            .execute(&mut connection)
            .await
            .map_err(Error::postgres("a test's statement"))?;
        drop(connection.close().await);
        Ok(())
    }
}

impl Drop for Database {
    /// Best effort: the server may be gone, and ends with the test run anyway. Slots hold WAL and there are only
    /// so many of them, so they go first.
    fn drop(&mut self) {
        let (url, name) = (with_database(&self.url, "postgres"), self.name.clone());
        let dropping = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().ok()?;
            runtime.block_on(async move {
                let attempt = drop_database(&url, &name);
                tokio::time::timeout(std::time::Duration::from_secs(10), attempt).await.ok()
            })
        });
        drop(dropping.join());
    }
}

async fn drop_database(url: &str, name: &str) -> Result<(), sqlx::Error> {
    let mut connection = PgConnection::connect(url).await?;
    let end_walsenders = "SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots
                          WHERE database = $1 AND active_pid IS NOT NULL";
    sqlx::query(end_walsenders).bind(name).execute(&mut connection).await?;
    let slots: Vec<String> =
        sqlx::query_scalar("SELECT slot_name::text FROM pg_replication_slots WHERE database = $1")
            .bind(name)
            .fetch_all(&mut connection)
            .await?;
    for slot in slots {
        for _ in 0..50 {
            let dropped =
                sqlx::query("SELECT pg_drop_replication_slot($1)").bind(&slot).execute(&mut connection).await;
            if dropped.is_ok() {
                break;
            }
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    }
    sqlx::raw_sql(AssertSqlSafe(format!("DROP DATABASE IF EXISTS {name} WITH (FORCE)")))
        .execute(&mut connection)
        .await?;
    Ok(())
}

fn with_database(url: &str, database: &str) -> String {
    let Ok(mut url) = Url::parse(url) else { return url.to_owned() };
    url.set_path(database);
    url.into()
}
