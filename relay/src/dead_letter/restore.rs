//! Reads what a dead letter had to leave out again from the table, while the row is still there.

use outbox::column;
use sqlx::postgres::PgConnection;
use sqlx::postgres::types::Oid;
use sqlx::{AssertSqlSafe, Row};

use super::topic::DeadLetter;
use crate::config::{Config, quote};
use crate::event::row::{content_type, is_bytes};
use crate::postgres::source;
use crate::trouble::Trouble;

/// A dead letter cannot be made whole.
#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    /// It does not say which row it was.
    #[error("parts of it are only in the table, and it has no id to find them by")]
    NoId,
    /// The row is gone.
    #[error("parts of it were only in the table, where its row is no more")]
    Gone,
    /// The database does not answer, or refuses; the role needs SELECT on the outbox table for this.
    #[error("parts of it are only in the table: {0}")]
    Database(Trouble),
}

impl DeadLetter {
    /// With everything its row has.
    pub async fn restored(self, config: &Config) -> Result<DeadLetter, RestoreError> {
        if self.omitted.is_none() {
            return Ok(self);
        }
        let Some(id) = self.id.clone() else { return Err(RestoreError::NoId) };
        let mut sql =
            source::connect(&config.source, "dead letters").await.map_err(RestoreError::Database)?;
        let found = fill(&mut sql, config, self, &id).await;
        found.map_err(|error| RestoreError::Database(error.into()))?.ok_or(RestoreError::Gone)
    }
}

/// `to_jsonb`, because a table made for Debezium has only some of the columns. A payload is text as the stream has it,
/// unless it is bytes.
async fn fill(
    sql: &mut PgConnection,
    config: &Config,
    letter: DeadLetter,
    id: &str,
) -> Result<Option<DeadLetter>, sqlx::Error> {
    let (table, payload) = (config.source.table.quoted(), quote(column::PAYLOAD));
    // Of a domain, the type it is based on.
    let payload_type: Oid = sqlx::query_scalar(
        "SELECT coalesce(nullif(t.typbasetype, 0), t.oid) FROM pg_attribute a JOIN pg_type t ON t.oid = a.atttypid
         WHERE a.attrelid = $1::regclass AND a.attname = $2",
    )
    .bind(&table)
    .bind(column::PAYLOAD)
    .fetch_one(&mut *sql)
    .await?;
    let bytes = if is_bytes(payload_type.0) {
        payload.clone()
    } else {
        format!("convert_to({payload}::text, 'UTF8')")
    };
    let select = format!(
        "SELECT {bytes} AS bytes, row ->> 'aggregateid' AS key, row ->> 'type' AS type, row ->> $2::text AS route,
                (row -> 'headers')::text AS headers, row ->> 'traceparent' AS traceparent,
                row ->> 'tracestate' AS tracestate
         FROM (SELECT *, to_jsonb(o) - 'payload' AS row FROM {table} o WHERE o.id::text = $1 LIMIT 1) found"
    );
    let row = sqlx::query(AssertSqlSafe(select))
        .bind(id)
        .bind(&config.routing.by_field)
        .fetch_optional(&mut *sql)
        .await?;
    let Some(row) = row else { return Ok(None) };
    let key: Option<String> = row.try_get("key")?;
    let headers: Option<String> = row.try_get("headers")?;
    Ok(Some(DeadLetter {
        payload: row.try_get("bytes")?,
        key: key.map(String::into_bytes),
        event_type: row.try_get("type")?,
        route: row.try_get("route")?,
        headers: headers.filter(|json| json != "null").map(String::into_bytes),
        traceparent: row.try_get("traceparent")?,
        tracestate: row.try_get("tracestate")?,
        content_type: content_type(payload_type.0).map(str::to_owned),
        omitted: None,
        ..letter
    }))
}
