//! The one statement that moves a checkpoint on, with its guard.

use sqlx::AssertSqlSafe;
use sqlx::postgres::PgConnection;
use sqlx::types::Json;

use super::{History, Progress, TABLE};
use crate::config::Config;
use crate::postgres::delivered::Stored;
use crate::postgres::publication;
use crate::trouble::{Reason, Trouble};

/// See the module's text.
pub(super) struct Statement {
    sql: String,
    config: Config,
    history: History,
}

impl Statement {
    /// The WHERE clause is a guard: the row must still be of this history, in the cluster the stream comes from,
    /// and must not go back; and the publication must be what it was. While rows are copied there is no confirmed LSN;
    /// once there is, no copy begins again.
    pub(super) fn new(config: &Config, history: History) -> Statement {
        let table = config.source.table.sibling(TABLE);
        let sql = format!(
            "UPDATE {table} SET confirmed_lsn = CASE WHEN $8::bigint IS NULL THEN $4::pg_lsn END, start_cursor = $8,
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
               AND ($8 IS NULL OR (start_phase = 'copying' AND start_cursor <= $8))
               AND coalesce(publication_fingerprint, live) = live
             RETURNING pg_current_xact_id()::text",
            publication::fingerprint("$11", "$12")
        );
        Statement { sql, config: config.clone(), history }
    }

    /// Returns the id of the transaction that wrote the row.
    pub(super) async fn execute(
        &self,
        sql: &mut PgConnection,
        progress: &Progress,
        delivered: Option<&Stored>,
    ) -> Result<u64, Trouble> {
        let written: Option<String> = sqlx::query_scalar(AssertSqlSafe(self.sql.as_str()))
            .bind(&self.config.name)
            .bind(self.history.system_identifier.cast_signed())
            .bind(self.history.timeline.cast_signed())
            .bind(progress.confirmed.to_string())
            .bind(Json(&progress.mappings))
            .bind(Json(&progress.offsets))
            .bind(progress.mappings.version)
            .bind(progress.copied)
            .bind(delivered.map(|delivered| &delivered.snapshot))
            .bind(delivered.and_then(|delivered| delivered.offsets.as_ref()).map(Json))
            .bind(&self.config.source.publication.name)
            .bind(self.config.source.table.quoted())
            .fetch_optional(&mut *sql)
            .await?;
        if let Some(written) = written {
            return xid(&written);
        }
        publication::unchanged(sql, &self.config).await?;
        let what = format!(
            "the checkpoint row of relay '{}' is gone, of another history, or ahead",
            self.config.name
        );
        Err(Trouble::new(Reason::CheckpointLost, what))
    }
}

pub(super) fn xid(text: &str) -> Result<u64, Trouble> {
    text.parse().map_err(|_| Trouble::new(Reason::DatabaseError, format!("'{text}' is not a transaction id")))
}
