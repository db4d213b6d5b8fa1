//! Unusual data: huge, aborted and interleaved transactions, odd keys and values, and tables that change while they are
//! streamed.

use std::collections::HashMap;

use sqlx::AssertSqlSafe;
use sqlx::postgres::PgConnection;
use testbed::load::{Backlog, write_backlog};
use testbed::records::Record;
use testbed::wait;

use crate::fixture::{Site, TIMEOUT, heavy_permit};

const MIB: u64 = 1024 * 1024;
/// The start of a row, up to its payload.
const INSERT: &str = "INSERT INTO outbox (id, aggregatetype, aggregateid, type, payload)";

async fn run(sql: &mut PgConnection, statement: String) {
    sqlx::raw_sql(AssertSqlSafe(statement)).execute(sql).await.unwrap();
}

/// `count` rows of one key, numbered.
fn rows(site: &Site, key: &str, count: usize) -> String {
    let aggregate = &site.aggregate;
    format!(
        "{INSERT} SELECT gen_random_uuid(), '{aggregate}', '{key}', 'n.v1', jsonb_build_object('n', n)
         FROM generate_series(1, {count}) n;"
    )
}

fn values_by_key(records: &[Record]) -> HashMap<String, Vec<String>> {
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    let mut values: HashMap<String, Vec<String>> = HashMap::new();
    for record in records {
        let key = text(record.key.as_ref().unwrap());
        values.entry(key).or_default().push(text(record.value.as_ref().unwrap()));
    }
    values
}

async fn until_key(site: &Site, key: &str) {
    wait::until(format!("a record of key '{key}'"), TIMEOUT, async || {
        let records = site.records().await;
        let there = records.iter().any(|record| record.key.as_deref() == Some(key.as_bytes()));
        if there { Ok(()) } else { Err(format!("{} records", records.len())) }
    })
    .await
    .unwrap();
}

/// A transaction of any size passes through bounded memory.
#[tokio::test]
async fn one_transaction_of_two_hundred_thousand_rows() {
    let _permit = heavy_permit().await;
    let site = Site::shared().await;
    let relay = site.relay().await;
    let backlog = Backlog {
        rows: 200_000,
        rows_per_transaction: vec![200_000],
        aggregatetype: site.aggregate.clone(),
        ..Backlog::default()
    };
    write_backlog(site.database.url(), &backlog).await.unwrap();
    wait::until("200,000 acknowledged events", TIMEOUT, async || {
        let events = relay.metric("outbox_relay_events_total").await;
        if events >= 200_000.0 { Ok(()) } else { Err(events) }
    })
    .await
    .unwrap();
    let (_, peak) = relay.program.memory().unwrap();
    assert!(peak < 64 * MIB, "the relay had {} MiB at its peak", peak / MIB);
    site.judge_table(&relay).await;
}

/// Twenty transactions that are open at the same time and end in another order than they began; a large one
/// that is aborted; one that rolls most of itself back to a savepoint.
#[tokio::test]
async fn transactions_that_overlap_and_abort() {
    let _permit = heavy_permit().await;
    let site = Site::shared().await;
    let relay = site.relay().await;
    let load = site.start_load(300.0).await;
    let mut open = Vec::new();
    for n in 0..20 {
        let mut sql = site.sql().await;
        run(&mut sql, format!("BEGIN; {}", rows(&site, &format!("open-{n}"), 50))).await;
        open.push((n, sql));
    }
    site.execute(&format!("BEGIN; {} ROLLBACK;", rows(&site, "aborted", 100_000))).await;
    site.execute(&format!(
        "BEGIN; {} SAVEPOINT one; {} SAVEPOINT two; {} RELEASE two; ROLLBACK TO one; {} COMMIT;",
        rows(&site, "kept", 3),
        rows(&site, "aborted", 20_000),
        rows(&site, "aborted", 20_000),
        rows(&site, "kept", 3)
    ))
    .await;
    for (n, sql) in open.iter_mut().rev() {
        run(sql, rows(&site, &format!("open-{n}"), 50)).await;
        run(sql, if *n % 5 == 0 { "ROLLBACK" } else { "COMMIT" }.to_owned()).await;
    }
    load.stop().await.unwrap();
    site.judge_table(&relay).await;
    let values = values_by_key(&site.records().await);
    assert_eq!(values["kept"].len(), 6);
    assert!(!values.contains_key("aborted") && !values.contains_key("open-5"));
    assert_eq!(values["open-1"].len(), 100);
    assert!(relay.program.memory().unwrap().1 < 64 * MIB);
}

