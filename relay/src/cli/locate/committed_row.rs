//! The row of an event, and what the checkpoint says of it.

use chrono::{DateTime, TimeDelta, Utc};
use pg_replication::EndLsn;
use serde::Serialize;
use sqlx::postgres::PgConnection;
use sqlx::types::Text;
use sqlx::{AssertSqlSafe, Row};
use uuid::Uuid;

use crate::config::Config;
use crate::error::chain;
use crate::postgres::checkpoint::TABLE;
use crate::postgres::connection;
use crate::postgres::table::literal;

/// The table has no index on the id, because every insert would pay for it: finding a row may scan the table.
const QUERY_TIMEOUT: &str = "20s";
/// How far the clock that made an id may be from the database's. Only partitions of this time are scanned first.
const CLOCK_DIFFERENCE_HOURS: i64 = 1;

/// The row of the event.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Committed {
    /// As the database writes it, and so the record: a UUID in lower case.
    pub id: String,
    pub occurred_at: Option<DateTime<Utc>>,
    #[serde(rename = "type")]
    pub event_type: Option<String>,
    pub key: Option<String>,
    /// Value of the column that selects the topic.
    pub route: Option<String>,
    /// Whether the checkpoint counts its transaction as delivered; `None` where it cannot tell.
    pub confirmed: Option<bool>,
    /// The end of the server's WAL when the row was seen: its commit record is before.
    #[serde(skip)]
    pub server: EndLsn,
}

/// `Err` if it is not known whether there is a row, and why.
pub async fn find_row(
    sql: &mut PgConnection,
    config: &Config,
    id: &str,
) -> Result<Option<Committed>, String> {
    let failed = |error: sqlx::Error| chain(&error);
    connection::require_all_rows(sql, QUERY_TIMEOUT).await.map_err(failed)?;
    if let Some(range) = time_range(id) {
        // A table without the column has no partitions to leave out.
        if let Ok(Some(row)) = query_row(sql, config, id, &range).await {
            return Ok(Some(row));
        }
    }
    query_row(sql, config, id, "true").await.map_err(failed)
}

/// The times at which the row of a time-based UUID was probably written, as a condition.
fn time_range(id: &str) -> Option<String> {
    let (seconds, nanoseconds) = Uuid::parse_str(id).ok()?.get_timestamp()?.to_unix();
    let difference = TimeDelta::hours(CLOCK_DIFFERENCE_HOURS);
    let made = DateTime::<Utc>::from_timestamp(i64::try_from(seconds).ok()?, nanoseconds)?;
    let [from, until] = [made - difference, made + difference].map(|time| literal(&time.to_rfc3339()));
    Some(format!("o.occurred_at BETWEEN {from} AND {until}"))
}

/// As JSON, because a table of Debezium's five columns lacks some of these.
async fn query_row(
    sql: &mut PgConnection,
    config: &Config,
    id: &str,
    condition: &str,
) -> Result<Option<Committed>, sqlx::Error> {
    let (table, checkpoint) = (config.source.table.quoted(), config.source.table.sibling(TABLE));
    let (id, by_field) = (literal(id), literal(&config.routing.by_field));
    let select = format!(
        "SELECT j ->> 'id' AS id, (j ->> 'occurred_at')::timestamptz AS occurred_at, j ->> 'type' AS type, j ->> 'aggregateid' AS key,
                j ->> {by_field} AS route, pg_visible_in_snapshot((j ->> 'xid')::xid8, c.delivered_snapshot) AS confirmed,
                pg_current_wal_insert_lsn()::text AS server
         FROM (SELECT to_jsonb(o) - 'payload' AS j FROM {table} o WHERE o.id = {id} AND {condition} LIMIT 1) found
              LEFT JOIN {checkpoint} c ON c.relay = $1"
    );
    let row = sqlx::query(AssertSqlSafe(select)).bind(&config.name).fetch_optional(sql).await?;
    let Some(row) = row else { return Ok(None) };
    let Text(server) = row.try_get("server")?;
    Ok(Some(Committed {
        id: row.try_get("id")?,
        occurred_at: row.try_get("occurred_at")?,
        event_type: row.try_get("type")?,
        key: row.try_get("key")?,
        route: row.try_get("route")?,
        confirmed: row.try_get("confirmed")?,
        server,
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_time_based_id_limits_the_search() {
        let range = time_range("019ad5a0-0000-7000-8000-000000000000").unwrap();
        assert!(range.starts_with("o.occurred_at BETWEEN '2025-11-30T"), "{range}");
        assert_eq!(time_range("6fa459ea-ee8a-4ca4-894e-db77e160355e"), None);
        assert_eq!(time_range("an id"), None);
    }
}
