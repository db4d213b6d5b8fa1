//! Reads the columns that a dead letter omits from the table, while the row still exists.

use outbox::column;
use sqlx::postgres::PgConnection;
use sqlx::{AssertSqlSafe, Row};

use super::reader::DeadLetter;
use crate::config::{Config, quote};
use crate::error::RelayError;
use crate::event::column_type::ColumnType;
use crate::event::row::JSON_MEDIA_TYPE;
use crate::postgres::columns::{self, text_form};
use crate::postgres::connection;

/// The columns that are restored as bytes, and those that are restored as text.
const BYTES: [&str; 3] = [column::PAYLOAD, column::AGGREGATE_ID, column::HEADERS];
const TEXTS: [&str; 6] = [
    column::TYPE,
    column::TRACEPARENT,
    column::TRACESTATE,
    column::SUBJECT,
    column::DATA_SCHEMA,
    column::DATA_CONTENT_TYPE,
];
/// The name in the query's result of the column that selects the topic.
const ROUTE: &str = "route";

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
    let bytes = BYTES.map(|name| format!("{}::bytea AS {}", bytes(name), quote(name)));
    let texts = TEXTS.map(|name| format!("{} AS {}", text(name), quote(name)));
    let route = format!("{} AS {ROUTE}", text(&config.routing.by_field));
    let values: Vec<String> = bytes.into_iter().chain(texts).chain([route]).collect();
    let select = format!(
        "SELECT {} FROM {} WHERE {} = $1 LIMIT 1",
        values.join(", "),
        config.source.table.quoted(),
        text(column::ID),
    );
    let sizes = BYTES.iter().chain(&TEXTS).chain(&[ROUTE]);
    let sizes = sizes.map(|name| format!("coalesce(octet_length({}), 0)::bigint", quote(name)));
    let sizes = sizes.collect::<Vec<_>>().join(" + ");
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
        payload: row.try_get(column::PAYLOAD)?,
        key: row.try_get(column::AGGREGATE_ID)?,
        event_type: row.try_get(column::TYPE)?,
        route: row.try_get(ROUTE)?,
        headers: row.try_get(column::HEADERS)?,
        traceparent: trace(column::TRACEPARENT)?,
        tracestate: trace(column::TRACESTATE)?,
        subject: row.try_get(column::SUBJECT)?,
        data_schema: row.try_get(column::DATA_SCHEMA)?,
        content_type: if is_json {
            Some(JSON_MEDIA_TYPE.into())
        } else {
            row.try_get(column::DATA_CONTENT_TYPE)?
        },
        omitted: None,
        ..letter
    }))
}
