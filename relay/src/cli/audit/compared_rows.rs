//! The rows of the outbox table that an audit compares, in the order of `seq`.

use chrono::{DateTime, Utc};
use outbox::column;
use serde::Serialize;
use sqlx::postgres::{PgConnection, PgRow};
use sqlx::{AssertSqlSafe, Row};
use tokio::sync::mpsc;

use super::comparison::StoredEvent;
use crate::config::{Config, Source, quote};
use crate::error::RelayError;
use crate::event::record::ce_time;
use crate::kafka::evidence::EventKey;
use crate::postgres::columns::text_form;
use crate::postgres::connection;
use crate::postgres::initial_rows::{self, RowsFor};
use crate::postgres::table::literal;

/// Each page is one query, so that a long audit does not hold back vacuum, nor the removal of partitions.
const PAGE_ROWS: i64 = 20_000;
/// Number of missing rows that one query describes. Each searches the table once for later rows with their ids.
const DESCRIBED_PER_QUERY: usize = 10_000;
/// Number of rows that the oldest one is among.
const FIRST_ROWS: u32 = 10_000;
/// Timeout of a statement: without an index on `seq`, each page scans the table.
const STATEMENT_TIMEOUT: &str = "10min";

/// The time of the rows that are compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Period {
    pub since: DateTime<Utc>,
    pub until: DateTime<Utc>,
}

pub struct Page {
    pub rows: Vec<StoredEvent>,
    /// The latest time of these rows.
    pub latest: DateTime<Utc>,
}

/// A row whose event is not in Kafka.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, sqlx::FromRow)]
#[serde(rename_all = "camelCase")]
pub struct MissingRow {
    pub seq: i64,
    pub id: String,
    #[serde(rename = "time")]
    pub occurred_at: DateTime<Utc>,
    #[serde(rename = "type")]
    #[sqlx(rename = "type")]
    pub event_type: Option<String>,
    pub key: Option<String>,
    /// Value of the column that selects the topic.
    pub route: Option<String>,
    /// Whether a later row has the same id: the event was republished.
    #[serde(skip)]
    pub is_republished: bool,
}

/// Connects, and fails if the rows cannot be compared.
pub async fn connect(config: &Config) -> Result<PgConnection, RelayError> {
    let source = &config.source;
    let mut sql = connection::connect(source, "audit").await?;
    initial_rows::check_columns(&mut sql, source, RowsFor::Audit).await?;
    connection::require_all_rows(&mut sql, STATEMENT_TIMEOUT).await?;
    Ok(sql)
}

/// The part of the period that the table still has: retention has removed the rows before the oldest one. It ends at
/// the present at the latest.
pub async fn limit_period(
    sql: &mut PgConnection,
    source: &Source,
    since: DateTime<Utc>,
    until: Option<DateTime<Utc>>,
) -> Result<Period, RelayError> {
    let now: DateTime<Utc> = sqlx::query_scalar("SELECT clock_timestamp()").fetch_one(&mut *sql).await?;
    let oldest = oldest(sql, source).await?;
    Ok(Period {
        since: oldest.map_or(since, |oldest| since.max(oldest)),
        until: until.map_or(now, |until| until.min(now)),
    })
}

/// The time of the oldest row. The first rows are nearly in the order of time.
pub async fn oldest(sql: &mut PgConnection, source: &Source) -> Result<Option<DateTime<Utc>>, RelayError> {
    let select = format!(
        "SELECT min(occurred_at) FROM (SELECT occurred_at FROM {} ORDER BY seq LIMIT {FIRST_ROWS}) AS first",
        source.table.quoted()
    );
    Ok(sqlx::query_scalar(AssertSqlSafe(select)).fetch_one(sql).await?)
}

