//! Load: writers that behave as services do, and remember what they committed.
//!
//! A writer takes `key_seq` under the row lock of its key, inserts outbox rows in the same transaction, and writes
//! them into the [`Log`] only after COMMIT has returned. A reply that never came is logged as indeterminate. The log
//! is one half of the oracle (the records in Kafka are the other), so it shares no code with what it checks.

mod backlog;
mod dice;
mod log;
mod plan;
mod writer;

use std::ops::RangeInclusive;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use sqlx::{AssertSqlSafe, Connection, PgConnection};
use tokio::sync::watch;
use tokio::task::JoinSet;

pub use backlog::{Backlog, write_backlog};
pub use dice::Dice;
pub use log::{Fate, Log, Written, digest};

use writer::Writer;

/// What the writers do.
#[derive(Clone, Debug)]
pub struct LoadOptions {
    /// Concurrent connections.
    pub writers: usize,
    /// Distinct keys, shared by all writers: they meet on the keys' row locks, as services do.
    pub keys: usize,
    /// Rows per transaction, drawn evenly.
    pub rows: RangeInclusive<usize>,
    /// Per cent of transactions that end in ROLLBACK.
    pub rollback_percent: u8,
    /// Per cent of transactions with savepoints, about half of which are rolled back to.
    pub savepoint_percent: u8,
    /// Bytes of filler in each payload.
    pub filler_bytes: usize,
    /// Rows per second over all writers; flat out when `None`.
    pub rate: Option<f64>,
    /// The outbox table, as SQL names it.
    pub table: String,
    /// `aggregatetype` of every row.
    pub aggregatetype: String,
    /// The topic such rows are expected in.
    pub topic: String,
    /// Same seed, same choices (the interleaving of writers stays the database's).
    pub seed: u64,
}

impl Default for LoadOptions {
    fn default() -> LoadOptions {
        LoadOptions {
            writers: 4,
            keys: 50,
            rows: 1..=5,
            rollback_percent: 10,
            savepoint_percent: 20,
            filler_bytes: 100,
            rate: Some(500.0),
            table: "outbox".to_owned(),
            aggregatetype: "load".to_owned(),
            topic: "outbox.event.load".to_owned(),
            seed: 1,
        }
    }
}

/// The load could not be started, or its table not be read.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// PostgreSQL refused or was not there.
    #[error("{doing} failed; are the database up and its migrations applied?")]
    Postgres {
        /// What was being done.
        doing: &'static str,
        /// What the driver says.
        source: sqlx::Error,
    },
    /// A writer ended unexpectedly: a defect of the load.
    #[error("a writer of the load broke off: {0}")]
    Writer(String),
}

impl LoadError {
    fn postgres(doing: &'static str) -> impl FnOnce(sqlx::Error) -> LoadError {
        move |source| LoadError::Postgres { doing, source }
    }
}

/// A running load.
pub struct Load {
    stop: watch::Sender<bool>,
    committed: Arc<AtomicU64>,
    writers: JoinSet<Log>,
}

impl Load {
    /// Makes the table of keys and starts the writers. They survive restarts of the server: they connect again and
    /// continue.
    ///
    /// # Errors
    /// The database cannot be reached or the table of keys not be made.
    pub async fn start(url: &str, options: LoadOptions) -> Result<Load, LoadError> {
        make_keys(url, options.keys).await?;
        let (stop, stopped) = watch::channel(false);
        let committed = Arc::new(AtomicU64::new(0));
        let options = Arc::new(options);
        let mut writers = JoinSet::new();
        for number in 0..options.writers.max(1) {
            let writer = Writer::new(url, number, options.clone(), committed.clone(), stopped.clone());
            writers.spawn(writer.run());
        }
        Ok(Load { stop, committed, writers })
    }

    /// Rows whose COMMIT has returned so far.
    pub fn committed(&self) -> u64 {
        self.committed.load(Ordering::Relaxed)
    }

    /// Lets every writer finish its transaction and returns what they wrote. A writer whose server does not answer
    /// gives up after half a minute; its rows are then indeterminate.
    ///
    /// # Errors
    /// A writer ended unexpectedly; its part of the log is gone, so there is no log.
    pub async fn stop(mut self) -> Result<Log, LoadError> {
        self.stop.send_replace(true);
        let mut log = Log::default();
        while let Some(part) = self.writers.join_next().await {
            log.append(part.map_err(|error| LoadError::Writer(error.to_string()))?);
        }
        Ok(log)
    }
}

/// The load's own table: the row of a key is the lock its writers queue on, and counts the key's events.
async fn make_keys(url: &str, keys: usize) -> Result<(), LoadError> {
    let mut connection =
        PgConnection::connect(url).await.map_err(LoadError::postgres("connecting for the load"))?;
    let sql = format!(
        "CREATE TABLE IF NOT EXISTS load_key (key text PRIMARY KEY, seq bigint NOT NULL);
         INSERT INTO load_key SELECT 'key-' || n, 0 FROM generate_series(0, {}) n ON CONFLICT DO NOTHING",
        keys.max(1) - 1
    );
    sqlx::raw_sql(AssertSqlSafe(sql))
        .execute(&mut connection)
        .await
        .map_err(LoadError::postgres("making the table load_key"))?;
    Ok(())
}
