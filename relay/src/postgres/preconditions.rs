//! What the relay asks of and does to the source database over plain SQL: preconditions, the publication, the
//! state of the slot. Reading rows is not among it: they come from the stream, and before that from [`crate::postgres::backfill`].

use std::collections::BTreeMap;
use std::time::Duration;

use pg_replication::EndLsn;
use serde_json::Value;
use sqlx::postgres::PgConnection;
use sqlx::{AssertSqlSafe, Row};

use crate::config::{CreationPolicy, Source, quote};
use crate::error::{ErrorKind, RelayError};
use crate::postgres::checkpoint::ClusterTimeline;
use crate::postgres::table::GENERATED_SINCE;

/// Oldest server: 15 sends no empty transactions and publishes partitioned tables by their root reliably.
const OLDEST_SERVER: i32 = 150_000;

/// Demands that an SQL connection leads to the server that the stream comes from: a name may have the addresses of
/// several, and a checkpoint written on one says nothing about the other.
pub async fn check_same_server(sql: &mut PgConnection, history: ClusterTimeline) -> Result<(), RelayError> {
    let (system, file): (String, String) = sqlx::query_as(
        "SELECT system_identifier::text, pg_walfile_name(pg_current_wal_lsn()) FROM pg_control_system()",
    )
    .fetch_one(sql)
    .await?;
    // A file of the log is named by its timeline first, in eight hexadecimal digits.
    let timeline = file.get(..8).and_then(|digits| u32::from_str_radix(digits, 16).ok());
    if system == history.system_identifier.to_string() && timeline == Some(history.timeline) {
        return Ok(());
    }
    let what = format!(
        "the replication connection leads to system {} on timeline {}, the SQL connection to {system} with log file {file}",
        history.system_identifier, history.timeline
    );
    Err(RelayError::new(ErrorKind::DifferentServers, what))
}

/// Checks what has to be there before anything is created: server version, `wal_level`, the tables.
pub async fn check_preconditions(sql: &mut PgConnection, source: &Source) -> Result<(), RelayError> {
    let row = sqlx::query(
        "SELECT current_setting('server_version_num')::int AS version, current_setting('wal_level') AS wal_level,
                to_regclass($1) IS NOT NULL AS has_table, to_regclass($2) IS NOT NULL AS has_checkpoint",
    )
    .bind(source.table.quoted())
    .bind(source.table.sibling("outbox_checkpoint"))
    .fetch_one(&mut *sql)
    .await?;
    let version: i32 = row.try_get("version")?;
    if version < OLDEST_SERVER {
        return Err(RelayError::new(
            ErrorKind::ServerTooOld,
            format!("the server has version {}", version / 10_000),
        ));
    }
    let wal_level: String = row.try_get("wal_level")?;
    if wal_level != "logical" {
        return Err(RelayError::new(ErrorKind::WalLevelTooLow, format!("wal_level is '{wal_level}'")));
    }
    if !row.try_get::<bool, _>("has_table")? {
        let what = format!("table {} does not exist in database {}", source.table, source.database);
        return Err(RelayError::new(ErrorKind::TableMissing, what));
    }
    if !row.try_get::<bool, _>("has_checkpoint")? {
        let what = format!("table {}.outbox_checkpoint does not exist", source.table.schema);
        return Err(RelayError::new(ErrorKind::CheckpointTableMissing, what));
    }
    Ok(())
}

/// A publication that does no harm.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PublicationState {
    /// It publishes the inserts of the outbox table through its root.
    Suitable,
    /// It does not exist, and may be created.
    Missing,
}

/// Makes sure the publication exists and publishes the inserts of the outbox table through its root. It has to be
/// committed before the slot is created, and it has to be looked at before every start: from Postgres 18 on a
/// missing publication is only a warning in the stream, and its rows are skipped in silence.
pub async fn ensure_publication(sql: &mut PgConnection, source: &Source) -> Result<(), RelayError> {
    if publication_state(sql, source).await? == PublicationState::Suitable {
        return Ok(());
    }
    let name = &source.publication.name;
    let version: i32 =
        sqlx::query_scalar("SELECT current_setting('server_version_num')::int").fetch_one(&mut *sql).await?;
    let generated = match version {
        GENERATED_SINCE.. => ", publish_generated_columns = stored",
        _ => "",
    };
    let create = format!(
        "CREATE PUBLICATION {} FOR TABLE {}
         WITH (publish = 'insert', publish_via_partition_root = true{generated})",
        quote(name),
        source.table.quoted()
    );
    sqlx::query(AssertSqlSafe(create)).execute(&mut *sql).await?;
    tracing::info!(publication = %name, table = %source.table, "created the publication");
    Ok(())
}