/// Keys and values are delivered exactly as written.
#[tokio::test]
async fn keys_and_values_of_every_kind() {
    let site = Site::shared().await;
    let relay = site.relay().await;
    let row = |key: &str, payload: &str| {
        format!("{INSERT} VALUES (gen_random_uuid(), '{}', {key}, 't.v1', {payload});", site.aggregate)
    };
    let statements = [
        row("''", "'{}'"),
        row("' '", "'{}'"),
        row("repeat('k', 65536)", "'{}'"),
        row("'\u{17c}\u{f3}\u{142}\u{107} \u{1f6d2}'", "'\"\u{1f6d2}\"'"),
        row("E'line\\r\\nend\\t'", "'{}'"),
        row("'tombstone'", "NULL"),
        row("'json null'", "'null'"),
        row("'large'", "jsonb_build_object('x', repeat('y', 900000))"),
    ];
    for statement in &statements {
        site.execute(statement).await;
    }
    let records = site.until_records(statements.len()).await;
    site.judge_table(&relay).await;
    let value = |key: &str| {
        let record = records.iter().find(|record| record.key.as_deref() == Some(key.as_bytes()));
        record.unwrap_or_else(|| panic!("no record of key '{key}'")).value.clone()
    };
    assert_eq!(value("tombstone"), None);
    assert_eq!(value("json null").as_deref(), Some(&b"null"[..]));
    assert_eq!(value("\u{17c}\u{f3}\u{142}\u{107} \u{1f6d2}").as_deref(), Some("\"\u{1f6d2}\"".as_bytes()));
    assert_eq!(value(&"k".repeat(65536)).as_deref(), Some(&b"{}"[..]));
}

/// The relay delivers rows, and an id written twice is two rows.
#[tokio::test]
async fn an_id_written_twice_is_delivered_twice() {
    let site = Site::shared().await;
    let _relay = site.relay().await;
    for n in 1..=2 {
        let id = "0190a6f8-0000-7000-8000-000000000001";
        site.execute(&format!("{INSERT} VALUES ('{id}', '{}', 'k', 't.v1', '{n}')", site.aggregate)).await;
    }
    site.insert([("k", 3)]).await;
    let values = values_by_key(&site.until_records(3).await);
    assert_eq!(values["k"], ["1", "2", "{\"n\": 3}"]);
}

/// Updates, deletes and truncates send nothing, even if a publication created by hand publishes them.
#[tokio::test]
async fn updates_deletes_and_truncates_send_nothing() {
    for publish in ["insert", "insert, update, delete, truncate"] {
        let site = Site::shared().await;
        let identities = "SELECT string_agg(format('ALTER TABLE %s REPLICA IDENTITY FULL', relid), ';')
                          FROM pg_partition_tree('outbox')";
        site.execute(&site.value(identities).await.unwrap()).await;
        site.execute(&format!(
            "CREATE PUBLICATION outbox FOR TABLE outbox
             WITH (publish = '{publish}', publish_via_partition_root = true)"
        ))
        .await;
        let relay = site.relay().await;
        site.insert([("a", 1), ("b", 2)]).await;
        site.until_records(2).await;
        site.execute("UPDATE outbox SET payload = '{\"changed\": true}'").await;
        site.execute("DELETE FROM outbox WHERE aggregateid = 'a'").await;
        site.execute("TRUNCATE outbox").await;
        site.insert([("c", 3)]).await;
        let values = values_by_key(&site.until_records(3).await);
        for (key, value) in [("a", "{\"n\": 1}"), ("b", "{\"n\": 2}"), ("c", "{\"n\": 3}")] {
            assert_eq!(values[key], [value], "{publish}");
        }
        site.until_confirmed(&relay).await;
        relay.until_ready().await;
    }
}

