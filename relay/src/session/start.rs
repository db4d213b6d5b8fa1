//! The start without a checkpoint: the slot, and with `source.start: Table` the snapshot that says which rows were
//! there before it.
//!
//! The snapshot is exported by the connection that creates the slot, shows exactly what the slot will not stream, and
//! is gone with that connection's next command. What outlives it is its description, stored with the place where the
//! slot begins: any later query can tell by a row's `xid` whether the snapshot showed it. So the order is: say in the
//! checkpoint what is about to be done, create the slot, read the snapshot's description in a transaction that takes
//! the snapshot over, store it. A relay that dies in between leaves an intent and perhaps a slot without a
//! description; the next one drops that slot and begins again.

use pg_replication::{Client, EndLsn, FAILOVER_SINCE, SlotOptions, Snapshot, SqlState};
use sqlx::postgres::PgConnection;
use sqlx::{AssertSqlSafe, Row};

use crate::config::{Config, Failover, Source};
use crate::failpoint::{self, Boundary};
use crate::postgres::checkpoint::{self, History, Progress};
use crate::routing::mapping::{Mappings, Rule};
use crate::topics::partitions::Offsets;
use crate::trouble::{Reason, Trouble};

/// Makes this the only relay that creates the slot, as long as `sql` is connected. Everything about the creation is
/// written over that connection, so a relay that lost the lock can write nothing more.
pub async fn lock(sql: &mut PgConnection, slot: &str) -> Result<(), Trouble> {
    let taken: bool = sqlx::query_scalar("SELECT pg_try_advisory_lock(hashtextextended($1, 0))")
        .bind(lock_name(slot))
        .fetch_one(&mut *sql)
        .await?;
    if taken {
        return Ok(());
    }
    Err(Trouble::new(Reason::SlotActive, format!("another relay is creating slot {slot}")))
}