/// Looks whether the publication is one the relay can start with.
pub async fn publication_state(
    sql: &mut PgConnection,
    source: &Source,
) -> Result<PublicationState, RelayError> {
    let name = &source.publication.name;
    let Some(publication) = find_publication(sql, source).await? else {
        if source.publication.creation_policy == CreationPolicy::Never {
            return Err(RelayError::new(
                ErrorKind::PublicationMissing,
                format!("publication {name} does not exist"),
            ));
        }
        return Ok(PublicationState::Missing);
    };
    let unsuitable = |problem: &str| {
        Err(RelayError::new(ErrorKind::PublicationUnsuitable, format!("publication {name} {problem}")))
    };
    if !publication.inserts {
        return unsuitable("does not publish inserts");
    }
    if !publication.has_table {
        return unsuitable(&format!("does not publish table {}", source.table));
    }
    if publication.partitioned && !publication.via_root {
        return unsuitable("publishes partitions instead of their root");
    }
    if publication.filtered {
        return unsuitable("has a row filter or column list on the table: rows or columns would be missing");
    }
    Ok(PublicationState::Suitable)
}

struct FoundPublication {
    inserts: bool,
    via_root: bool,
    has_table: bool,
    partitioned: bool,
    filtered: bool,
}

async fn find_publication(
    sql: &mut PgConnection,
    source: &Source,
) -> Result<Option<FoundPublication>, RelayError> {
    let row = sqlx::query(
        "SELECT p.pubinsert, p.pubviaroot, c.relkind = 'p' AS partitioned,
                t.tablename IS NOT NULL AS has_table,
                coalesce(t.rowfilter IS NOT NULL
                         OR EXISTS (SELECT FROM pg_publication_rel r WHERE r.prpubid = p.oid AND r.prrelid = c.oid
                                    AND r.prattrs IS NOT NULL), false) AS filtered
         FROM pg_publication p
         CROSS JOIN pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
         LEFT JOIN pg_publication_tables t
                ON t.pubname = p.pubname AND t.schemaname = n.nspname AND t.tablename = c.relname
         WHERE p.pubname = $1 AND n.nspname = $2 AND c.relname = $3",
    )
    .bind(&source.publication.name)
    .bind(&source.table.schema)
    .bind(&source.table.table)
    .fetch_optional(&mut *sql)
    .await?;
    let Some(row) = row else { return Ok(None) };
    let partitioned: bool = row.try_get("partitioned")?;
    let via_root: bool = row.try_get("pubviaroot")?;
    Ok(Some(FoundPublication {
        inserts: row.try_get("pubinsert")?,
        via_root,
        // Without publish_via_partition_root the view lists the partitions, not the root.
        has_table: row.try_get::<bool, _>("has_table")? || (partitioned && !via_root),
        partitioned,
        filtered: row.try_get("filtered")?,
    }))
}

/// The slot as `pg_replication_slots` shows it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SlotState {
    /// Output plugin; `None` for a physical slot.
    pub plugin: Option<String>,
    /// Database it belongs to.
    pub database: Option<String>,
    /// Whether it ends with the connection that made it.
    pub temporary: bool,
    /// Whether it sends transactions when they are prepared, before it is known whether they commit.
    pub two_phase: bool,
    /// Whether a connection holds it, and which process.
    pub active_pid: Option<i64>,
    /// `reserved`, `extended`, `unreserved` or `lost`.
    pub wal_status: Option<String>,
    /// Why it was invalidated (Postgres 17 and newer).
    pub invalidation_reason: Option<String>,
    /// What the server knows to be confirmed.
    pub confirmed: Option<EndLsn>,
    /// The oldest WAL it keeps.
    pub restart: Option<EndLsn>,
    /// Bytes that may still be written before it is in danger; `None` without a limit.
    pub safe_wal_bytes: Option<i64>,
    /// The server's current LSN at the time of the look.
    pub current: Option<EndLsn>,
    /// For how long nobody has held it, by the server's account (Postgres 17 and newer).
    pub inactive_for: Option<Duration>,
    /// The standbys' slots that its holder waits for at the moment: the value of `synchronized_standby_slots`
    /// (Postgres 17 and newer).
    pub waits_for_standbys: Option<String>,
}

