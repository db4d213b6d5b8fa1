//! The outbox table's present columns in the catalog: for queries that read its rows, and to check before the first row
//! arrives whether the stream's rows can be read.

use sqlx::Row;
use sqlx::postgres::PgConnection;

use crate::config::{Source, quote};
use crate::error::{ErrorKind, RelayError};
use crate::event::column_type::ColumnType;
use crate::event::row::Layout;
use crate::postgres::table::GENERATED_SINCE;

#[derive(Clone, Debug)]
pub struct TableColumn {
    pub name: String,
    pub kind: ColumnType,
    /// Whether the stream carries it. [`table::check`](crate::postgres::table::check) rejects a generated column that
    /// the relay needs and the stream does not carry.
    pub published: bool,
}

impl TableColumn {
    /// Its quoted name for SQL.
    pub fn quoted(&self) -> String {
        quote(&self.name)
    }
}

/// SQL for the text format of a value, which is what the stream carries; a cast to text may give another text.
pub fn text_form(value: &str) -> String {
    format!("CASE WHEN num_nulls({value}) = 0 THEN format('%s', {value}) END")
}

/// The columns of the outbox table, in order.
pub async fn of(sql: &mut PgConnection, source: &Source) -> Result<Vec<TableColumn>, RelayError> {
    let rows = sqlx::query(
        "WITH RECURSIVE typed AS (
             SELECT a.attnum, a.attname, a.attgenerated, a.atttypid AS type
             FROM pg_attribute a
             WHERE a.attrelid = to_regclass($1) AND a.attnum > 0 AND NOT a.attisdropped
             UNION ALL
             SELECT c.attnum, c.attname, c.attgenerated, t.typbasetype
             FROM typed c JOIN pg_type t ON t.oid = c.type WHERE t.typtype = 'd'
         )
         SELECT c.attname::text AS name, t.typname::text AS type,
                CASE n.nspname WHEN 'pg_catalog' THEN '' ELSE n.nspname::text END AS namespace,
                c.attgenerated = ''
                    OR c.attgenerated = 's' AND current_setting('server_version_num')::int >= $3
                       AND to_jsonb(p) ->> 'pubgencols' IS DISTINCT FROM 'n' AS published
         FROM typed c JOIN pg_type t ON t.oid = c.type JOIN pg_namespace n ON n.oid = t.typnamespace
              LEFT JOIN pg_publication p ON p.pubname = $2
         WHERE t.typtype <> 'd' ORDER BY c.attnum",
    )
    .bind(source.table.quoted())
    .bind(&source.publication.name)
    .bind(GENERATED_SINCE)
    .fetch_all(&mut *sql)
    .await?;
    if rows.is_empty() {
        let what = format!("table {} does not exist in database {}", source.table, source.database);
        return Err(RelayError::new(ErrorKind::TableMissing, what));
    }
    let column = |row: &sqlx::postgres::PgRow| {
        let kind = ColumnType::named(row.try_get("namespace")?, row.try_get("type")?);
        Ok(TableColumn { name: row.try_get("name")?, kind, published: row.try_get("published")? })
    };
    Ok(rows.iter().map(column).collect::<Result<_, sqlx::Error>>()?)
}

/// How rows written now can be read from the stream, or why they cannot.
pub fn layout(columns: &[TableColumn], route_by: &str) -> Result<Layout, RelayError> {
    let published = columns.iter().filter(|column| column.published);
    Layout::new(published.map(|column| (column.name.as_str(), column.kind.clone())), route_by)
        .map_err(|error| RelayError::new(ErrorKind::TableUnsuitable, error.to_string()))
}
