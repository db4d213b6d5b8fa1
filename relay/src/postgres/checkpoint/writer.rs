//! Writes checkpoints in the background, and takes the snapshots that say what may be dropped.

use std::time::Duration;

use sqlx::postgres::PgConnection;
use sqlx::{Connection, Row};
use tokio::sync::watch;
use tokio::time::timeout;

use super::statement::{Statement, xid};
use super::{Committed, History, Progress};
use crate::config::Config;
use crate::failpoint::{self, Boundary};
use crate::postgres::delivered::{Delivered, Taken};
use crate::postgres::source::{CONNECT_WITHIN, lsn};
use crate::trouble::{Reason, Trouble};

/// How often a connection over which nothing is written is asked whether it is still there.
const ASK_EVERY: Duration = Duration::from_secs(1);

/// Writes checkpoints in the background, one at a time, always the newest.
pub struct Writer {
    progress: watch::Sender<Option<Progress>>,
    committed: watch::Receiver<Committed>,
    task: tokio::task::JoinHandle<Result<(), Trouble>>,
}

impl Writer {
    /// Takes over `sql` for writing. `committed` is what the row says now.
    pub async fn start(
        mut sql: PgConnection,
        config: &Config,
        history: History,
        committed: Committed,
    ) -> Result<Writer, Trouble> {
        // `local`: a synchronous standby that is away must not hold up deliveries that have happened.
        sqlx::query("SET synchronous_commit = local").execute(&mut sql).await?;
        let (progress, wanted) = watch::channel(None);
        let (done, committed) = watch::channel(committed);
        let statement = Statement::new(config, history);
        let task = tokio::spawn(write_newest(sql, statement, wanted, done));
        Ok(Writer { progress, committed, task })
    }

    /// Asks for `progress` to be written, in place of anything asked for and not begun.
    pub fn write(&self, progress: Progress) {
        self.progress.send_replace(Some(progress));
    }

    /// What the last committed row says.
    pub fn committed(&self) -> Committed {
        *self.committed.borrow()
    }

    /// Waits until another row was committed, or for the reason why none can be.
    pub async fn changed(&mut self) -> Result<(), Trouble> {
        if self.committed.changed().await.is_ok() {
            return Ok(());
        }
        match (&mut self.task).await {
            Ok(Err(trouble)) => Err(trouble),
            _ => Err(Trouble::new(Reason::CheckpointLost, "the checkpoint writer ended")),
        }
    }
}

async fn write_newest(
    mut sql: PgConnection,
    statement: Statement,
    mut wanted: watch::Receiver<Option<Progress>>,
    done: watch::Sender<Committed>,
) -> Result<(), Trouble> {
    // Lives and dies with the session: see its text.
    let mut delivered = Delivered::default();
    loop {
        match timeout(ASK_EVERY, wanted.changed()).await {
            Ok(Ok(())) => {}
            Ok(Err(_)) => break,
            Err(_) => {
                still_there(&mut sql).await?;
                continue;
            }
        }
        let Some(progress) = wanted.borrow_and_update().clone() else { continue };
        let ripe = delivered.ripe(progress.confirmed);
        let xid = statement.execute(&mut sql, &progress, ripe.as_ref()).await?;
        failpoint::pass(Boundary::CheckpointStored);
        done.send_replace(progress.committed());
        delivered.written(xid, &progress.offsets);
        // While rows are copied nothing of the table counts as delivered.
        if progress.copied.is_none() && delivered.is_due() {
            delivered.take(take_snapshot(&mut sql).await?);
        }
    }
    drop(sql.close().await);
    Ok(())
}

/// One statement: its snapshot is older than the LSN, which is read while it runs.
async fn take_snapshot(sql: &mut PgConnection) -> Result<Taken, Trouble> {
    let row = sqlx::query(
        "SELECT pg_current_snapshot()::text AS snapshot, pg_snapshot_xmin(pg_current_snapshot())::text AS xmin,
                pg_current_wal_insert_lsn()::text AS until",
    )
    .fetch_one(&mut *sql)
    .await?;
    Ok(Taken {
        snapshot: row.try_get("snapshot")?,
        xmin: xid(&row.try_get::<String, _>("xmin")?)?,
        until: lsn(&row.try_get::<String, _>("until")?)?,
    })
}

/// A server that is stopping says so on this connection, and then waits for the stream to be closed; while nothing is
/// written and the stream is not read, nobody would hear it.
async fn still_there(sql: &mut PgConnection) -> Result<(), Trouble> {
    let late = |_| Trouble::new(Reason::DatabaseUnreachable, format!("no answer within {CONNECT_WITHIN:?}"));
    Ok(timeout(CONNECT_WITHIN, sql.ping()).await.map_err(late)??)
}
