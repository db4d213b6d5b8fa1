//! The rows from before the slot (the initial snapshot, or the missing rows of a refill), read in the order of `seq`.
//!
//! Each page is one short query, so that a snapshot of hours does not hold back vacuum. Which rows belong to the
//! snapshot follows from each row's `xid` and the stored `pg_snapshot` of the slot, so any process can read a page at
//! any time, and continue where another one ended.

use std::time::Duration;

use futures::{Stream, TryStreamExt};
use pg_replication::Host;
use pg_replication::pgoutput::Column;
use sqlx::postgres::{PgConnection, PgRow};
use sqlx::{AssertSqlSafe, Row, ValueRef};
use tokio::sync::mpsc;

use crate::config::Source;
use crate::error::{ErrorKind, RelayError};
use crate::event::column_type::ColumnType;
use crate::event::row::{Layout, is_read};
use crate::postgres::checkpoint::{ClusterTimeline, RemainingSnapshot};
use crate::postgres::columns::{self, TableColumn, text_form};
use crate::postgres::{connection, preconditions};
use crate::progress::snapshot_cursor::Seq;
use crate::routing::mapping::RoutingHistory;

/// A page ends beyond this many bytes. Up to three pages are in memory: one being delivered, one ready, one being read.
const PAGE_BYTES: usize = 1024 * 1024;
/// A page ends at this many rows: longer pages of small rows are not read faster.
const PAGE_ROWS: i64 = 2_000;
/// Rows of the first page. The length of later pages follows from the size of the rows.
const FIRST_PAGE_ROWS: i64 = 64;

/// After this long without a row, another connection checks whether the server is still working: on a table without an
/// index on `seq` a page can take minutes.
const ASK_AFTER: Duration = Duration::from_secs(10);

/// The snapshot that shows no row.
const NOTHING_DELIVERED: &str = "1:1:";

/// A row of the table with its `seq`.
#[derive(Debug)]
pub struct StoredRow(PgRow);

impl StoredRow {
    pub fn seq(&self) -> Result<Seq, sqlx::Error> {
        self.0.try_get(0).map(Seq)
    }

    /// Its values, in the order of the layout's columns.
    pub fn values(&self) -> impl Iterator<Item = Column<'_>> + Clone {
        let count = self.0.len() / 2;
        (1..=count).map(move |index| match self.0.try_get_raw(index) {
            Ok(value) if !value.is_null() => value.as_bytes().map_or(Column::Null, Column::Binary),
            _ => self.oversized(count + index).map_or(Column::Null, Column::Oversized),
        })
    }

    /// The size of a value that was too large to be read.
    fn oversized(&self, index: usize) -> Option<usize> {
        let size: Option<i32> = self.0.try_get(index).ok()?;
        usize::try_from(size?).ok()
    }

    fn bytes(&self) -> usize {
        self.values().map(|value| if let Column::Binary(bytes) = value { bytes.len() } else { 0 }).sum()
    }
}

/// Reads pages in the background, one ahead.
pub struct Pages {
    pages: mpsc::Receiver<Result<Vec<StoredRow>, RelayError>>,
    layout: Layout,
    task: tokio::task::JoinHandle<()>,
}

impl Pages {
    /// Connects to `server`, where the stream comes from, and starts to read the columns that `mappings` need.
    pub async fn start(
        source: &Source,
        server: &Host,
        history: ClusterTimeline,
        mappings: &RoutingHistory,
        rest: RemainingSnapshot,
    ) -> Result<Pages, RelayError> {
        let access = connection::access(source)?;
        let mut sql = connection::connect_to(source, &access, server, "start").await?;
        preconditions::check_same_server(&mut sql, history).await?;
        let columns = columns(&mut sql, source, mappings).await?;
        let route_by = &mappings.current.rule.routing.by_field;
        let read = columns.iter().map(|column| (column.name.as_str(), read_as(&column.kind)));
        let layout = Layout::new(read, route_by)
            .map_err(|error| RelayError::new(ErrorKind::TableUnsuitable, error.to_string()))?;
        let reading = ReaderTask {
            process: connection::process(&mut sql).await?,
            source: source.clone(),
            server: server.clone(),
            sql,
            statement: statement(source, &columns, mappings),
            snapshot: rest.snapshot,
            delivered: rest
                .refill
                .map_or_else(|| NOTHING_DELIVERED.to_owned(), |refill| refill.delivered.as_text().to_owned()),
            read_to: rest.cursor,
            page_rows: FIRST_PAGE_ROWS,
        };
        let (sender, pages) = mpsc::channel(1);
        let task = tokio::spawn(reading.run(sender));
        Ok(Pages { pages, layout, task })
    }

