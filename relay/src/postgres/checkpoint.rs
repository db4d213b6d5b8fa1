//! The checkpoint: the relay's row in the source database that says what is known to be in Kafka.
//!
//! It is stored only there, so that a restored database has the checkpoint that fits its rows. Confirmations to
//! PostgreSQL never run ahead of it: otherwise a crash between the two would look like a slot that another client has
//! advanced, which is a gap.

mod statement;
mod writer;

use pg_replication::EndLsn;
use sqlx::postgres::{PgConnection, PgRow};
use sqlx::types::{Json, Text};
use sqlx::{AssertSqlSafe, Row};

use self::statement::Statement;
pub use self::writer::Writer;
use crate::config::Config;
use crate::error::{ErrorKind, RefillCause, RelayError};
use crate::postgres::missing_rows::{TransactionSnapshot, Xid8};
use crate::progress::snapshot_cursor::Seq;
use crate::routing::mapping::{Revision, RoutingHistory};
use crate::topics::partitions::{PartitionNumber, ScanStarts};

/// Name of the table, in the schema of the outbox table.
pub const TABLE: &str = "outbox_checkpoint";

/// The cluster and timeline that LSNs belong to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClusterTimeline {
    pub system_identifier: u64,
    pub timeline: u32,
}

/// A relay's row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Checkpoint {
    /// The slot that the row belongs to.
    pub slot: String,
    /// The cluster and timeline of the LSNs in `progress`.
    pub history: ClusterTimeline,
    /// The relay's progress.
    pub progress: CheckpointPhase,
    /// The routing; `None` before the first start.
    pub mappings: Option<RoutingHistory>,
    /// What is remembered of each partition.
    pub offsets: ScanStarts,
    /// The rows that it shows are in Kafka.
    pub delivered: TransactionSnapshot,
    /// No row that `delivered` does not show lies before these offsets.
    pub delivered_offsets: ScanStarts,
    /// How often the slot was replaced within the last hour; `None` for a table without migration 0007.
    pub replacements: Option<i32>,
}

impl Checkpoint {
    /// Where a scan for the evidence of a refill has to begin. A partition that the relay may have written to and that has
    /// no stored offset is scanned from its beginning.
    pub fn evidence_starts(&self) -> ScanStarts {
        let mut starts = self.delivered_offsets.clone();
        let mut add = |topic: &str, partition| {
            starts.entry(topic.to_owned()).or_default().entry(partition).or_default();
        };
        let routed = self.mappings.iter().flat_map(RoutingHistory::topics);
        routed.for_each(|(topic, partitions)| {
            (0..partitions).map(PartitionNumber).for_each(|number| add(topic, number))
        });
        for (topic, partitions) in &self.offsets {
            partitions.keys().for_each(|number| add(topic, *number));
        }
        starts
    }
}

/// A relay's progress.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CheckpointPhase {
    /// Registered: there is a row and nothing else.
    Registered,
    /// It is about to create the slot and store its snapshot; whether it did is not known.
    Creating,
    /// It delivers the initial snapshot, the rows from before the slot.
    Snapshotting {
        /// The slot's consistent point: where the stream begins after the initial snapshot.
        from: EndLsn,
        /// The rows that are still to be delivered.
        rest: RemainingSnapshot,
    },
    Delivered {
        /// Every commit before this LSN is in Kafka.
        confirmed: EndLsn,
    },
    /// Its slot was lost, and it replaces the slot and delivers the missing rows.
    Refilling {
        /// Why.
        cause: RefillCause,
        /// Every commit before this LSN is in Kafka.
        confirmed: EndLsn,
        /// The new slot's consistent point and the missing rows; `None` until the slot is created.
        slot: Option<(EndLsn, RemainingSnapshot)>,
    },
}

/// The rows from before the slot that are still to be delivered: the initial snapshot, or in a refill the missing rows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RemainingSnapshot {
    /// The rows that the stream will not carry: those visible in this snapshot, in the text format of `pg_snapshot`.
    pub snapshot: String,
    /// Every row of the snapshot up to this `seq` is in Kafka.
    pub cursor: Seq,
    /// Set in a refill.
    pub refill: Option<RefillScope>,
}

/// Which rows a refill looks at, and where Kafka may have them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RefillScope {
    /// Why the rows are missing.
    pub cause: RefillCause,
    /// The rows that it shows are in Kafka.
    pub delivered: TransactionSnapshot,
    /// None of the other rows lies before these offsets.
    pub starts: ScanStarts,
}

/// The cursor before any row was delivered: no row has a negative `seq`.
pub const SNAPSHOT_NOT_STARTED: Seq = Seq(-1);