/// Columns are added, renamed and dropped, between transactions and within one.
#[tokio::test]
async fn ddl_while_streaming_and_within_a_transaction() {
    let _permit = heavy_permit().await;
    let site = Site::shared().await;
    let relay = site.relay().await;
    let load = site.start_load(200.0).await;
    let alter = |change: &str| format!("ALTER TABLE outbox {change};");
    site.execute(&alter("ADD COLUMN one text DEFAULT 'one'")).await;
    site.execute(&rows(&site, "ddl", 2)).await;
    let statements = [
        "BEGIN;".to_owned(),
        rows(&site, "ddl", 2),
        alter("ADD COLUMN two int[]"),
        rows(&site, "ddl", 2),
        alter("RENAME COLUMN one TO uno"),
        rows(&site, "ddl", 2),
        alter("DROP COLUMN uno, DROP COLUMN tracestate"),
        rows(&site, "ddl", 2),
        alter("ALTER COLUMN type TYPE varchar(200)"),
        rows(&site, "ddl", 2),
        "COMMIT;".to_owned(),
    ];
    site.execute(&statements.concat()).await;
    site.execute(&alter("DROP COLUMN two")).await;
    site.execute(&rows(&site, "ddl", 2)).await;
    load.stop().await.unwrap();
    site.judge_table(&relay).await;
    assert_eq!(values_by_key(&site.records().await)["ddl"].len(), 14);
}

/// A column that the relay needs is dropped. No row is skipped; the error names the transaction and the column.
#[tokio::test]
async fn a_required_column_is_dropped_and_added_again() {
    let site = Site::shared().await;
    let relay = site.relay().await;
    site.insert([("k", 1)]).await;
    // No row was written without the column, so there is no error.
    site.execute("ALTER TABLE outbox RENAME payload TO body").await;
    site.execute("ALTER TABLE outbox RENAME body TO payload").await;
    site.insert([("k", 2)]).await;
    site.until_records(2).await;
    site.execute("ALTER TABLE outbox RENAME payload TO body").await;
    site.execute(&rows(&site, "k", 1).replace("payload", "body")).await;
    relay.until("/readyz", 503, "TableUnsuitable").await;
    site.execute("ALTER TABLE outbox RENAME body TO payload").await;
    site.insert([("k", 4)]).await;
    let said = relay.until("/readyz", 503, "TableUnsuitable").await;
    assert_eq!(site.records().await.len(), 2, "a row was skipped");
    // The recovery: write the row again in the current table, and skip its earlier transaction.
    relay.stop().await;
    let commit = said.split("commit is at ").nth(1).and_then(|text| text.split(": ").next()).unwrap();
    site.execute(&format!("UPDATE outbox_checkpoint SET confirmed_lsn = pg_lsn '{commit}' + 1")).await;
    site.insert([("k", 3)]).await;
    let relay = site.relay().await;
    site.until_confirmed(&relay).await;
    assert_eq!(site.records().await.len(), 4);
}

/// Partitions are created, attached, detached and dropped while the relay streams. Rows that were in a table
/// before it was attached are not events, and rows of a detached table are not events any more.
#[tokio::test]
async fn partitions_come_and_go_while_the_relay_streams() {
    let _permit = heavy_permit().await;
    partitions_come_and_go(Site::shared().await).await;
}

