//! The first start, without a checkpoint: creates the slot and, with `source.start: Table`, the snapshot that defines
//! which rows of the table come before the slot.
//!
//! The connection that creates the slot exports the snapshot. It shows exactly the rows that the slot will not stream,
//! and it ends with that connection's next command. Its text form (`pg_current_snapshot()`) lasts, and is stored with
//! the LSN at which the slot begins: any later query can then decide by a row's `xid` whether the snapshot showed it.
//! So the order is: record in the checkpoint that the slot is being created, create the slot, import the exported
//! snapshot in a transaction to read its text form, store that. A relay that dies in between leaves the record, and
//! perhaps a slot without a snapshot. The next relay drops that slot and starts again.

use std::time::Duration;

use chrono::Utc;
use pg_replication::{Client, EndLsn, FAILOVER_SINCE, SlotOptions, Snapshot, SqlState};
use sqlx::postgres::PgConnection;
use tokio::time::{Instant, sleep, timeout};

use crate::config::Failover;
use crate::error::{ErrorKind, RelayError};
use crate::failpoint::{self, Boundary};
use crate::postgres::blocking_transactions::{self, OpenTransaction};
use crate::postgres::checkpoint::{self, CheckpointUpdate, ClusterTimeline};
use crate::postgres::connection::CONNECT_WITHIN;
use crate::postgres::initial_rows::{self, RowsFor};
use crate::postgres::slot;
use crate::routing::mapping::{Revision, RoutingHistory};
use crate::session::Context;
use crate::session::slot_wait::{self, SlotMemory};
use crate::status::Phase;
use crate::topics::partitions::ScanStarts;

/// How often to query the transactions that the creation waits for. It also keeps the session active: other relays
/// treat a session without queries as silent.
const POLL_INTERVAL: Duration = Duration::from_secs(1);

/// A shorter wait is not reported, because most transactions end within it.
const REPORT_AFTER: Duration = Duration::from_secs(5);

/// Makes this the only relay that creates the slot while `sql` is connected. All writes about the creation use that
/// connection, so a relay that lost the lock cannot write any more.
pub async fn lock(sql: &mut PgConnection, slot: &str, memory: &SlotMemory) -> Result<(), RelayError> {
    let name = lock_name(slot);
    if try_lock(sql, &name).await?
        || (slot_wait::end_creator(sql, &name, memory).await? && try_lock(sql, &name).await?)
    {
        return Ok(());
    }
    Err(RelayError::new(ErrorKind::SlotActive, format!("another relay is creating slot {slot}")))
}

async fn try_lock(sql: &mut PgConnection, name: &str) -> Result<bool, RelayError> {
    let query = sqlx::query_scalar("SELECT pg_try_advisory_lock(hashtextextended($1, 0))").bind(name);
    Ok(query.fetch_one(sql).await?)
}