    /// How to read the rows.
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// The next page; `None` after the last. Cancel-safe.
    pub async fn next(&mut self) -> Result<Option<Vec<StoredRow>>, RelayError> {
        self.pages.recv().await.transpose()
    }
}

impl Drop for Pages {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// The columns to read. The catalog is right here, because the rows are read from the table as it is now. Columns that
/// the stream does not carry are omitted, so that both kinds of records are alike.
async fn columns(
    sql: &mut PgConnection,
    source: &Source,
    mappings: &RoutingHistory,
) -> Result<Vec<TableColumn>, RelayError> {
    let columns = columns::of(sql, source).await?.into_iter().filter(|column| column.published);
    Ok(columns.filter(|column| is_read(&column.name) || mappings.routes_by(&column.name)).collect())
}

/// The type of a column in the query: JSON, and types with an unknown binary format, are read as text.
fn read_as(kind: &ColumnType) -> ColumnType {
    match kind {
        ColumnType::Jsonb => ColumnType::Json,
        ColumnType::Custom(_) => ColumnType::Text,
        kind => kind.clone(),
    }
}

/// Starts at the last row read, including it: a second row with the same `seq` would otherwise be skipped silently.
///
/// The values are followed by the sizes of those that are too large to be read. A document is converted to text once,
/// after the LIMIT; the size of a text or bytea is known without reading it.
fn statement(source: &Source, columns: &[TableColumn], mappings: &RoutingHistory) -> String {
    let (mut read, mut texts, mut values, mut sizes) = (vec![], vec![], vec![], vec![]);
    for (index, column) in columns.iter().enumerate() {
        let name = format!("c{index}");
        read.push(format!("o.{} AS {name}", column.quoted()));
        texts.push(match column.kind {
            ColumnType::Json | ColumnType::Jsonb => format!("{name}::text AS {name}"),
            ColumnType::Custom(_) => format!("{} AS {name}", text_form(&name)),
            // Not used, and of any size.
            ColumnType::Other(_) => format!("NULL AS {name}"),
            _ => name.clone(),
        });
        let large = match column.kind {
            ColumnType::Uuid | ColumnType::TimestampTz | ColumnType::Other(_) => "false".to_owned(),
            // The stream's binary format has a version byte, too.
            ColumnType::Jsonb => format!("octet_length({name}) > {}", mappings.largest_value() - 1),
            _ => format!("octet_length({name}) > {}", mappings.largest_value()),
        };
        values.push(format!("CASE WHEN {large} THEN NULL ELSE {name} END"));
        sizes.push(match large.as_str() {
            "false" => "NULL::int".to_owned(),
            large => format!("CASE WHEN {large} THEN octet_length({name}) END"),
        });
    }
    format!(
        "SELECT seq, {}, {}
         FROM (SELECT seq, {}
               FROM (SELECT o.seq, {} FROM {} o
                     WHERE o.seq >= $1 AND pg_visible_in_snapshot(o.xid, (SELECT $2::pg_snapshot))
                       AND NOT pg_visible_in_snapshot(o.xid, (SELECT $3::pg_snapshot))
                     ORDER BY o.seq LIMIT $4) page
               OFFSET 0) texts
         ORDER BY seq",
        values.join(", "),
        sizes.join(", "),
        texts.join(", "),
        read.join(", "),
        source.table.quoted()
    )
}

struct ReaderTask {
    sql: PgConnection,
    /// The process ID of the server process for this connection.
    process: i32,
    source: Source,
    server: Host,
    statement: String,
    /// Rows visible in this snapshot are read, in the text format of `pg_snapshot`.
    snapshot: String,
    /// Except those that are visible in this one, which are in Kafka.
    delivered: String,
    /// All of them up to this `seq` have been read, or need not be.
    read_to: Seq,
    page_rows: i64,
}

impl ReaderTask {
    async fn run(mut self, pages: mpsc::Sender<Result<Vec<StoredRow>, RelayError>>) {
        loop {
            let page = self.page().await;
            let last = page.as_ref().is_ok_and(Vec::is_empty);
            let failed = page.is_err();
            if last || pages.send(page).await.is_err() || failed {
                return;
            }
        }
    }