/// Lets other relays look at the slot that was created.
pub async fn unlock(sql: &mut PgConnection, slot: &str) -> Result<(), Trouble> {
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
pub async fn drop_leftover(sql: &mut PgConnection, slot: &str) -> Result<(), Trouble> {
    tracing::warn!(%slot, "an earlier start ended before it knew which rows come before this slot; it is made anew");
    drop_slot(sql, slot).await
}

/// Creates the slot for `source.start: Now`. Registers first: from then on nobody may drop rows this relay has not
/// confirmed.
pub async fn create_slot(
    sql: &mut PgConnection,
    client: &mut Client,
    config: &Config,
    history: History,
) -> Result<(), Trouble> {
    checkpoint::register(sql, config, history).await?;
    let confirmed = create(client, &config.source, Snapshot::Nothing).await?.0;
    let mappings = Mappings::first(Rule::of(config));
    let progress = Progress { confirmed, copied: None, mappings, revision: 0, offsets: Offsets::new() };
    checkpoint::write_now(sql, config, history, &progress).await?;
    let slot = &config.source.slot.name;
    tracing::info!(%slot, lsn = %confirmed, "created the slot; events committed from here on are delivered");
    Ok(())
}

/// Creates the slot for `source.start: Table`.
pub async fn create_slot_with_snapshot(
    sql: &mut PgConnection,
    client: &mut Client,
    config: &Config,
    history: History,
) -> Result<(), Trouble> {
    let (source, slot) = (&config.source, &config.source.slot.name);
    // Every row is looked at, which may take longer than the role's statements are meant to.
    sqlx::query("SET statement_timeout = 0").execute(&mut *sql).await?;
    check_table(sql, source).await?;
    checkpoint::intend_slot(sql, config, history).await?;
    let (from, snapshot) = match create(client, source, Snapshot::Export).await {
        Ok((from, Some(snapshot))) => (from, snapshot),
        Ok((_, None)) => {
            return Err(Trouble::new(Reason::ProtocolViolation, "the slot was created without a snapshot"));
        }
        Err(CreateError::Exists(trouble)) => {
            checkpoint::give_up_slot(sql, config).await?;
            return Err(trouble);
        }
        Err(error) => return Err(error.into()),
    };
    let (snapshot, order) = describe(sql, source, &snapshot).await?;
    if let Err(refused) = order.check(source) {
        drop_slot(sql, slot).await?;
        checkpoint::give_up_slot(sql, config).await?;
        return Err(refused);
    }
    sqlx::query("RESET statement_timeout").execute(&mut *sql).await?;
    checkpoint::begin_copy(sql, config, from, &snapshot).await?;
    tracing::info!(%slot, lsn = %from, "created the slot; the rows that were there before it are delivered first");
    Ok(())
}

enum CreateError {
    /// Somebody else made it.
    Exists(Trouble),
    Other(pg_replication::Error),
}

impl From<CreateError> for Trouble {
    fn from(error: CreateError) -> Self {
        match error {
            CreateError::Exists(trouble) => trouble,
            CreateError::Other(error) => error.into(),
        }
    }
}

async fn create(
    client: &mut Client,
    source: &Source,
    snapshot: Snapshot,
) -> Result<(EndLsn, Option<String>), CreateError> {
    let slot = &source.slot.name;
    tracing::info!(%slot, "creating the slot; this waits for transactions that are open now");
    let failover = source.slot.failover == Failover::Auto && client.server_version() >= FAILOVER_SINCE;
    let options = SlotOptions { snapshot, failover, temporary: false };
    match client.create_slot(slot, &options).await {
        Ok(created) => {
            failpoint::pass(Boundary::SlotCreated);
            Ok((created.consistent_point, created.snapshot_name))
        }
        Err(pg_replication::Error::Server(error)) if error.code == SqlState::DUPLICATE_OBJECT => {
            let what = format!("slot {slot} was created by somebody else at this moment");
            Err(CreateError::Exists(Trouble::new(Reason::SlotActive, what)))
        }
        Err(error) => Err(CreateError::Other(error)),
    }
}

/// Only one that nobody holds: the one that a relay left.
async fn drop_slot(sql: &mut PgConnection, slot: &str) -> Result<(), Trouble> {
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
) -> Result<(String, Order), Trouble> {
    let begin = format!(
        "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY; SET TRANSACTION SNAPSHOT '{}'",
        exported.replace('\'', "''")
    );
    sqlx::raw_sql(AssertSqlSafe(begin)).execute(&mut *sql).await?;
    let snapshot: String =
        sqlx::query_scalar("SELECT pg_current_snapshot()::text").fetch_one(&mut *sql).await?;
    let order = Order::of(sql, source).await?;
    sqlx::raw_sql("COMMIT").execute(&mut *sql).await?;
    Ok((snapshot, order))
}

/// Checks that the rows of the table can be read, and told by snapshot and `seq`. Before anything is made.
async fn check_table(sql: &mut PgConnection, source: &Source) -> Result<(), Trouble> {
    let table = source.table.quoted();
    let row = sqlx::query(
        "SELECT count(*) FILTER (WHERE attname = 'seq' AND atttypid = 'bigint'::regtype AND attnotnull) = 1
                AND count(*) FILTER (WHERE attname = 'xid' AND atttypid = 'xid8'::regtype AND attnotnull) = 1 AS told,
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
        return Err(Trouble::new(Reason::StartRefused, what));
    }
    if !row.try_get::<bool, _>("readable")? {
        let what = format!(
            "role {role} may not read table {}, whose rows are delivered first: GRANT SELECT ON {table} TO {role}",
            source.table
        );
        return Err(Trouble::new(Reason::PermissionDenied, what));
    }
    if row.try_get::<bool, _>("secured")? {
        let what = format!(
            "row-level security hides rows of table {} from role {role}: ALTER ROLE {role} BYPASSRLS",
            source.table
        );
        return Err(Trouble::new(Reason::PermissionDenied, what));
    }
    Order::of(sql, source).await?.check(source)
}

/// What could make snapshot and `seq` miss a row.
struct Order {
    /// Rows that are here and carry a transaction that the snapshot does not show: of another cluster.
    foreign: bool,
    /// Rows before the first place of a copy.
    negative: bool,
}

impl Order {
    /// Looks at every row that the connection's snapshot shows.
    async fn of(sql: &mut PgConnection, source: &Source) -> Result<Order, Trouble> {
        let select = format!(
            "SELECT coalesce(bool_or(NOT pg_visible_in_snapshot(xid, s)), false) AS foreign_xid,
                    coalesce(bool_or(seq < 0), false) AS negative
             FROM {}, (SELECT pg_current_snapshot() AS s) AS current",
            source.table.quoted()
        );
        let row = sqlx::query(AssertSqlSafe(select)).fetch_one(&mut *sql).await?;
        Ok(Order { foreign: row.try_get("foreign_xid")?, negative: row.try_get("negative")? })
    }

    fn check(&self, source: &Source) -> Result<(), Trouble> {
        let table = source.table.quoted();
        if self.foreign {
            let what = format!(
                "table {} has rows whose xid is of another cluster, as after a dump and restore: \
                 UPDATE {table} SET xid = DEFAULT WHERE NOT pg_visible_in_snapshot(xid, pg_current_snapshot())",
                source.table
            );
            return Err(Trouble::new(Reason::StartRefused, what));
        }
        if self.negative {
            let what = format!("table {} has rows whose seq is negative", source.table);
            return Err(Trouble::new(Reason::StartRefused, what));
        }
        Ok(())
    }
}