pub async fn partitions_come_and_go(site: Site) {
    let relay = site.relay().await;
    let load = site.start_load(300.0).await;
    let row = |table: &str, key: &str, day: &str| {
        format!(
            "INSERT INTO {table} (id, aggregatetype, aggregateid, type, payload, occurred_at)
             VALUES (gen_random_uuid(), '{}', '{key}', 't.v1', '1', '{day}')",
            site.aggregate
        )
    };
    let of = |day: &str, end: &str| format!("FOR VALUES FROM ('{day}') TO ('{end}')");
    site.execute(&format!("CREATE TABLE made PARTITION OF outbox {}", of("2020-01-01", "2020-01-02"))).await;
    site.execute(&row("outbox", "made", "2020-01-01 12:00Z")).await;
    site.execute("CREATE TABLE attached (LIKE outbox INCLUDING DEFAULTS INCLUDING CONSTRAINTS)").await;
    site.execute(
        "INSERT INTO attached (id, aggregatetype, aggregateid, type, payload, occurred_at, seq)
         VALUES (gen_random_uuid(), 'x', 'before', 't.v1', '1', '2020-01-02 12:00Z', 0)",
    )
    .await;
    site.execute(&format!("ALTER TABLE outbox ATTACH PARTITION attached {}", of("2020-01-02", "2020-01-03")))
        .await;
    site.execute(&row("outbox", "attached", "2020-01-02 12:00Z")).await;
    // Before version 17 an attached partition does not inherit the identity column.
    site.execute(&format!(
        "INSERT INTO attached (id, aggregatetype, aggregateid, type, payload, occurred_at, seq) OVERRIDING SYSTEM VALUE
         VALUES (gen_random_uuid(), '{}', 'directly', 't.v1', '1', '2020-01-02 12:00Z',
                 nextval(pg_get_serial_sequence('outbox', 'seq')))",
        site.aggregate
    ))
    .await;
    until_key(&site, "directly").await;
    site.execute("ALTER TABLE outbox DETACH PARTITION attached").await;
    site.execute("ALTER TABLE attached ALTER COLUMN seq DROP NOT NULL").await;
    site.execute(&row("attached", "detached", "2020-01-02 12:00Z")).await;
    site.execute(&row("outbox", "in default", "2020-01-02 12:00Z")).await;
    site.execute("DROP TABLE made").await;
    site.execute(&row("outbox", "after the drop", "2020-01-01 12:00Z")).await;
    until_key(&site, "after the drop").await;
    load.stop().await.unwrap();
    site.until_confirmed(&relay).await;
    let values = values_by_key(&site.records().await);
    for key in ["made", "attached", "directly", "in default", "after the drop"] {
        assert_eq!(values[key].len(), 1, "{key}");
    }
    assert!(!values.contains_key("detached") && !values.contains_key("before"));
}

/// A clock that jumps. The event arrives. The Kafka timestamp may differ, but `ce_time` is the writer's time.
#[tokio::test]
async fn times_far_in_the_past_and_in_the_future() {
    let site = Site::shared().await;
    let _relay = site.relay().await;
    let times = [
        ("0001-01-01T00:00:00Z", "0001-01-01T00:00:00.000000Z"),
        ("1969-12-31T23:59:59.999999Z", "1969-12-31T23:59:59.999999Z"),
        ("2001-02-03T04:05:06Z", "2001-02-03T04:05:06.000000Z"),
        ("2200-01-01T00:00:00Z", "2200-01-01T00:00:00.000000Z"),
        ("9999-12-31T23:59:59Z", "9999-12-31T23:59:59.000000Z"),
        // A time outside the years 1 to 9999 is replaced by the commit time.
        ("infinity", ""),
        ("-infinity", ""),
        ("0044-03-15T12:00:00Z BC", ""),
        ("12345-01-01T00:00:00Z", ""),
    ];
    for (time, _) in &times {
        site.execute(&format!(
            "INSERT INTO outbox (id, aggregatetype, aggregateid, type, payload, occurred_at)
             VALUES (gen_random_uuid(), '{}', '{time}', 't.v1', '1', '{time}')",
            site.aggregate
        ))
        .await;
    }
    let records = site.until_records(times.len()).await;
    for (time, shown) in times {
        let record = records.iter().find(|record| record.key.as_deref() == Some(time.as_bytes())).unwrap();
        let said = record.header("ce_time").unwrap();
        match shown {
            "" => {
                assert!(said.len() == "0001-01-01T00:00:00.000000Z".len() && said > "2026", "{time}: {said}")
            }
            shown => assert_eq!(said, shown),
        }
    }
}

