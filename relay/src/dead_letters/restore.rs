//! Reads the columns that a dead letter omits from the table, while the row still exists.

use outbox::column;
use sqlx::postgres::PgConnection;
use sqlx::{AssertSqlSafe, Row};

use super::reader::DeadLetter;
use crate::config::Config;
use crate::error::RelayError;
use crate::event::column_type::ColumnType;
use crate::event::row::JSON_MEDIA_TYPE;
use crate::postgres::columns::{self, text_form};
use crate::postgres::connection;

/// The values of a row whose size is not limited.
const PARTS: [&str; 10] = [
    "payload",
    "key",
    "type",
    "route",
    "headers",
    "traceparent",
    "tracestate",
    "subject",
    "data_schema",
    "content_type",
];

/// The omitted columns cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    /// The dead letter has no id.
    #[error("some of its columns are only in the table, and it has no id to find its row by")]
    NoId,
    /// The row is gone.
    #[error("some of its columns were only in the table, and its row no longer exists")]
    Gone,
    /// The record would still be too large, so the row is not read.
    #[error("the record would have more than {bytes} bytes, but sink.maxMessageBytes is {limit}")]
    TooLarge {
        /// Total size of its values.
        bytes: i64,
        /// The configured limit.
        limit: usize,
    },
    /// The database does not respond, or rejects the query; the role needs SELECT on the outbox table.
    #[error("some of its columns are only in the table: {0}")]
    Database(RelayError),
}

impl DeadLetter {
    /// The dead letter with all columns of its row.
    pub async fn restored(self, config: &Config) -> Result<DeadLetter, RestoreError> {
        if self.omitted.is_none() {
            return Ok(self);
        }
        let Some(id) = self.id.clone() else { return Err(RestoreError::NoId) };
        let mut sql =
            connection::connect(&config.source, "dead letters").await.map_err(RestoreError::Database)?;
        fill(&mut sql, config, self, &id).await?.ok_or(RestoreError::Gone)
    }
}

impl From<sqlx::Error> for RestoreError {
    fn from(error: sqlx::Error) -> Self {
        RestoreError::Database(error.into())
    }
}

/// Every column of the table, in the format the stream has.
async fn fill(
    sql: &mut PgConnection,
    config: &Config,
    letter: DeadLetter,
    id: &str,
) -> Result<Option<DeadLetter>, RestoreError> {
    let columns = columns::of(sql, &config.source).await.map_err(RestoreError::Database)?;
    let find = |name: &str| columns.iter().find(|column| column.name == name);
    let text =
        |name: &str| find(name).map_or_else(|| "NULL".to_owned(), |column| text_form(&column.quoted()));
    let bytes = |name: &str| match find(name) {
        Some(column) if column.kind == ColumnType::Bytea => column.quoted(),
        _ => format!("convert_to({}, 'UTF8')", text(name)),
    };
    let select = format!(
        "SELECT {}::bytea AS payload, {}::bytea AS key, {}::bytea AS headers, {} AS type, {} AS route,
                {} AS traceparent, {} AS tracestate, {} AS subject, {} AS data_schema, {} AS content_type
         FROM {} WHERE {} = $1 LIMIT 1",
        bytes(column::PAYLOAD),
        bytes(column::AGGREGATE_ID),
        bytes(column::HEADERS),
        text(column::TYPE),
        text(&config.routing.by_field),
        text(column::TRACEPARENT),
        text(column::TRACESTATE),
        text(column::SUBJECT),
        text(column::DATA_SCHEMA),
        text(column::DATA_CONTENT_TYPE),
        config.source.table.quoted(),
        text(column::ID),
    );
    let sizes = PARTS.map(|part| format!("coalesce(octet_length({part}), 0)::bigint")).join(" + ");
    let bytes: Option<i64> = sqlx::query_scalar(AssertSqlSafe(format!("SELECT {sizes} FROM ({select}) row")))
        .bind(id)
        .fetch_optional(&mut *sql)
        .await?;
    let limit = config.sink.max_message_bytes;
    if let Some(bytes) = bytes.filter(|bytes| usize::try_from(*bytes).is_ok_and(|bytes| bytes > limit)) {
        return Err(RestoreError::TooLarge { bytes, limit });
    }
    let row = sqlx::query(AssertSqlSafe(select)).bind(id).fetch_optional(&mut *sql).await?;
    let Some(row) = row else { return Ok(None) };
    let is_json = find(column::PAYLOAD).is_some_and(|column| column.kind.is_json());
    let trace =
        |name: &str| row.try_get(name).map(|text: Option<String>| text.filter(|text| !text.is_empty()));
    Ok(Some(DeadLetter {
        payload: row.try_get("payload")?,
        key: row.try_get("key")?,
        event_type: row.try_get("type")?,
        route: row.try_get("route")?,
        headers: row.try_get("headers")?,
        traceparent: trace("traceparent")?,
        tracestate: trace("tracestate")?,
        subject: row.try_get("subject")?,
        data_schema: row.try_get("data_schema")?,
        content_type: if is_json { Some(JSON_MEDIA_TYPE.into()) } else { row.try_get("content_type")? },
        omitted: None,
        ..letter
    }))
}