impl SlotState {
    /// Whether the server has given the slot's WAL up.
    pub fn is_lost(&self) -> bool {
        self.wal_status.as_deref() == Some("lost") || self.invalidation_reason.is_some()
    }

    /// How many bytes of log lie between `lsn` and the server's current end, where both are known.
    pub fn behind(&self, lsn: Option<EndLsn>) -> Option<u64> {
        Some(self.current?.lsn().as_u64().saturating_sub(lsn?.lsn().as_u64()))
    }

    /// Why it was given up, as a sentence.
    pub fn loss_reason(&self) -> String {
        let cause = self.invalidation_reason.as_deref().unwrap_or("its WAL was removed");
        format!("the slot is invalidated: {cause}")
    }
}

/// Looks at the slot. `to_jsonb`, because the view has different columns in each version.
pub async fn slot_state(sql: &mut PgConnection, slot: &str) -> Result<Option<SlotState>, sqlx::Error> {
    let row = sqlx::query(
        "SELECT to_jsonb(s) AS slot, pg_current_wal_lsn()::text AS current,
                extract(epoch FROM clock_timestamp() - (to_jsonb(s) ->> 'inactive_since')::timestamptz)::float8
                    AS inactive_for,
                (SELECT current_setting('synchronized_standby_slots', true) FROM pg_stat_activity a
                 WHERE a.pid = s.active_pid AND a.wait_event = 'WaitForStandbyConfirmation') AS standbys
         FROM pg_replication_slots s WHERE slot_name = $1",
    )
    .bind(slot)
    .fetch_optional(&mut *sql)
    .await?;
    let Some(row) = row else { return Ok(None) };
    let slot: BTreeMap<String, Value> = row.try_get::<sqlx::types::Json<_>, _>("slot")?.0;
    let text = |name: &str| slot.get(name).and_then(Value::as_str).map(str::to_owned);
    let number = |name: &str| slot.get(name).and_then(Value::as_i64);
    let flag = |name: &str| slot.get(name).and_then(Value::as_bool).unwrap_or_default();
    let lsn = |text: Option<String>| text.and_then(|text| text.parse().ok()).map(EndLsn::new);
    Ok(Some(SlotState {
        plugin: text("plugin"),
        database: text("database"),
        temporary: flag("temporary"),
        two_phase: flag("two_phase"),
        active_pid: number("active_pid"),
        wal_status: text("wal_status"),
        invalidation_reason: text("invalidation_reason"),
        confirmed: lsn(text("confirmed_flush_lsn")),
        restart: lsn(text("restart_lsn")),
        safe_wal_bytes: number("safe_wal_size"),
        current: lsn(row.try_get("current").ok()),
        inactive_for: row
            .try_get::<Option<f64>, _>("inactive_for")?
            .and_then(|seconds| Duration::try_from_secs_f64(seconds.max(0.0)).ok()),
        waits_for_standbys: row.try_get("standbys")?,
    }))
}

/// When the server was started, in milliseconds since 1970.
pub async fn server_start_time(sql: &mut PgConnection) -> Result<i64, RelayError> {
    let milliseconds = "SELECT (extract(epoch FROM pg_postmaster_start_time()) * 1000)::bigint";
    Ok(sqlx::query_scalar(milliseconds).fetch_one(&mut *sql).await?)
}

/// The server's flush LSN: nothing committed at or beyond it has left the server.
pub async fn flush_lsn(sql: &mut PgConnection) -> Result<EndLsn, RelayError> {
    let text: String =
        sqlx::query_scalar("SELECT pg_current_wal_flush_lsn()::text").fetch_one(&mut *sql).await?;
    lsn(&text)
}

/// An LSN as the server writes it.
pub(super) fn lsn(text: &str) -> Result<EndLsn, RelayError> {
    let lsn = text.parse().map(EndLsn::new);
    lsn.map_err(|_| RelayError::new(ErrorKind::DatabaseError, format!("'{text}' is not an LSN")))
}
