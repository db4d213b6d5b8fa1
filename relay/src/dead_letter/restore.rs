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

/// What of a row may be of any size.
const PARTS: [&str; 7] = ["payload", "key", "type", "route", "headers", "traceparent", "tracestate"];

/// A dead letter cannot be made whole.
#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    /// It does not say which row it was.
    #[error("parts of it are only in the table, and it has no id to find them by")]
    NoId,
    /// The row is gone.
    #[error("parts of it were only in the table, where its row is no more")]
    Gone,
    /// It is still too large, so its row is not even read.
    #[error("the record would have more than {bytes} bytes, sink.maxMessageBytes is {limit}")]
    TooLarge {
        /// What its parts have together.
        bytes: i64,
        /// The configured limit.
        limit: usize,
    },
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
        fill(&mut sql, config, self, &id).await?.ok_or(RestoreError::Gone)
    }
}

impl From<sqlx::Error> for RestoreError {
    fn from(error: sqlx::Error) -> Self {
        RestoreError::Database(error.into())
    }
}

/// `to_jsonb`, because a table made for Debezium has only some of the columns. Key and payload are text as the stream
/// has it, unless they are bytes.
async fn fill(
    sql: &mut PgConnection,
    config: &Config,
    letter: DeadLetter,
    id: &str,
) -> Result<Option<DeadLetter>, RestoreError> {
    // A policy must not make a row look as if it were gone: with this the statement fails instead.
    sqlx::query("SET row_security = off").execute(&mut *sql).await?;
    let table = config.source.table.quoted();
    let payload_type = type_of(sql, &table, column::PAYLOAD).await?;
    let key_type = type_of(sql, &table, column::AGGREGATE_ID).await?;
    let select = format!(
        "SELECT {} AS payload, {} AS key, row ->> 'type' AS type, row ->> $2::text AS route,
                row ->> 'headers' AS headers, row ->> 'traceparent' AS traceparent,
                row ->> 'tracestate' AS tracestate
         FROM (SELECT *, to_jsonb(o) - 'payload' AS row FROM {table} o WHERE o.id::text = $1 LIMIT 1) found",
        as_bytes(column::PAYLOAD, payload_type),
        as_bytes(column::AGGREGATE_ID, key_type),
    );
    let sizes = PARTS.map(|part| format!("coalesce(octet_length({part}), 0)::bigint")).join(" + ");
    let bytes: Option<i64> = sqlx::query_scalar(AssertSqlSafe(format!("SELECT {sizes} FROM ({select}) row")))
        .bind(id)
        .bind(&config.routing.by_field)
        .fetch_optional(&mut *sql)
        .await?;
    let limit = config.sink.max_message_bytes;
    if let Some(bytes) = bytes.filter(|bytes| usize::try_from(*bytes).is_ok_and(|bytes| bytes > limit)) {
        return Err(RestoreError::TooLarge { bytes, limit });
    }
    let row = sqlx::query(AssertSqlSafe(select))
        .bind(id)
        .bind(&config.routing.by_field)
        .fetch_optional(&mut *sql)
        .await?;
    let Some(row) = row else { return Ok(None) };
    let headers: Option<String> = row.try_get("headers")?;
    Ok(Some(DeadLetter {
        payload: row.try_get("payload")?,
        key: row.try_get("key")?,
        event_type: row.try_get("type")?,
        route: row.try_get("route")?,
        headers: headers.map(String::into_bytes),
        traceparent: row.try_get("traceparent")?,
        tracestate: row.try_get("tracestate")?,
        content_type: content_type(payload_type).map(str::to_owned),
        omitted: None,
        ..letter
    }))
}

/// OID of a column's type; of a domain, of the type it is based on.
async fn type_of(sql: &mut PgConnection, table: &str, column: &str) -> Result<u32, sqlx::Error> {
    let oid: Oid = sqlx::query_scalar(
        "SELECT coalesce(nullif(t.typbasetype, 0), t.oid) FROM pg_attribute a JOIN pg_type t ON t.oid = a.atttypid
         WHERE a.attrelid = $1::regclass AND a.attname = $2",
    )
    .bind(table)
    .bind(column)
    .fetch_one(sql)
    .await?;
    Ok(oid.0)
}

fn as_bytes(column: &str, column_type: u32) -> String {
    let column = quote(column);
    if is_bytes(column_type) { column } else { format!("convert_to({column}::text, 'UTF8')") }
}