/// Makes the server check every second on both connections whether this relay is still connected. It would not notice
/// otherwise while it waits for transactions or reads a large table. The timer starts with a statement and outlives it.
pub async fn watch_client_connection(sql: &mut PgConnection, client: &mut Client) -> Result<(), RelayError> {
    const EVERY_SECOND: &str = "SET client_connection_check_interval = 1000";
    // A server on a platform without this check rejects the setting.
    let refused = |error: pg_replication::Error| match error {
        pg_replication::Error::Server(_) => Ok(Vec::new()),
        error => Err(error),
    };
    client.simple_query(EVERY_SECOND).await.or_else(refused)?;
    client.simple_query("SELECT 1").await?;
    match sqlx::query(EVERY_SECOND).execute(sql).await {
        Ok(_) | Err(sqlx::Error::Database(_)) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// Allows other relays to continue, now that the slot exists.
pub async fn unlock(sql: &mut PgConnection, slot: &str) -> Result<(), RelayError> {
    sqlx::query("SELECT pg_advisory_unlock(hashtextextended($1, 0))")
        .bind(lock_name(slot))
        .execute(&mut *sql)
        .await?;
    Ok(())
}

fn lock_name(slot: &str) -> String {
    format!("outbox-relay creates slot {slot}")
}

/// Drops the slot that an interrupted first start may have left.
pub async fn drop_leftover(sql: &mut PgConnection, slot: &str) -> Result<(), RelayError> {
    tracing::warn!(
        %slot,
        "an earlier first start was interrupted before it stored the snapshot of this slot; dropping and recreating \
         the slot"
    );
    slot::drop_own(sql, slot).await
}

/// Creates the slot for `source.start: Now`. Registers the relay first: from then on retention keeps the rows that this
/// relay has not confirmed.
pub async fn create_slot(
    sql: &mut PgConnection,
    client: &mut Client,
    context: &Context,
    history: ClusterTimeline,
) -> Result<(), RelayError> {
    let config = &*context.config;
    checkpoint::register(sql, config, history).await?;
    let confirmed = create(sql, client, context, Snapshot::Nothing).await?.0;
    let mappings = RoutingHistory::first(config.routing_rule());
    let progress = CheckpointUpdate {
        confirmed,
        snapshot_cursor: None,
        mappings,
        revision: Revision::default(),
        offsets: ScanStarts::new(),
    };
    checkpoint::write_now(sql, config, history, &progress, None).await?;
    let slot = &config.source.slot.name;
    tracing::info!(%slot, lsn = %confirmed, "created the slot; events committed from here on are delivered");
    Ok(())
}

/// Creates the slot for `source.start: Table`.
pub async fn create_slot_with_snapshot(
    sql: &mut PgConnection,
    client: &mut Client,
    context: &Context,
    history: ClusterTimeline,
) -> Result<(), RelayError> {
    let config = &*context.config;
    let (source, slot) = (&config.source, &config.source.slot.name);
    initial_rows::check_table(sql, source, RowsFor::Start).await?;
    checkpoint::begin_slot_creation(sql, config, history).await?;
    let (from, snapshot) = match create_exporting(sql, client, context).await {
        Ok(created) => created,
        Err(CreateError::Exists(error)) => {
            checkpoint::abort_slot_creation(sql, config).await?;
            return Err(error);
        }
        Err(error) => return Err(error.into()),
    };
    let (snapshot, order) = initial_rows::describe(sql, source, &snapshot).await?;
    if let Err(refused) = order.check(source, RowsFor::Start) {
        slot::drop_own(sql, slot).await?;
        checkpoint::abort_slot_creation(sql, config).await?;
        return Err(refused);
    }
    checkpoint::begin_snapshot(sql, config, from, &snapshot).await?;
    tracing::info!(%slot, lsn = %from, "created the slot; the rows from before it are delivered first (initial snapshot)");
    Ok(())
}

/// Why a slot was not created.
pub(super) enum CreateError {
    /// Another client created the slot first.
    Exists(RelayError),
    Other(RelayError),
}

impl From<CreateError> for RelayError {
    fn from(error: CreateError) -> Self {
        match error {
            CreateError::Exists(error) | CreateError::Other(error) => error,
        }
    }
}

/// Creates the slot, and waits for the transactions that PostgreSQL waits for. Returns its consistent point, and the
/// name of the exported snapshot.
async fn create(
    sql: &mut PgConnection,
    client: &mut Client,
    context: &Context,
    snapshot: Snapshot,
) -> Result<(EndLsn, Option<String>), CreateError> {
    let source = &context.config.source;
    let slot = &source.slot.name;
    tracing::info!(
        %slot,
        "creating the slot; PostgreSQL first waits for all transactions that are open now, in any database"
    );
    let failover = source.slot.failover == Failover::Auto && client.server_version() >= FAILOVER_SINCE;
    let options = SlotOptions { snapshot, failover, temporary: false };
    let walsender = client.process_id().cast_signed();
    let mut creating = std::pin::pin!(client.create_slot(slot, &options));
    let (began, mut reported) = (Instant::now(), Vec::new());
    let created = loop {
        tokio::select! {
            created = &mut creating => break created,
            () = sleep(POLL_INTERVAL) => {}
        }
        let open = blocking_transactions(sql, walsender).await.map_err(CreateError::Other)?;
        if began.elapsed() >= REPORT_AFTER && !open.is_empty() {
            report_blocking_transactions(context, &open, &reported);
            reported = open;
        }
    };
    match created {
        Ok(created) => {
            failpoint::pass(Boundary::SlotCreated);
            Ok((created.consistent_point, created.snapshot_name))
        }
        Err(pg_replication::Error::Server(error)) if error.code == SqlState::DUPLICATE_OBJECT => {
            let what = format!("another client created slot {slot} at the same time");
            Err(CreateError::Exists(RelayError::new(ErrorKind::SlotActive, what)))
        }
        Err(error) => Err(CreateError::Other(error.into())),
    }
}

/// The same for a slot that exports a snapshot, whose name is returned.
pub(super) async fn create_exporting(
    sql: &mut PgConnection,
    client: &mut Client,
    context: &Context,
) -> Result<(EndLsn, String), CreateError> {
    let (from, exported) = create(sql, client, context, Snapshot::Export).await?;
    let exported = exported.ok_or_else(|| {
        let what = "the slot was created without a snapshot";
        CreateError::Other(RelayError::new(ErrorKind::ProtocolViolation, what))
    })?;
    Ok((from, exported))
}

async fn blocking_transactions(
    sql: &mut PgConnection,
    walsender: i32,
) -> Result<Vec<OpenTransaction>, RelayError> {
    let late = |_| {
        let what = format!(
            "the server did not respond to a query within {CONNECT_WITHIN:?} while the slot is being created"
        );
        RelayError::new(ErrorKind::DatabaseUnreachable, what)
    };
    Ok(timeout(CONNECT_WITHIN, blocking_transactions::blocking(sql, walsender)).await.map_err(late)??)
}

/// Shows in `/status` what the creation waits for, and logs it when it differs from what was `reported` last.
fn report_blocking_transactions(context: &Context, open: &[OpenTransaction], reported: &[OpenTransaction]) {
    let source = &context.config.source;
    let what = blocking_transactions::sentence(&source.slot.name, open, &source.user, Utc::now());
    let error = RelayError::new(ErrorKind::SlotCreationWaits, what);
    context.status.on_error(Phase::Starting, &error);
    if !blocking_transactions::are_same(open, reported) {
        tracing::warn!(reason = error.kind.name(), "{error}");
    }
}