/// The next checkpoint to write.
#[derive(Clone, Debug)]
pub struct CheckpointUpdate {
    /// Every commit before this LSN is in Kafka; during the initial snapshot, the start of the stream.
    pub confirmed: EndLsn,
    /// During the initial snapshot: rows up to this `seq` are in Kafka.
    pub snapshot_cursor: Option<Seq>,
    /// The routing.
    pub mappings: RoutingHistory,
    /// The revision of the routing table that `mappings` belongs to.
    pub revision: Revision,
    /// What is remembered of each partition.
    pub offsets: ScanStarts,
}

impl CheckpointUpdate {
    /// The same, once transaction `xid` has committed it.
    pub fn committed(&self, xid: Xid8) -> CommittedCheckpoint {
        CommittedCheckpoint {
            confirmed: self.confirmed,
            snapshot_cursor: self.snapshot_cursor,
            revision: self.revision,
            xid,
        }
    }
}

#[derive(Clone, Copy, Debug)]
pub struct CommittedCheckpoint {
    /// Its LSN, which may be confirmed to PostgreSQL.
    pub confirmed: EndLsn,
    /// Its cursor, during the initial snapshot.
    pub snapshot_cursor: Option<Seq>,
    /// Its revision of the routing table: no record is sent under a routing before the checkpoint contains it.
    pub revision: Revision,
    /// The transaction that wrote it.
    pub xid: Xid8,
}

/// Reads this relay's row.
pub async fn load(sql: &mut PgConnection, config: &Config) -> Result<Option<Checkpoint>, RelayError> {
    let table = config.source.table.sibling(TABLE);
    let select = format!(
        "SELECT slot::text, system_identifier, timeline, confirmed_lsn::text AS confirmed,
                start_phase, start_lsn::text AS start, start_snapshot::text AS snapshot, start_cursor,
                nullif(mapping, '{{}}') AS mapping, mapping_version, kafka_offsets,
                delivered_snapshot::text AS delivered, snapshot_offsets, columns ->> 'refill_cause' AS refill_cause,
                CASE WHEN columns ? 'slot_replaced_at' THEN
                    (SELECT count(*)::int FROM jsonb_array_elements_text(columns -> 'slot_replaced_at') AS replaced
                     WHERE replaced::timestamptz > clock_timestamp() - interval '1 hour') END AS replacements
         FROM {table} AS c, to_jsonb(c) AS columns WHERE relay = $1"
    );
    let row = sqlx::query(AssertSqlSafe(select)).bind(&config.name).fetch_optional(&mut *sql).await?;
    let Some(row) = row else { return Ok(None) };
    let version = row.try_get("mapping_version")?;
    let mappings: Option<Json<RoutingHistory>> = row.try_get("mapping")?;
    let delivered = delivered_of(&row)?;
    let delivered_offsets = row.try_get::<Json<_>, _>("snapshot_offsets")?.0;
    Ok(Some(Checkpoint {
        slot: row.try_get("slot")?,
        history: ClusterTimeline {
            system_identifier: row.try_get::<i64, _>("system_identifier")?.cast_unsigned(),
            timeline: row.try_get::<i32, _>("timeline")?.cast_unsigned(),
        },
        progress: phase_of(&row, &delivered, &delivered_offsets)?,
        delivered,
        delivered_offsets,
        replacements: row.try_get("replacements")?,
        mappings: mappings.map(|Json(mappings)| RoutingHistory { version, ..mappings }),
        offsets: row.try_get::<Json<_>, _>("kafka_offsets")?.0,
    }))
}

fn phase_of(
    row: &PgRow,
    delivered: &TransactionSnapshot,
    delivered_offsets: &ScanStarts,
) -> Result<CheckpointPhase, RelayError> {
    let lsn = |column: &str| -> Result<Option<EndLsn>, sqlx::Error> {
        let lsn: Option<Text<EndLsn>> = row.try_get(column)?;
        Ok(lsn.map(|Text(lsn)| lsn))
    };
    let (confirmed, phase) = (lsn("confirmed")?, row.try_get::<Option<String>, _>("start_phase")?);
    let stored = lsn("start")?.zip(row.try_get::<Option<String>, _>("snapshot")?);
    let cursor = row.try_get::<Option<i64>, _>("start_cursor")?.map_or(SNAPSHOT_NOT_STARTED, Seq);
    let copying = |refill| match stored {
        Some((from, snapshot)) => Ok((from, RemainingSnapshot { snapshot, cursor, refill })),
        None => {
            let what =
                "the checkpoint row says that an initial snapshot is in progress, but not of which rows";
            Err(RelayError::new(ErrorKind::CheckpointLost, what))
        }
    };
    let refill_cause: Option<String> = row.try_get("refill_cause")?;
    Ok(match (confirmed, phase.as_deref()) {
        (Some(confirmed), None) => CheckpointPhase::Delivered { confirmed },
        (Some(confirmed), Some(phase)) => {
            let cause =
                refill_cause.and_then(|name| RefillCause::from_name(&name)).unwrap_or(RefillCause::SlotLost);
            let slot = match phase {
                "copying" => {
                    let (delivered, starts) = (delivered.clone(), delivered_offsets.clone());
                    Some(copying(Some(RefillScope { cause, delivered, starts }))?)
                }
                _ => None,
            };
            CheckpointPhase::Refilling { cause, confirmed, slot }
        }
        (None, None) => CheckpointPhase::Registered,
        // The LSN was removed by hand, to start again instead of the refill.
        (None, Some(_)) if refill_cause.is_some() => CheckpointPhase::Registered,
        (None, Some("copying")) => {
            let (from, rest) = copying(None)?;
            CheckpointPhase::Snapshotting { from, rest }
        }
        // Created, or about to be: nothing was stored about the slot, so it cannot be used.
        (None, Some(_)) => CheckpointPhase::Creating,
    })
}

