//! Reads whole rows of the outbox table, for a replay: every column, in the format that the stream has.

use chrono::{DateTime, Utc};
use outbox::column;
use sqlx::postgres::{PgConnection, PgRow};
use sqlx::{AssertSqlSafe, Row};

use crate::config::{Config, quote};
use crate::error::RelayError;
use crate::event::column_type::ColumnType;
use crate::event::owned_row::OwnedRow;
use crate::event::record::ce_time;
use crate::event::row::JSON_MEDIA_TYPE;
use crate::postgres::columns::{self, text_form};
use crate::postgres::table::literal;

/// The columns that are read as bytes, and those that are read as text.
const BYTES: [&str; 3] = [column::PAYLOAD, column::AGGREGATE_ID, column::HEADERS];
const TEXTS: [&str; 7] = [
    column::ID,
    column::TYPE,
    column::TRACEPARENT,
    column::TRACESTATE,
    column::SUBJECT,
    column::DATA_SCHEMA,
    column::DATA_CONTENT_TYPE,
];
/// The name in the query's result of the column that selects the topic.
const ROUTE: &str = "route";

#[derive(Clone, Copy, Debug)]
pub enum RowKey<'a> {
    Id(&'a str),
    /// Only in a table that has the column.
    Seq(i64),
}

/// The row cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum WholeRowError {
    /// The record would be too large, so the row is not read.
    #[error("the record would have more than {bytes} bytes, but sink.maxMessageBytes is {limit}")]
    TooLarge {
        /// Total size of its values.
        bytes: i64,
        limit: usize,
    },
    /// The database does not respond, or rejects the query; the role needs SELECT on the outbox table.
    #[error("{0}")]
    Database(RelayError),
}

impl From<RelayError> for WholeRowError {
    fn from(error: RelayError) -> Self {
        WholeRowError::Database(error)
    }
}

impl From<sqlx::Error> for WholeRowError {
    fn from(error: sqlx::Error) -> Self {
        WholeRowError::Database(error.into())
    }
}

/// Reads rows with the columns that the table had when it was created.
pub struct WholeRows {
    /// The query, without its condition.
    select: String,
    is_json: bool,
    max_bytes: usize,
}

impl WholeRows {
    pub async fn of(sql: &mut PgConnection, config: &Config) -> Result<WholeRows, RelayError> {
        let columns = columns::of(sql, &config.source).await?;
        let find = |name: &str| columns.iter().find(|column| column.name == name);
        let text =
            |name: &str| find(name).map_or_else(|| "NULL".to_owned(), |column| text_form(&column.quoted()));
        let bytes = |name: &str| match find(name) {
            Some(column) if column.kind == ColumnType::Bytea => column.quoted(),
            _ => format!("convert_to({}, 'UTF8')", text(name)),
        };
        let time = match find(column::OCCURRED_AT) {
            Some(column) if column.kind == ColumnType::TimestampTz => finite(&column.quoted()),
            _ => "NULL::timestamptz".to_owned(),
        };
        let values = BYTES.map(|name| format!("{}::bytea AS {}", bytes(name), quote(name))).into_iter();
        let values = values.chain(TEXTS.map(|name| format!("{} AS {}", text(name), quote(name))));
        let values = values.chain([format!("{} AS {ROUTE}", text(&config.routing.by_field))]);
        let values: Vec<String> = values.chain([format!("{time} AS {}", column::OCCURRED_AT)]).collect();
        Ok(WholeRows {
            select: format!("SELECT {} FROM {}", values.join(", "), config.source.table.quoted()),
            is_json: find(column::PAYLOAD).is_some_and(|column| column.kind.is_json()),
            max_bytes: config.sink.max_message_bytes,
        })
    }

    /// The row, if it exists.
    pub async fn read(
        &self,
        sql: &mut PgConnection,
        key: RowKey<'_>,
    ) -> Result<Option<OwnedRow>, WholeRowError> {
        let condition = match key {
            // In the type of the column, which finds it by its index.
            RowKey::Id(id) => format!("id = {}", literal(id)),
            RowKey::Seq(seq) => format!("seq = {seq}"),
        };
        let select = format!("{} WHERE {condition} LIMIT 1", self.select);
        check_size(sql, self.max_bytes, &select).await?;
        let row = sqlx::query(AssertSqlSafe(select)).fetch_optional(&mut *sql).await?;
        Ok(row.map(|row| owned(&row, self.is_json)).transpose()?)
    }
}

/// A time that no record can have is read as NULL.
fn finite(time: &str) -> String {
    format!("CASE WHEN {time} BETWEEN '0001-01-01Z' AND '9999-12-31 23:59:59.999999Z' THEN {time} END")
}

async fn check_size(sql: &mut PgConnection, limit: usize, select: &str) -> Result<(), WholeRowError> {
    let sizes = BYTES.iter().chain(&TEXTS).chain(&[ROUTE]);
    let sizes = sizes.map(|name| format!("coalesce(octet_length({}), 0)::bigint", quote(name)));
    let sizes = sizes.collect::<Vec<_>>().join(" + ");
    let bytes: Option<i64> = sqlx::query_scalar(AssertSqlSafe(format!("SELECT {sizes} FROM ({select}) row")))
        .fetch_optional(&mut *sql)
        .await?;
    match bytes.filter(|bytes| usize::try_from(*bytes).is_ok_and(|bytes| bytes > limit)) {
        Some(bytes) => Err(WholeRowError::TooLarge { bytes, limit }),
        None => Ok(()),
    }
}

fn owned(row: &PgRow, is_json: bool) -> Result<OwnedRow, sqlx::Error> {
    let trace =
        |name: &str| row.try_get(name).map(|text: Option<String>| text.filter(|text| !text.is_empty()));
    let time: Option<DateTime<Utc>> = row.try_get(column::OCCURRED_AT)?;
    Ok(OwnedRow {
        id: row.try_get(column::ID)?,
        payload: row.try_get(column::PAYLOAD)?,
        key: row.try_get(column::AGGREGATE_ID)?,
        event_type: row.try_get(column::TYPE)?,
        time: time.map(ce_time),
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
    })
}