/// Numbers that JSON does not support, arrays, bytes and text, in each type of payload.
#[tokio::test]
async fn payloads_of_odd_values() {
    for (kind, payload, expected) in [
        ("jsonb", "to_jsonb('NaN'::float8)", "\"NaN\""),
        ("jsonb", "to_jsonb(ARRAY['-Infinity'::float8, 0.5])", "[\"-Infinity\", 0.5]"),
        ("jsonb", "'123456789012345678901234567890.10'::jsonb", "123456789012345678901234567890.10"),
        ("json", "to_json(ARRAY[[1,2],[3,4]])", "[[1,2],[3,4]]"),
        ("text", "'{1,2}'::int[]::text", "{1,2}"),
        ("varchar", "E'\\t\\u2028'", "\t\u{2028}"),
        ("bytea", "'\\x5c78ff'::bytea", ""),
    ] {
        let site = Site::shared().await;
        site.execute(&format!("ALTER TABLE outbox ALTER COLUMN payload TYPE {kind} USING NULL")).await;
        let _relay = site.relay().await;
        site.execute(&format!(
            "{INSERT} VALUES (gen_random_uuid(), '{}', 'k', 't.v1', {payload})",
            site.aggregate
        ))
        .await;
        let records = site.until_records(1).await;
        let value = records[0].value.as_deref().unwrap();
        let expected = if kind == "bytea" { &b"\\x\xff"[..] } else { expected.as_bytes() };
        assert_eq!(value, expected, "{kind}: {payload}");
    }
}

/// A type whose wire format a consumer could not read is rejected, not sent as it is.
#[tokio::test]
async fn columns_of_types_that_cannot_be_read_are_refused() {
    for (column, kind, value) in [
        ("payload", "int[]", "ARRAY[1]"),
        ("payload", "numeric", "'NaN'::numeric"),
        ("payload", "number_domain", "7"),
        ("headers", "array_domain", "ARRAY[1]"),
        ("aggregateid", "bigint", "7"),
    ] {
        let site = Site::shared().await;
        site.execute("CREATE DOMAIN number_domain AS numeric; CREATE DOMAIN array_domain AS int[]").await;
        site.execute(
            "ALTER TABLE outbox DROP CONSTRAINT outbox_headers_object, ALTER COLUMN aggregateid DROP NOT NULL",
        )
        .await;
        site.execute(&format!("ALTER TABLE outbox ALTER COLUMN {column} TYPE {kind} USING NULL")).await;
        let relay = site.launch(|text| text);
        relay.until("/readyz", 503, "TableUnsuitable").await;
        let values = [("payload", "NULL"), ("headers", "NULL"), ("aggregateid", "NULL")];
        let values = values.map(|(name, none)| if name == column { value } else { none });
        site.execute(&format!(
            "INSERT INTO outbox (id, aggregatetype, type, payload, headers, aggregateid)
             VALUES (gen_random_uuid(), '{}', 't.v1', {})",
            site.aggregate,
            values.join(", ")
        ))
        .await;
        let said = relay.until("/readyz", 503, "TableUnsuitable").await;
        assert!(said.contains(column), "{said}");
        assert!(site.records().await.is_empty());
    }
}

/// A uuid key is sent as text, both from the initial snapshot and from the stream.
#[tokio::test]
async fn a_uuid_is_a_key_as_its_text() {
    const KEY: &str = "0198f3a2-7c1d-7e4b-9a55-1f2e3d4c5b6a";
    let site = Site::shared().await;
    site.execute("ALTER TABLE outbox ALTER COLUMN aggregateid TYPE uuid USING aggregateid::uuid").await;
    site.insert([(KEY, 1)]).await;
    let _relay = site.relay().await;
    site.until_records(1).await;
    site.insert([(KEY, 2)]).await;
    let records = site.until_records(2).await;
    assert!(records.iter().all(|record| record.key.as_deref() == Some(KEY.as_bytes())), "{records:?}");
    assert_eq!(records[0].partition, records[1].partition);
}