    /// Reads a page; an empty one is the last.
    async fn page(&mut self) -> Result<Vec<StoredRow>, RelayError> {
        let mut rows = sqlx::query(AssertSqlSafe(self.statement.as_str()))
            .bind(self.read_to.0)
            .bind(&self.snapshot)
            .bind(&self.delivered)
            .bind(self.page_rows + 1)
            .fetch(&mut self.sql);
        let (source, server, process) = (&self.source, &self.server, self.process);
        let (mut page, mut bytes, mut last, mut known) = (Vec::new(), 0, self.read_to, true);
        while bytes < PAGE_BYTES
            && let Some(row) = next_row(&mut rows, source, server, process).await?
        {
            let row = StoredRow(row);
            let seq = row.seq()?;
            if seq == last {
                if !std::mem::take(&mut known) {
                    let what = format!("the table has two rows with seq {}, so they have no order", seq.0);
                    return Err(RelayError::new(ErrorKind::StartRefused, what));
                }
                continue;
            }
            (last, known) = (seq, false);
            bytes += row.bytes();
            page.push(row);
        }
        drop(rows);
        self.read_to = last;
        // The driver reads and discards what a page leaves over, so pages of large rows get shorter.
        self.page_rows = if bytes >= PAGE_BYTES {
            i64::try_from(page.len()).unwrap_or(PAGE_ROWS)
        } else if bytes < PAGE_BYTES / 2 {
            (self.page_rows * 2).min(PAGE_ROWS)
        } else {
            self.page_rows
        };
        Ok(page)
    }
}

/// The next row. While none arrives, the server is checked now and then.
async fn next_row(
    rows: &mut (impl Stream<Item = Result<PgRow, sqlx::Error>> + Unpin),
    source: &Source,
    server: &Host,
    process: i32,
) -> Result<Option<PgRow>, RelayError> {
    loop {
        match tokio::time::timeout(ASK_AFTER, rows.try_next()).await {
            Ok(row) => return Ok(row?),
            Err(_) => check_server_busy(source, server, process).await?,
        }
    }
}

/// Fails if the server is not working for this connection: a connection that a firewall or a proxy has dropped stays
/// silent forever. If the server cannot be checked, nothing is concluded.
async fn check_server_busy(source: &Source, server: &Host, process: i32) -> Result<(), RelayError> {
    let is_at_work = async {
        let access = connection::access(source)?;
        let mut sql = connection::connect_to(source, &access, server, "copy check").await?;
        let at_work = "SELECT EXISTS (SELECT FROM pg_stat_activity
             WHERE pid = $1 AND state = 'active' AND wait_event_type IS DISTINCT FROM 'Client')";
        Ok::<bool, RelayError>(sqlx::query_scalar(at_work).bind(process).fetch_one(&mut sql).await?)
    };
    match tokio::time::timeout(ASK_AFTER, is_at_work).await {
        Ok(Ok(false)) => {
            let what = format!(
                "the connection that reads the rows from before the slot is silent, and server process {process} is not working for it"
            );
            Err(RelayError::new(ErrorKind::DatabaseUnreachable, what))
        }
        Ok(Ok(true)) | Err(_) => Ok(()),
        Ok(Err(error)) => {
            tracing::warn!(
                "cannot check whether the server still reads the rows from before the slot: {error}"
            );
            Ok(())
        }
    }
}
