//! The start without a checkpoint: the slot, and with `source.start: Table` the snapshot that says which rows were
//! there before it.
//!
//! The snapshot is exported by the connection that creates the slot, shows exactly what the slot will not stream, and
//! is gone with that connection's next command. What outlives it is its description, stored with the place where the
//! slot begins: any later query can tell by a row's `xid` whether the snapshot showed it. So the order is: say in the
//! checkpoint what is about to be done, create the slot, read the snapshot's description in a transaction that takes
//! the snapshot over, store it. A relay that dies in between leaves an intent and perhaps a slot without a
//! description; the next one drops that slot and begins again.

use std::time::Duration;

use chrono::Utc;
use pg_replication::{Client, EndLsn, FAILOVER_SINCE, SlotOptions, Snapshot, SqlState};
use sqlx::postgres::PgConnection;
use sqlx::{AssertSqlSafe, Row};
use tokio::time::{Instant, sleep, timeout};

use crate::config::{Failover, Source};
use crate::error::{ErrorKind, RelayError};
use crate::failpoint::{self, Boundary};
use crate::postgres::blocking_transactions::{self, OpenTransaction};
use crate::postgres::checkpoint::{self, CheckpointUpdate, ClusterTimeline};
use crate::postgres::connection::CONNECT_WITHIN;
use crate::routing::mapping::RoutingHistory;
use crate::session::Context;
use crate::session::slot_wait::{self, Memory};
use crate::status::Phase;
use crate::topics::partitions::Offsets;

/// How often it is looked for whom the creation waits. Another relay takes a session that asks nothing for silent.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// A wait for transactions as short as they usually are is none to show.
const SHOW_AFTER: Duration = Duration::from_secs(5);

/// Makes this the only relay that creates the slot, as long as `sql` is connected. Everything about the creation is
/// written over that connection, so a relay that lost the lock can write nothing more.
pub async fn lock(sql: &mut PgConnection, slot: &str, memory: &Memory) -> Result<(), RelayError> {
    let name = lock_name(slot);
    if try_lock(sql, &name).await?
        || (slot_wait::end_creator(sql, &name, memory).await? && try_lock(sql, &name).await?)
    {
        return Ok(());
    }
    Err(RelayError::new(ErrorKind::SlotActive, format!("another relay is creating slot {slot}")))
}

async fn try_lock(sql: &mut PgConnection, name: &str) -> Result<bool, RelayError> {
    let taken = sqlx::query_scalar("SELECT pg_try_advisory_lock(hashtextextended($1, 0))").bind(name);
    Ok(taken.fetch_one(sql).await?)
}

/// Has the server look every second whether this relay is still connected, on both connections: while it waits for
/// transactions or reads a large table it would not notice otherwise. The timer begins with a statement and outlives it.
pub async fn watch_client_connection(sql: &mut PgConnection, client: &mut Client) -> Result<(), RelayError> {
    const EVERY_SECOND: &str = "SET client_connection_check_interval = 1000";
    // A platform on which the server cannot look refuses the setting.
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

/// Lets other relays look at the slot that was created.
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

/// Drops the slot that an unfinished start may have left.
pub async fn drop_leftover(sql: &mut PgConnection, slot: &str) -> Result<(), RelayError> {
    tracing::warn!(%slot, "an earlier start ended before it knew which rows come before this slot; it is made anew");
    drop_slot(sql, slot).await
}

/// Creates the slot for `source.start: Now`. Registers first: from then on nobody may drop rows this relay has not
/// confirmed.
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
    let progress =
        CheckpointUpdate { confirmed, copied: None, mappings, revision: 0, offsets: Offsets::new() };
    checkpoint::write_now(sql, config, history, &progress).await?;
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
    check_table(sql, source).await?;
    checkpoint::begin_slot_creation(sql, config, history).await?;
    let (from, snapshot) = match create(sql, client, context, Snapshot::Export).await {
        Ok((from, Some(snapshot))) => (from, snapshot),
        Ok((_, None)) => {
            return Err(RelayError::new(
                ErrorKind::ProtocolViolation,
                "the slot was created without a snapshot",
            ));
        }
        Err(CreateError::Exists(error)) => {
            checkpoint::abort_slot_creation(sql, config).await?;
            return Err(error);
        }
        Err(error) => return Err(error.into()),
    };
    let (snapshot, order) = describe(sql, source, &snapshot).await?;
    if let Err(refused) = order.check(source) {
        drop_slot(sql, slot).await?;
        checkpoint::abort_slot_creation(sql, config).await?;
        return Err(refused);
    }
    checkpoint::begin_snapshot(sql, config, from, &snapshot).await?;
    tracing::info!(%slot, lsn = %from, "created the slot; the rows that were there before it are delivered first");
    Ok(())
}

