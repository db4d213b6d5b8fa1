//! Writes checkpoints in the background, and takes the snapshots that say which rows may be dropped.

use std::time::{Duration, Instant};

use sqlx::postgres::PgConnection;
use sqlx::types::Text;
use sqlx::{Connection, Row};
use tokio::sync::watch;
use tokio::time::error::Elapsed;
use tokio::time::timeout;

use super::statement::Statement;
use super::{CheckpointUpdate, ClusterTimeline, CommittedCheckpoint};
use crate::config::Config;
use crate::error::{ErrorKind, RefillCause, RelayError};
use crate::failpoint::{self, Boundary};
use crate::postgres::connection::CONNECT_WITHIN;
use crate::postgres::delivered_snapshots::{DeliveredSnapshots, Snapshot};
use crate::postgres::missing_rows::Xid8;
use crate::postgres::{heartbeat, slot};
use crate::status::Status;

/// How often this connection queries the slot.
const ASK_EVERY: Duration = Duration::from_secs(1);

/// Timeout of one checkpoint. A slow server, or a lock on the row, shows as [`ErrorKind::CheckpointStalled`] long
/// before; what takes this long is a connection that is dead.
const WRITE_WITHIN: Duration = Duration::from_secs(60);

/// Writes checkpoints in the background, one at a time, always the newest.
pub struct Writer {
    progress: watch::Sender<Option<CheckpointUpdate>>,
    committed: watch::Receiver<CommittedCheckpoint>,
    /// Since when the server has not responded.
    waits: watch::Receiver<Option<Instant>>,
    task: tokio::task::JoinHandle<Result<(), RelayError>>,
}

impl Writer {
    /// Starts to write over `sql`. `committed` is the content of the row.
    pub fn start(
        sql: PgConnection,
        config: &Config,
        history: ClusterTimeline,
        refill: Option<RefillCause>,
        committed: CommittedCheckpoint,
        status: Status,
    ) -> Writer {
        let (progress, wanted) = watch::channel(None);
        let previous = committed.xid;
        let (done, committed) = watch::channel(committed);
        let (waiting, waits) = watch::channel(None);
        let statement = Statement::new(config, history, refill);
        let slot = config.source.slot.name.clone();
        let writing =
            WriterTask { sql, statement, slot, status, asked: Instant::now(), previous, done, waiting };
        Writer { progress, committed, waits, task: tokio::spawn(writing.run(wanted)) }
    }

    /// Requests that `progress` be written; replaces a request whose write has not started.
    pub fn write(&self, progress: CheckpointUpdate) {
        self.progress.send_replace(Some(progress));
    }

    pub fn committed(&self) -> CommittedCheckpoint {
        *self.committed.borrow()
    }

    /// Since when a checkpoint write is in progress.
    pub fn waits_since(&self) -> Option<Instant> {
        *self.waits.borrow()
    }

    /// Waits until another checkpoint is committed, or fails if none can be.
    pub async fn changed(&mut self) -> Result<(), RelayError> {
        if self.committed.changed().await.is_ok() {
            return Ok(());
        }
        match (&mut self.task).await {
            Ok(Err(error)) => Err(error),
            _ => Err(RelayError::new(ErrorKind::CheckpointLost, "the checkpoint writer ended")),
        }
    }
}

struct WriterTask {
    sql: PgConnection,
    statement: Statement,
    slot: String,
    status: Status,
    /// When the server was last queried for the slot.
    asked: Instant,
    /// The transaction that last wrote the row.
    previous: Xid8,
    done: watch::Sender<CommittedCheckpoint>,
    waiting: watch::Sender<Option<Instant>>,
}

impl WriterTask {
    async fn run(mut self, mut wanted: watch::Receiver<Option<CheckpointUpdate>>) -> Result<(), RelayError> {
        // Valid for this session only: see [`DeliveredSnapshots`].
        let mut delivered = DeliveredSnapshots::default();
        loop {
            match timeout(ASK_EVERY, wanted.changed()).await {
                Ok(Ok(())) => {}
                Ok(Err(_)) => break,
                Err(_) => {
                    self.ask().await?;
                    continue;
                }
            }
            let Some(progress) = wanted.borrow_and_update().clone() else { continue };
            self.waiting.send_replace(Some(Instant::now()));
            let done = self.write(&progress, &mut delivered);
            timeout(WRITE_WITHIN, done).await.map_err(late)??;
            self.waiting.send_replace(None);
            if self.asked.elapsed() >= ASK_EVERY {
                self.ask().await?;
            }
        }
        drop(self.sql.close().await);
        Ok(())
    }

    /// Queries the slot. A server that is shutting down reports so on this connection and then waits until the stream
    /// is closed; nothing else would notice that while the stream is not read. And the session learns who holds the
    /// slot, whether or not the observer can connect.
    async fn ask(&mut self) -> Result<(), RelayError> {
        self.asked = Instant::now();
        let late = |_| {
            RelayError::new(ErrorKind::DatabaseUnreachable, format!("no answer within {CONNECT_WITHIN:?}"))
        };
        let asking = async {
            let slot = slot::state(&mut self.sql, &self.slot).await?;
            self.status.set_slot_by_session(self.asked, slot);
            heartbeat::send_if_due(&mut self.sql, &self.status).await
        };
        Ok(timeout(CONNECT_WITHIN, asking).await.map_err(late)??)
    }

    async fn write(
        &mut self,
        progress: &CheckpointUpdate,
        delivered: &mut DeliveredSnapshots,
    ) -> Result<(), RelayError> {
        let ripe = delivered.take_confirmed(progress.confirmed);
        self.previous =
            self.statement.execute(&mut self.sql, progress, ripe.as_ref(), Some(self.previous)).await?;
        failpoint::pass(Boundary::CheckpointStored);
        self.done.send_replace(progress.committed(self.previous));
        delivered.on_written(self.previous, &progress.offsets);
        // Before the stream is read, no row of the table counts as delivered.
        if progress.snapshot_cursor.is_none() && delivered.is_due() {
            delivered.on_taken(take_snapshot(&mut self.sql).await?);
        }
        Ok(())
    }
}

fn late(_: Elapsed) -> RelayError {
    RelayError::new(
        ErrorKind::DatabaseUnreachable,
        format!("a checkpoint was not written within {WRITE_WITHIN:?}"),
    )
}

/// One statement: its snapshot is older than the LSN, which is read while it runs.
async fn take_snapshot(sql: &mut PgConnection) -> Result<Snapshot, RelayError> {
    let row = sqlx::query(
        "SELECT pg_current_snapshot()::text AS snapshot, pg_snapshot_xmin(pg_current_snapshot())::text AS xmin,
                pg_current_wal_insert_lsn()::text AS until",
    )
    .fetch_one(&mut *sql)
    .await?;
    let (Text(xmin), Text(until)) = (row.try_get("xmin")?, row.try_get("until")?);
    Ok(Snapshot { snapshot: row.try_get("snapshot")?, xmin: Xid8(xmin), until })
}
