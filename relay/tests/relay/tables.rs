//! Kinds of outbox tables: each property with which a SELECT shows a row that the stream does not have is rejected at
//! the start, reported by `doctor`, and stops a streaming relay. With all other properties every row arrives once. Each
//! case is one entry of a list; docs/OUTBOX.md, "What the table may be", describes them for users.

mod accepted;
mod changed_rows;
mod rejected;

use crate::fixture::Site;

/// The number of cases that run at the same time.
const AT_ONCE: usize = 4;

/// Five columns, without partitions.
const PLAIN: &str = "DROP TABLE outbox CASCADE;
    CREATE TABLE outbox (id uuid, aggregatetype text, aggregateid text, type text, payload jsonb);";
const RANGE: &str = "FOR VALUES FROM ('2020-01-01') TO ('2020-02-01')";
const VIA_ROOT: &str = "WITH (publish = 'insert', publish_via_partition_root = true)";

fn now(text: String) -> String {
    text.replace("source: {", "source: {start: Now, ")
}

/// A row in `table`.
fn row(site: &Site, table: &str, key: &str) -> String {
    format!(
        "INSERT INTO {table} (id, aggregatetype, aggregateid, type, payload)
         VALUES (gen_random_uuid(), '{}', '{key}', 't.v1', '1');",
        site.aggregate
    )
}