fn delivered_of(row: &PgRow) -> Result<TransactionSnapshot, RelayError> {
    let text: String = row.try_get("delivered")?;
    text.parse()
        .map_err(|error| RelayError::new(ErrorKind::CheckpointLost, format!("outbox_checkpoint: {error}")))
}

/// Inserts the row of a new relay before its slot is created. Its delivered snapshot is empty, so from then on no
/// partition is dropped with rows that this relay has not confirmed.
pub async fn register(
    sql: &mut PgConnection,
    config: &Config,
    history: ClusterTimeline,
) -> Result<(), RelayError> {
    insert(
        sql,
        config,
        history,
        "(relay, slot, system_identifier, timeline) VALUES ($1, $2::name, $3, $4)
         ON CONFLICT (relay) DO UPDATE SET timeline = excluded.timeline
         WHERE c.confirmed_lsn IS NULL AND c.start_snapshot IS NULL",
    )
    .await
    .map(drop)
}

/// Inserts the relay's row with the statement `insert`, which names the table `c` and takes relay, slot, system
/// identifier and timeline as parameters. Returns the number of rows written.
async fn insert(
    sql: &mut PgConnection,
    config: &Config,
    history: ClusterTimeline,
    insert: &str,
) -> Result<u64, RelayError> {
    let insert = format!("INSERT INTO {} AS c {insert}", config.source.table.sibling(TABLE));
    let written = sqlx::query(AssertSqlSafe(insert))
        .bind(&config.name)
        .bind(&config.source.slot.name)
        .bind(history.system_identifier.cast_signed())
        .bind(history.timeline.cast_signed())
        .execute(&mut *sql)
        .await?;
    Ok(written.rows_affected())
}

/// Registers the relay, and stores that it is about to create the slot for an initial snapshot. Until
/// [`begin_snapshot`] the relay may drop a slot of the configured name as its own.
pub async fn begin_slot_creation(
    sql: &mut PgConnection,
    config: &Config,
    history: ClusterTimeline,
) -> Result<(), RelayError> {
    let written = insert(
        sql,
        config,
        history,
        "(relay, slot, system_identifier, timeline, start_phase)
         VALUES ($1, $2::name, $3, $4, 'creating')
         ON CONFLICT (relay) DO UPDATE
         SET start_phase = 'creating', timeline = excluded.timeline, updated_at = clock_timestamp()
         WHERE c.confirmed_lsn IS NULL AND c.start_snapshot IS NULL AND c.system_identifier = $3",
    )
    .await?;
    check_one_row(written, config)
}

/// The slot that was to be created does not exist: if another client creates one of that name, the relay must not drop
/// it.
pub async fn abort_slot_creation(sql: &mut PgConnection, config: &Config) -> Result<(), RelayError> {
    let table = config.source.table.sibling(TABLE);
    let update =
        format!("UPDATE {table} SET start_phase = NULL WHERE relay = $1 AND start_phase = 'creating'");
    sqlx::query(AssertSqlSafe(update)).bind(&config.name).execute(&mut *sql).await?;
    Ok(())
}

/// Stores what is needed to continue the initial snapshot after a crash: from now on the slot and these rows belong
/// together.
pub async fn begin_snapshot(
    sql: &mut PgConnection,
    config: &Config,
    from: EndLsn,
    snapshot: &str,
) -> Result<(), RelayError> {
    let table = config.source.table.sibling(TABLE);
    let update = format!(
        "UPDATE {table} SET start_phase = 'copying', start_lsn = $2::pg_lsn, start_snapshot = $3::pg_snapshot,
                start_cursor = $4, updated_at = clock_timestamp()
         WHERE relay = $1 AND start_phase = 'creating'"
    );
    let written = sqlx::query(AssertSqlSafe(update))
        .bind(&config.name)
        .bind(from.to_string())
        .bind(snapshot)
        .bind(SNAPSHOT_NOT_STARTED.0)
        .execute(&mut *sql)
        .await?;
    check_one_row(written.rows_affected(), config)
}