/// The values of the column that selects the topic, of the delivered rows of the period.
pub async fn routes(
    sql: &mut PgConnection,
    config: &Config,
    period: Period,
    delivered: &str,
) -> Result<Vec<Option<String>>, RelayError> {
    let select = format!(
        "SELECT DISTINCT {} FROM {} o
         WHERE occurred_at >= $1 AND occurred_at < $2 AND pg_visible_in_snapshot(xid, (SELECT $3::pg_snapshot))",
        text_form(&format!("o.{}", quote(&config.routing.by_field))),
        config.source.table.quoted()
    );
    let query =
        sqlx::query_scalar(AssertSqlSafe(select)).bind(period.since).bind(period.until).bind(delivered);
    Ok(query.fetch_all(sql).await?)
}

/// Reads the rows of the period in the background, one page ahead.
pub fn read(
    mut sql: PgConnection,
    source: &Source,
    period: Period,
    delivered: String,
) -> mpsc::Receiver<Result<Page, RelayError>> {
    let (sender, pages) = mpsc::channel(1);
    let select = format!(
        "SELECT seq, {} AS id, occurred_at, pg_visible_in_snapshot(xid, (SELECT $1::pg_snapshot)) AS is_confirmed
         FROM {} o
         WHERE seq > $2 AND occurred_at >= $3 AND occurred_at < $4 AND o.id IS NOT NULL
         ORDER BY seq LIMIT $5",
        text_form("o.id"),
        source.table.quoted()
    );
    tokio::spawn(async move {
        let mut read_to = -1;
        loop {
            let query = sqlx::query(AssertSqlSafe(select.as_str())).bind(&delivered).bind(read_to);
            let query = query.bind(period.since).bind(period.until).bind(PAGE_ROWS);
            let page = query.fetch_all(&mut sql).await.and_then(|rows| page(&rows));
            match page {
                Ok(None) => return,
                Ok(Some((last, page))) => {
                    read_to = last;
                    if sender.send(Ok(page)).await.is_err() {
                        return;
                    }
                }
                Err(error) => return drop(sender.send(Err(error.into())).await),
            }
        }
    });
    pages
}

/// The page and its last `seq`; `None` without rows.
fn page(rows: &[PgRow]) -> Result<Option<(i64, Page)>, sqlx::Error> {
    let Some(last) = rows.last() else { return Ok(None) };
    let mut page = Page { rows: Vec::with_capacity(rows.len()), latest: DateTime::UNIX_EPOCH };
    for row in rows {
        let (id, time): (String, DateTime<Utc>) = (row.try_get("id")?, row.try_get("occurred_at")?);
        page.latest = page.latest.max(time);
        page.rows.push(StoredEvent {
            key: EventKey::new(id.as_bytes(), ce_time(time).as_bytes()),
            seq: row.try_get("seq")?,
            is_confirmed: row.try_get("is_confirmed")?,
        });
    }
    Ok(Some((last.try_get("seq")?, page)))
}

/// The rows with these values of `seq`. Rows that were removed meanwhile are left out.
pub async fn describe(
    sql: &mut PgConnection,
    config: &Config,
    missing: &[i64],
) -> Result<Vec<MissingRow>, RelayError> {
    let table = config.source.table.quoted();
    let value = |name: &str| format!("o.j ->> {}", literal(name));
    let select = format!(
        "WITH missing AS MATERIALIZED (
             SELECT seq, id, occurred_at, to_jsonb(o) - 'payload' AS j FROM {table} o WHERE seq = ANY($1)
         ), last AS (
             SELECT r.id, max(r.seq) AS seq FROM {table} r WHERE r.id IN (SELECT id FROM missing) GROUP BY r.id
         )
         SELECT o.seq, {} AS id, o.occurred_at, {} AS type, {} AS key, {} AS route,
                coalesce(last.seq > o.seq, false) AS is_republished
         FROM missing o LEFT JOIN last ON last.id = o.id ORDER BY o.seq",
        text_form("o.id"),
        value(column::TYPE),
        value(column::AGGREGATE_ID),
        value(&config.routing.by_field),
    );
    let mut described = Vec::new();
    for part in missing.chunks(DESCRIBED_PER_QUERY) {
        let query = sqlx::query_as::<_, MissingRow>(AssertSqlSafe(select.as_str())).bind(part);
        described.extend(query.fetch_all(&mut *sql).await?);
    }
    Ok(described)
}
