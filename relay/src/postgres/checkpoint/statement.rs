//! The statement that advances a checkpoint, with its guard.

use std::time::{Duration, Instant};

use sqlx::AssertSqlSafe;
use sqlx::postgres::PgConnection;
use sqlx::types::{Json, Text};

use super::{CheckpointUpdate, ClusterTimeline, TABLE};
use crate::config::Config;
use crate::error::{ErrorKind, RefillCause, RelayError};
use crate::postgres::delivered_snapshots::DurableSnapshot;
use crate::postgres::missing_rows::Xid8;
use crate::postgres::{publication, table};

/// How often a checkpoint also checks the table: the catalog query is too expensive for ten checkpoints a second.
const LOOK_AT_TABLE_EVERY: Duration = Duration::from_secs(5);

/// The UPDATE that advances the checkpoint.
pub(super) struct Statement {
    sql: String,
    looked_at_table: Option<Instant>,
    config: Config,
    history: ClusterTimeline,
}

impl Statement {
    /// The WHERE clause is the guard. The row must belong to this timeline, in the cluster the stream comes from, must
    /// not move back, and must not have been written by another process since this session last did. The publication
    /// must be unchanged, and the table must have no rows that the stream does not carry. During the initial snapshot
    /// there is no confirmed LSN, and during a refill that of the lost slot; a session that does not know of the refill
    /// does not end it. With `refill` the table has the columns of migration 0007.
    pub(super) fn new(config: &Config, history: ClusterTimeline, refill: Option<RefillCause>) -> Statement {
        let end_refill = match refill {
            Some(_) => "refill_cause = CASE WHEN $8 IS NOT NULL THEN refill_cause END,",
            None => "",
        };
        let checkpoint = config.source.table.sibling(TABLE);
        let sql = format!(
            "UPDATE {checkpoint} AS c SET confirmed_lsn = CASE WHEN $8::bigint IS NULL THEN $4::pg_lsn ELSE confirmed_lsn END, start_cursor = $8,
                    {end_refill}
                    start_phase = CASE WHEN $8 IS NOT NULL THEN start_phase END,
                    start_lsn = CASE WHEN $8 IS NOT NULL THEN start_lsn END,
                    start_snapshot = CASE WHEN $8 IS NOT NULL THEN start_snapshot END,
                    mapping = $5::jsonb, mapping_version = $7, kafka_offsets = $6::jsonb,
                    delivered_snapshot = coalesce($9::pg_snapshot, delivered_snapshot),
                    snapshot_offsets = coalesce($10::jsonb, snapshot_offsets),
                    publication_fingerprint = live, updated_at = clock_timestamp()
             FROM (SELECT {} AS live) AS publication
             WHERE relay = $1 AND system_identifier = $2 AND timeline = $3
               AND $2 = (SELECT system_identifier FROM pg_control_system())
               AND (confirmed_lsn IS NULL OR confirmed_lsn <= $4::pg_lsn)
               AND (confirmed_lsn IS NULL OR start_phase IS NULL OR start_lsn <= $4::pg_lsn)
               AND ($8 IS NULL OR (start_phase = 'copying' AND start_cursor <= $8))
               AND coalesce(publication_fingerprint, live) = live
               AND NOT ($14 AND EXISTS ({}))
               AND ($13::text IS NULL OR c.xmin::text = $13)
             RETURNING pg_current_xact_id()::text",
            publication::fingerprint("$11", "$12"),
            table::hidden("$11", "$12", &config.routing.by_field)
        );
        Statement { sql, looked_at_table: None, config: config.clone(), history }
    }

    /// `previous` is the transaction in which this session last wrote the row. A process that was paused and has lost
    /// the slot may still have a checkpoint to write: it must not overwrite its successor's. Returns the id of the
    /// transaction that wrote the row.
    pub(super) async fn execute(
        &mut self,
        sql: &mut PgConnection,
        progress: &CheckpointUpdate,
        delivered: Option<&DurableSnapshot>,
        previous: Option<Xid8>,
    ) -> Result<Xid8, RelayError> {
        let looks_at_table = self.looked_at_table.is_none_or(|at| at.elapsed() >= LOOK_AT_TABLE_EVERY);
        if looks_at_table {
            self.looked_at_table = Some(Instant::now());
        }
        let written: Option<Text<u64>> = sqlx::query_scalar(AssertSqlSafe(self.sql.as_str()))
            .bind(&self.config.name)
            .bind(self.history.system_identifier.cast_signed())
            .bind(self.history.timeline.cast_signed())
            .bind(progress.confirmed.to_string())
            .bind(Json(&progress.mappings))
            .bind(Json(&progress.offsets))
            .bind(progress.mappings.version)
            .bind(progress.snapshot_cursor.map(|seq| seq.0))
            .bind(delivered.map(|delivered| &delivered.snapshot))
            .bind(delivered.and_then(|delivered| delivered.offsets.as_ref()).map(Json))
            .bind(&self.config.source.publication.name)
            .bind(self.config.source.table.quoted())
            .bind(previous.map(row_version))
            .bind(looks_at_table)
            .fetch_optional(&mut *sql)
            .await?;
        if let Some(Text(written)) = written {
            return Ok(Xid8(written));
        }
        table::check(sql, &self.config).await?;
        publication::verify_fingerprint(sql, &self.config).await?;
        Err(self.refused(sql).await?)
    }

    /// Why the row was not written. If it exists and belongs to this timeline, the relay continues from its present
    /// content.
    async fn refused(&self, sql: &mut PgConnection) -> Result<RelayError, RelayError> {
        let table = self.config.source.table.sibling(TABLE);
        let select = format!(
            "SELECT EXISTS (SELECT FROM {table} WHERE relay = $1 AND system_identifier = $2 AND timeline = $3)"
        );
        let there: bool = sqlx::query_scalar(AssertSqlSafe(select))
            .bind(&self.config.name)
            .bind(self.history.system_identifier.cast_signed())
            .bind(self.history.timeline.cast_signed())
            .fetch_one(&mut *sql)
            .await?;
        let name = &self.config.name;
        Ok(if there {
            let what = format!("another process has written the checkpoint row of relay '{name}'");
            RelayError::new(ErrorKind::SlotActive, what)
        } else {
            let what = format!(
                "the checkpoint row of relay '{name}' is gone, or belongs to another cluster or timeline"
            );
            RelayError::new(ErrorKind::CheckpointLost, what)
        })
    }
}

/// The `xmin` of a row written by the transaction with this id: the id without its epoch.
fn row_version(xid: Xid8) -> String {
    (xid.0 & u64::from(u32::MAX)).to_string()
}