/// Records a gap, and that the relay is about to replace the slot. Until the refill is complete, what the checkpoint says
/// of the delivered rows does not change: the delivered snapshot, `starts`, the offsets that belong to it, and the
/// confirmed LSN. A process that was paused cannot write the row any more.
pub async fn begin_refill(
    sql: &mut PgConnection,
    config: &Config,
    history: ClusterTimeline,
    cause: RefillCause,
    starts: &ScanStarts,
) -> Result<(), RelayError> {
    let table = config.source.table.sibling(TABLE);
    let update = format!(
        "UPDATE {table} SET refill_cause = $2, start_phase = 'creating', start_lsn = NULL, start_snapshot = NULL,
                start_cursor = NULL, snapshot_offsets = $3, timeline = $4, updated_at = clock_timestamp(),
                slot_replaced_at = ARRAY(SELECT replaced FROM unnest(slot_replaced_at) AS replaced
                                         WHERE replaced > clock_timestamp() - interval '1 hour') || clock_timestamp()
         WHERE relay = $1 AND system_identifier = $5 AND confirmed_lsn IS NOT NULL"
    );
    let written = sqlx::query(AssertSqlSafe(update))
        .bind(&config.name)
        .bind(cause.name())
        .bind(Json(starts))
        .bind(history.timeline.cast_signed())
        .bind(history.system_identifier.cast_signed())
        .execute(&mut *sql)
        .await?;
    check_one_row(written.rows_affected(), config)
}

/// Moves the row to the server's present timeline, and resets an LSN that this server never reached. The session must
/// hold the slot.
pub async fn move_to_timeline(
    sql: &mut PgConnection,
    config: &Config,
    from: ClusterTimeline,
    to: ClusterTimeline,
    reached: EndLsn,
) -> Result<(), RelayError> {
    let table = config.source.table.sibling(TABLE);
    let update = format!(
        "UPDATE {table} SET timeline = $4, updated_at = clock_timestamp(),
                confirmed_lsn = CASE WHEN confirmed_lsn > $5::pg_lsn THEN $5::pg_lsn ELSE confirmed_lsn END
         WHERE relay = $1 AND system_identifier = $2 AND timeline = $3"
    );
    let written = sqlx::query(AssertSqlSafe(update))
        .bind(&config.name)
        .bind(from.system_identifier.cast_signed())
        .bind(from.timeline.cast_signed())
        .bind(to.timeline.cast_signed())
        .bind(reached.to_string())
        .execute(&mut *sql)
        .await?;
    check_one_row(written.rows_affected(), config)
}

/// Stores the owner of the relay that holds the slot. Every session calls it once it holds the slot, so the row shows the owner of
/// the last holder. The column is optional: a table without migration 0006 lacks it, and delivery does not need it.
pub async fn store_owner(sql: &mut PgConnection, config: &Config) -> Result<(), RelayError> {
    let table = config.source.table.sibling(TABLE);
    let select = format!(
        "SELECT to_jsonb(c) ? 'owner' AND to_jsonb(c) ->> 'owner' IS DISTINCT FROM $2 FROM {table} AS c WHERE relay = $1"
    );
    let differs: Option<bool> = sqlx::query_scalar(AssertSqlSafe(select))
        .bind(&config.name)
        .bind(&config.owner)
        .fetch_optional(&mut *sql)
        .await?;
    if differs == Some(true) {
        let update = format!("UPDATE {table} SET owner = $2 WHERE relay = $1");
        sqlx::query(AssertSqlSafe(update)).bind(&config.name).bind(&config.owner).execute(&mut *sql).await?;
    }
    Ok(())
}

fn check_one_row(written: u64, config: &Config) -> Result<(), RelayError> {
    if written == 1 {
        return Ok(());
    }
    let what = format!("another client has changed the checkpoint row of relay '{}'", config.name);
    Err(RelayError::new(ErrorKind::CheckpointLost, what))
}

/// Writes one checkpoint and waits for it: for a session that has just acquired the slot, while no writer runs.
pub async fn write_now(
    sql: &mut PgConnection,
    config: &Config,
    history: ClusterTimeline,
    progress: &CheckpointUpdate,
    refill: Option<RefillCause>,
) -> Result<CommittedCheckpoint, RelayError> {
    let xid = Statement::new(config, history, refill).execute(sql, progress, None, None).await?;
    Ok(progress.committed(xid))
}
