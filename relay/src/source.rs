//! What the relay asks of and does to the source database over plain SQL: preconditions, the publication, the
//! state of the slot. Reading rows is not among it: they come from the stream alone.

use std::collections::BTreeMap;
use std::time::Duration;

use pg_replication::EndLsn;
use serde_json::Value;
use sqlx::postgres::{PgConnectOptions, PgConnection, PgSslMode};
use sqlx::{AssertSqlSafe, ConnectOptions, Row};

use crate::config::{CreationPolicy, Source, quote};
use crate::trouble::{Reason, Trouble};

/// Oldest server: 15 sends no empty transactions and publishes partitioned tables by their root reliably.
const OLDEST_SERVER: i32 = 150_000;

/// A host that swallows packets must not hold up the reason being shown.
pub const CONNECT_WITHIN: Duration = Duration::from_secs(5);

/// What to connect with; `purpose` is shown in `pg_stat_activity`.
pub fn connect_options(source: &Source, purpose: &str) -> PgConnectOptions {
    let mut options = PgConnectOptions::new_without_pgpass()
        .port(source.port)
        .database(&source.database)
        .username(&source.user)
        .ssl_mode(PgSslMode::Disable)
        .application_name(&format!("outbox-relay {purpose}"));
    options =
        if source.host.starts_with('/') { options.socket(&source.host) } else { options.host(&source.host) };
    if let Some(password) = &source.password {
        options = options.password(password.reveal());
    }
    options
}

/// Opens an SQL connection.
pub async fn connect(source: &Source, purpose: &str) -> Result<PgConnection, Trouble> {
    let options = connect_options(source, purpose);
    let connected = tokio::time::timeout(CONNECT_WITHIN, options.connect()).await;
    let late = |_| Trouble::new(Reason::DatabaseUnreachable, format!("no answer within {CONNECT_WITHIN:?}"));
    connected.map_err(late).and_then(|connected| connected.map_err(Trouble::from)).map_err(|trouble| {
        let place = format!("{}:{}/{}", source.host, source.port, source.database);
        Trouble::new(trouble.reason, format!("cannot connect to Postgres at {place}: {}", trouble.what))
    })
}

/// Checks what has to be there before anything is created: server version, `wal_level`, the tables.
pub async fn check_preconditions(sql: &mut PgConnection, source: &Source) -> Result<(), Trouble> {
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
        return Err(Trouble::new(
            Reason::ServerTooOld,
            format!("the server has version {}", version / 10_000),
        ));
    }
    let wal_level: String = row.try_get("wal_level")?;
    if wal_level != "logical" {
        return Err(Trouble::new(Reason::WalLevelTooLow, format!("wal_level is '{wal_level}'")));
    }
    if !row.try_get::<bool, _>("has_table")? {
        let what = format!("table {} does not exist in database {}", source.table, source.database);
        return Err(Trouble::new(Reason::TableMissing, what));
    }
    if !row.try_get::<bool, _>("has_checkpoint")? {
        let what = format!("table {}.outbox_checkpoint does not exist", source.table.schema);
        return Err(Trouble::new(Reason::CheckpointTableMissing, what));
    }
    Ok(())
}

/// Makes sure the publication exists and publishes the inserts of the outbox table through its root. It has to be
/// committed before the slot is created, and it has to be looked at before every start: from Postgres 18 on a
/// missing publication is only a warning in the stream, and its rows are skipped in silence.
pub async fn ensure_publication(sql: &mut PgConnection, source: &Source) -> Result<(), Trouble> {
    let name = &source.publication.name;
    let Some(publication) = find_publication(sql, source).await? else {
        if source.publication.creation_policy == CreationPolicy::Never {
            return Err(Trouble::new(
                Reason::PublicationMissing,
                format!("publication {name} does not exist"),
            ));
        }
        let create = format!(
            "CREATE PUBLICATION {} FOR TABLE {} WITH (publish = 'insert', publish_via_partition_root = true)",
            quote(name),
            source.table.quoted()
        );
        sqlx::query(AssertSqlSafe(create)).execute(&mut *sql).await?;
        tracing::info!(publication = %name, table = %source.table, "created the publication");
        return Ok(());
    };
    let unsuitable = |problem: &str| {
        Err(Trouble::new(Reason::PublicationUnsuitable, format!("publication {name} {problem}")))
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
    Ok(())
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
) -> Result<Option<FoundPublication>, Trouble> {
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
}

impl SlotState {
    /// Whether the server has given the slot's WAL up.
    pub fn is_lost(&self) -> bool {
        self.wal_status.as_deref() == Some("lost") || self.invalidation_reason.is_some()
    }
}

/// Looks at the slot. `to_jsonb`, because the view has different columns in each version.
pub async fn slot_state(sql: &mut PgConnection, slot: &str) -> Result<Option<SlotState>, sqlx::Error> {
    let row = sqlx::query(
        "SELECT to_jsonb(s) AS slot, pg_current_wal_lsn()::text AS current
         FROM pg_replication_slots s WHERE slot_name = $1",
    )
    .bind(slot)
    .fetch_optional(&mut *sql)
    .await?;
    let Some(row) = row else { return Ok(None) };
    let slot: BTreeMap<String, Value> = row.try_get::<sqlx::types::Json<_>, _>("slot")?.0;
    let text = |name: &str| slot.get(name).and_then(Value::as_str).map(str::to_owned);
    let number = |name: &str| slot.get(name).and_then(Value::as_i64);
    let lsn = |text: Option<String>| text.and_then(|text| text.parse().ok()).map(EndLsn::new);
    Ok(Some(SlotState {
        plugin: text("plugin"),
        database: text("database"),
        active_pid: number("active_pid"),
        wal_status: text("wal_status"),
        invalidation_reason: text("invalidation_reason"),
        confirmed: lsn(text("confirmed_flush_lsn")),
        restart: lsn(text("restart_lsn")),
        safe_wal_bytes: number("safe_wal_size"),
        current: lsn(row.try_get("current").ok()),
    }))
}

/// The server's flush LSN: nothing committed at or beyond it has left the server.
pub async fn flush_lsn(sql: &mut PgConnection) -> Result<EndLsn, Trouble> {
    let text: String =
        sqlx::query_scalar("SELECT pg_current_wal_flush_lsn()::text").fetch_one(&mut *sql).await?;
    let lsn =
        text.parse().map_err(|_| Trouble::new(Reason::DatabaseError, format!("'{text}' is not an LSN")))?;
    Ok(EndLsn::new(lsn))
}