enum CreateError {
    /// Somebody else made it.
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

async fn create(
    sql: &mut PgConnection,
    client: &mut Client,
    context: &Context,
    snapshot: Snapshot,
) -> Result<(EndLsn, Option<String>), CreateError> {
    let source = &context.config.source;
    let slot = &source.slot.name;
    tracing::info!(%slot, "creating the slot; PostgreSQL waits for all transactions that are open now, in any database");
    let failover = source.slot.failover == Failover::Auto && client.server_version() >= FAILOVER_SINCE;
    let options = SlotOptions { snapshot, failover, temporary: false };
    let walsender = client.process_id().cast_signed();
    let mut creating = std::pin::pin!(client.create_slot(slot, &options));
    let (began, mut shown) = (Instant::now(), Vec::new());
    let created = loop {
        tokio::select! {
            created = &mut creating => break created,
            () = sleep(LOOK_EVERY) => {}
        }
        let open = blocking_transactions(sql, walsender).await.map_err(CreateError::Other)?;
        if began.elapsed() >= SHOW_AFTER && !open.is_empty() {
            report_blocking_transactions(context, &open, &shown);
            shown = open;
        }
    };
    match created {
        Ok(created) => {
            failpoint::pass(Boundary::SlotCreated);
            Ok((created.consistent_point, created.snapshot_name))
        }
        Err(pg_replication::Error::Server(error)) if error.code == SqlState::DUPLICATE_OBJECT => {
            let what = format!("slot {slot} was created by somebody else at this moment");
            Err(CreateError::Exists(RelayError::new(ErrorKind::SlotActive, what)))
        }
        Err(error) => Err(CreateError::Other(error.into())),
    }
}

async fn blocking_transactions(
    sql: &mut PgConnection,
    walsender: i32,
) -> Result<Vec<OpenTransaction>, RelayError> {
    let late = |_| {
        let what = format!("no answer within {CONNECT_WITHIN:?} while the slot is being created");
        RelayError::new(ErrorKind::DatabaseUnreachable, what)
    };
    Ok(timeout(CONNECT_WITHIN, blocking_transactions::blocking(sql, walsender)).await.map_err(late)??)
}

/// Shows whom the creation waits for, and logs it when that is not who was `shown` last.
fn report_blocking_transactions(context: &Context, open: &[OpenTransaction], shown: &[OpenTransaction]) {
    let source = &context.config.source;
    let what = blocking_transactions::sentence(&source.slot.name, open, &source.user, Utc::now());
    let error = RelayError::new(ErrorKind::SlotCreationWaits, what);
    context.status.on_error(Phase::Starting, &error);
    if !blocking_transactions::are_same(open, shown) {
        tracing::warn!(reason = error.kind.name(), "{error}");
    }
}

/// Only one that nobody holds: the one that a relay left.
async fn drop_slot(sql: &mut PgConnection, slot: &str) -> Result<(), RelayError> {
    sqlx::query(
        "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots
         WHERE slot_name = $1 AND plugin = 'pgoutput' AND database = current_database()",
    )
    .bind(slot)
    .execute(&mut *sql)
    .await?;
    Ok(())
}

/// The exported snapshot in words that outlive it, and whether the rows it shows can be told by them.
async fn describe(
    sql: &mut PgConnection,
    source: &Source,
    exported: &str,
) -> Result<(String, RowOrder), RelayError> {
    let begin = format!(
        "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY; SET TRANSACTION SNAPSHOT '{}'",
        exported.replace('\'', "''")
    );
    sqlx::raw_sql(AssertSqlSafe(begin)).execute(&mut *sql).await?;
    let snapshot: String =
        sqlx::query_scalar("SELECT pg_current_snapshot()::text").fetch_one(&mut *sql).await?;
    let order = RowOrder::of(sql, source).await?;
    sqlx::raw_sql("COMMIT").execute(&mut *sql).await?;
    Ok((snapshot, order))
}

/// Checks that the rows of the table can be read, and told by snapshot and `seq`. Before anything is made.
async fn check_table(sql: &mut PgConnection, source: &Source) -> Result<(), RelayError> {
    let table = source.table.quoted();
    let row = sqlx::query(
        "SELECT count(*) FILTER (WHERE attname = 'seq' AND atttypid = 'bigint'::regtype AND attnotnull) = 1
                AND count(*) FILTER (WHERE attname = 'xid' AND atttypid = 'xid8'::regtype AND attnotnull) = 1 AS told,
                count(*) FILTER (WHERE attname = 'occurred_at' AND atttypid = 'timestamptz'::regtype AND attnotnull) = 1 AS dated,
                has_table_privilege($1::regclass, 'SELECT') AS readable, row_security_active($1::regclass) AS secured,
                current_user::text AS role
         FROM pg_attribute WHERE attrelid = $1::regclass AND attnum > 0 AND NOT attisdropped",
    )
    .bind(&table)
    .fetch_one(&mut *sql)
    .await?;
    let role: String = row.try_get("role")?;
    let role = crate::config::quote(&role);
    if !row.try_get::<bool, _>("told")? {
        let what = format!(
            "table {} has no columns seq (bigint, not null) and xid (xid8, not null), by which rows that were there before \
             the slot are found and put in order, so source.start: Table is not possible",
            source.table
        );
        return Err(RelayError::new(ErrorKind::StartRefused, what));
    }
    if !row.try_get::<bool, _>("dated")? {
        let what = format!(
            "table {} has no column occurred_at (timestamptz, not null), so nothing tells the time of rows that were there \
             before the slot, and source.start: Table is not possible",
            source.table
        );
        return Err(RelayError::new(ErrorKind::StartRefused, what));
    }
    if !row.try_get::<bool, _>("readable")? {
        let what = format!(
            "role {role} may not read table {}, whose rows are delivered first: GRANT SELECT ON {table} TO {role}",
            source.table
        );
        return Err(RelayError::new(ErrorKind::PermissionDenied, what));
    }
    if row.try_get::<bool, _>("secured")? {
        let what = format!(
            "row-level security hides rows of table {} from role {role}: ALTER ROLE {role} BYPASSRLS",
            source.table
        );
        return Err(RelayError::new(ErrorKind::PermissionDenied, what));
    }
    RowOrder::of(sql, source).await?.check(source)
}

/// What could make snapshot and `seq` miss a row.
struct RowOrder {
    /// Rows that are here and carry a transaction that the snapshot does not show: of another cluster.
    foreign: bool,
    /// Rows before the first place of a copy.
    negative: bool,
    /// Rows whose time no record can have. That of their commit, which stands in for it in the stream, is not known.
    undated: bool,
}

impl RowOrder {
    /// Looks at every row that the connection's snapshot shows.
    async fn of(sql: &mut PgConnection, source: &Source) -> Result<RowOrder, RelayError> {
        let select = format!(
            "SELECT coalesce(bool_or(NOT pg_visible_in_snapshot(xid, s)), false) AS foreign_xid,
                    coalesce(bool_or(seq < 0), false) AS negative,
                    coalesce(bool_or(occurred_at NOT BETWEEN '0001-01-01Z' AND '9999-12-31 23:59:59.999999Z'), false)
                        AS undated
             FROM {}, (SELECT pg_current_snapshot() AS s) AS current",
            source.table.quoted()
        );
        let row = sqlx::query(AssertSqlSafe(select)).fetch_one(&mut *sql).await?;
        Ok(RowOrder {
            foreign: row.try_get("foreign_xid")?,
            negative: row.try_get("negative")?,
            undated: row.try_get("undated")?,
        })
    }

    fn check(&self, source: &Source) -> Result<(), RelayError> {
        let table = source.table.quoted();
        if self.foreign {
            let what = format!(
                "table {} has rows whose xid is of another cluster, as after a dump and restore: \
                 UPDATE {table} SET xid = DEFAULT WHERE NOT pg_visible_in_snapshot(xid, pg_current_snapshot())",
                source.table
            );
            return Err(RelayError::new(ErrorKind::StartRefused, what));
        }
        if self.negative {
            let what = format!("table {} has rows whose seq is negative", source.table);
            return Err(RelayError::new(ErrorKind::StartRefused, what));
        }
        if self.undated {
            let what = format!(
                "table {} has rows whose occurred_at is infinite or has no year of four digits, as a record's time needs; \
                 give them another",
                source.table
            );
            return Err(RelayError::new(ErrorKind::StartRefused, what));
        }
        Ok(())
    }
}
