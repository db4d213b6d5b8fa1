//! The rows that are in the table before the slot: whether the initial snapshot, or a refill, can read, identify and order
//! them.

use sqlx::AssertSqlSafe;
use sqlx::postgres::PgConnection;

use crate::config::Source;
use crate::error::{ErrorKind, RelayError};
use crate::postgres::missing_rows::TransactionSnapshot;

/// What the rows are needed for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RowsFor {
    /// The initial snapshot.
    Start,
    Refill,
    /// The comparison of the table with Kafka.
    Audit,
    Replay,
}

impl RowsFor {
    /// The setting or command that needs them.
    fn setting(self) -> &'static str {
        match self {
            RowsFor::Start => "source.start: Table",
            RowsFor::Refill => "source.onGap: Refill",
            RowsFor::Audit => "outbox-relay audit",
            RowsFor::Replay => "outbox-relay replay",
        }
    }

    /// The alternative to a correction of the table.
    fn alternative(self) -> &'static str {
        match self {
            RowsFor::Start => ", or set source.start: Now",
            RowsFor::Refill => ", or set source.onGap: Stop and republish the missing events yourself",
            RowsFor::Audit | RowsFor::Replay => "",
        }
    }

    /// The kind of the error if the table lacks a column.
    fn lacking(self) -> ErrorKind {
        match self {
            RowsFor::Start | RowsFor::Refill => ErrorKind::StartRefused,
            RowsFor::Audit | RowsFor::Replay => ErrorKind::TableUnsuitable,
        }
    }
}

/// The transactions that have ended by now.
pub async fn current_snapshot(sql: &mut PgConnection) -> Result<TransactionSnapshot, RelayError> {
    let text: String = sqlx::query_scalar("SELECT pg_current_snapshot()::text").fetch_one(sql).await?;
    text.parse().map_err(|error| {
        RelayError::new(
            ErrorKind::DatabaseError,
            format!("PostgreSQL returned a snapshot that is none: {error}"),
        )
    })
}

/// The exported snapshot in its text form, and whether that text and `seq` identify all rows the snapshot shows.
pub async fn describe(
    sql: &mut PgConnection,
    source: &Source,
    exported: &str,
) -> Result<(String, RowOrder), RelayError> {
    let begin = format!(
        "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY; SET TRANSACTION SNAPSHOT '{}'",
        exported.replace('\'', "''")
    );
    sqlx::raw_sql(AssertSqlSafe(begin)).execute(&mut *sql).await?;
    let snapshot = current_snapshot(&mut *sql).await?;
    let order = RowOrder::of(sql, source).await?;
    sqlx::raw_sql("COMMIT").execute(&mut *sql).await?;
    Ok((snapshot.as_text().to_owned(), order))
}

/// Checks, before anything is created, that the table's rows can be read and identified by snapshot and `seq`.
pub async fn check_table(sql: &mut PgConnection, source: &Source, rows: RowsFor) -> Result<(), RelayError> {
    check_columns(sql, source, rows).await?;
    RowOrder::of(sql, source).await?.check(source, rows)
}

/// Checks that the table has the columns that tell its rows apart, and that the role may read all rows.
pub async fn check_columns(sql: &mut PgConnection, source: &Source, rows: RowsFor) -> Result<(), RelayError> {
    let (setting, alternative) = (rows.setting(), rows.alternative());
    let table = source.table.quoted();
    let (is_identified, has_time, is_readable, is_secured, role): (bool, bool, bool, bool, String) = sqlx::query_as(
        "SELECT count(*) FILTER (WHERE attname = 'seq' AND atttypid = 'bigint'::regtype AND attnotnull) = 1
                AND count(*) FILTER (WHERE attname = 'xid' AND atttypid = 'xid8'::regtype AND attnotnull) = 1,
                count(*) FILTER (WHERE attname = 'occurred_at' AND atttypid = 'timestamptz'::regtype AND attnotnull) = 1,
                has_table_privilege($1::regclass, 'SELECT'), row_security_active($1::regclass), current_user::text
         FROM pg_attribute WHERE attrelid = $1::regclass AND attnum > 0 AND NOT attisdropped",
    )
    .bind(&table)
    .fetch_one(&mut *sql)
    .await?;
    let role = crate::config::quote(&role);
    if !is_identified {
        let what = format!(
            "table {} has no columns seq (bigint, not null) and xid (xid8, not null), which {setting} needs \
             to find and order the rows; add them{alternative}",
            source.table
        );
        return Err(RelayError::new(rows.lacking(), what));
    }
    if !has_time {
        let what = format!(
            "table {} has no column occurred_at (timestamptz, not null), which {setting} needs for the time \
             of the rows; add it{alternative}",
            source.table
        );
        return Err(RelayError::new(rows.lacking(), what));
    }
    if !is_readable {
        let what = format!(
            "role {role} may not read the rows of table {}, which {setting} needs: GRANT SELECT ON {table} TO {role}",
            source.table
        );
        return Err(RelayError::new(ErrorKind::PermissionDenied, what));
    }
    if is_secured {
        let what = format!(
            "row-level security hides rows of table {} from role {role}: ALTER ROLE {role} BYPASSRLS",
            source.table
        );
        return Err(RelayError::new(ErrorKind::PermissionDenied, what));
    }
    Ok(())
}

/// Rows that the initial snapshot would miss or could not deliver.
#[derive(sqlx::FromRow)]
pub struct RowOrder {
    /// Some visible rows have an `xid` that the snapshot does not show: they come from another cluster.
    #[sqlx(rename = "foreign_xid")]
    foreign: bool,
    /// Some rows have a negative `seq`, which is before the first cursor position.
    negative: bool,
    /// Some rows have a time that no record can have. In the stream the commit time replaces it, which is unknown here.
    undated: bool,
}

impl RowOrder {
    /// Checks every row that the connection's snapshot shows.
    async fn of(sql: &mut PgConnection, source: &Source) -> Result<RowOrder, RelayError> {
        let select = format!(
            "SELECT coalesce(bool_or(NOT pg_visible_in_snapshot(xid, s)), false) AS foreign_xid,
                    coalesce(bool_or(seq < 0), false) AS negative,
                    coalesce(bool_or(occurred_at NOT BETWEEN '0001-01-01Z' AND '9999-12-31 23:59:59.999999Z'), false)
                        AS undated
             FROM {}, (SELECT pg_current_snapshot() AS s) AS current",
            source.table.quoted()
        );
        Ok(sqlx::query_as(AssertSqlSafe(select)).fetch_one(&mut *sql).await?)
    }

    /// Fails if not every row could be delivered.
    pub fn check(&self, source: &Source, rows: RowsFor) -> Result<(), RelayError> {
        let table = source.table.quoted();
        if self.foreign {
            let what = format!(
                "table {} has rows whose xid comes from another cluster, for example after a dump and restore; run: \
                 UPDATE {table} SET xid = DEFAULT WHERE NOT pg_visible_in_snapshot(xid, pg_current_snapshot())",
                source.table
            );
            return Err(RelayError::new(ErrorKind::StartRefused, what));
        }
        if self.negative {
            let what = format!(
                "table {} has rows with a negative seq, which {} cannot order; renumber them",
                source.table,
                rows.setting()
            );
            return Err(RelayError::new(ErrorKind::StartRefused, what));
        }
        if self.undated {
            let what = format!(
                "table {} has rows whose occurred_at is infinite or outside the years 1 to 9999, which a Kafka \
                 timestamp cannot hold; correct them",
                source.table
            );
            return Err(RelayError::new(ErrorKind::StartRefused, what));
        }
        Ok(())
    }
}
