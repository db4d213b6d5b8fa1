//! The table changes during a refill: rows are committed while the slot is being created, removed after their delivery,
//! changed, or detached with their partition.

use std::collections::HashSet;

use sqlx::AssertSqlSafe;
use testbed::records::Record;

use crate::audit::{audit, differences};
use crate::fixture::long_matrix;

use super::*;

/// The number of missing rows.
const ROWS: usize = 1_000;

/// A partition of January 2020.
async fn create_partition(site: &Site, day: u32) {
    site.execute(&format!(
        "CREATE TABLE outbox_p202001{day:02} PARTITION OF outbox
         FOR VALUES FROM ('2020-01-{day:02} 00:00Z') TO (timestamptz '2020-01-{day:02} 00:00Z' + interval '1 day')"
    ))
    .await;
}

async fn insert_into(site: &Site, day: u32, rows: usize) {
    site.execute(&format!(
        "INSERT INTO outbox (id, aggregatetype, aggregateid, type, occurred_at, payload)
         SELECT gen_random_uuid(), '{}', 'key-' || n % 100, 'n.v1', '2020-01-{day:02} 12:00Z', jsonb_build_object('n', n)
         FROM generate_series(1, {rows}) n",
        site.aggregate
    ))
    .await;
}

async fn exists(site: &Site, day: u32) -> bool {
    site.value(&format!("to_regclass('outbox_p202001{day:02}') IS NOT NULL")).await.unwrap() == "true"
}

/// The call of retention, with the shortest time: every partition of the past is due.
async fn maintain(site: &Site) {
    site.execute("SELECT * FROM outbox_maintain('0 hours', '3 days')").await;
}

/// Rows of the first day are known to be delivered, those of the second day are missing, and a relay has died in the
/// middle of the refill.
async fn died_in_the_middle(site: &Site) {
    let relay = site.launch(refilling);
    relay.until_ready().await;
    create_partition(site, 1).await;
    create_partition(site, 2).await;
    insert_into(site, 1, 50).await;
    site.until_records(50).await;
    knows_all_rows(site).await;
    relay.kill().await;
    drop_slot(site).await;
    insert_into(site, 2, ROWS).await;
    let relay = site.launch(refilling_slowly);
    until_in_the_middle(&relay).await;
    relay.kill().await;
}

fn assert_none_twice(records: &[Record]) {
    let ids: HashSet<_> = records.iter().map(Record::event_id).collect();
    assert_eq!(ids.len(), records.len());
}

/// Retention removes what is delivered, and keeps what is missing until it is known to be delivered.
#[tokio::test]
async fn retention_keeps_missing_rows_until_the_refill_is_complete() {
    let _permit = heavy_permit().await;
    let site = Site::shared().await;
    died_in_the_middle(&site).await;
    site.execute(
        "DELETE FROM outbox USING outbox_checkpoint WHERE pg_visible_in_snapshot(xid, delivered_snapshot)",
    )
    .await;
    maintain(&site).await;
    assert!(exists(&site, 2).await);
    let relay = site.launch(refilling_slowly);
    wait::until("the end of the refill", TIMEOUT, async || {
        let complete = site.value("SELECT start_phase IS NULL FROM outbox_checkpoint").await;
        // Read first: the refill may end in between.
        if complete.as_deref() == Some("true") {
            return Ok(());
        }
        maintain(&site).await;
        let refills = site.value("SELECT start_phase IS NOT NULL FROM outbox_checkpoint").await;
        assert!(exists(&site, 2).await || refills.as_deref() == Some("false"));
        Err("in progress")
    })
    .await
    .unwrap();
    relay.until("/readyz", 200, "streaming").await;
    wait::until("the second day dropped", TIMEOUT, async || {
        maintain(&site).await;
        site.insert([("k", 1)]).await;
        if exists(&site, 2).await { Err("it is there") } else { Ok(()) }
    })
    .await
    .unwrap();
    assert!(!exists(&site, 1).await);
    let records = site.records().await;
    assert_none_twice(&records);
    assert_eq!(refilled(&site, "SlotLost").await, ROWS);
    assert_complete(&site).await;
}

/// A missing row is delivered once, as it is when the refill reads it. One that was deleted has no event.
#[tokio::test]
async fn missing_rows_that_change_are_delivered_as_they_are_then() {
    if !long_matrix() {
        return;
    }
    let _permit = heavy_permit().await;
    let site = Site::shared().await;
    died_in_the_middle(&site).await;
    let last = "seq = (SELECT max(seq) FROM outbox)";
    site.execute(&format!("UPDATE outbox SET payload = '{{\"n\": -1}}' WHERE {last}")).await;
    site.execute("DELETE FROM outbox WHERE seq = (SELECT max(seq) - 1 FROM outbox)").await;
    let relay = site.launch(refilling);
    relay.until("/readyz", 200, "streaming").await;
    let records = site.records().await;
    let changed = |record: &&Record| record.value.as_deref() == Some(br#"{"n": -1}"#);
    assert_eq!(records.iter().filter(changed).count(), 1);
    assert_none_twice(&records);
    assert_eq!((records.len(), refilled(&site, "SlotLost").await), (50 + ROWS - 1, ROWS - 1));
    assert_complete(&site).await;
}

/// The rows of a detached partition are not in the table. Attached again before the refill ends they are delivered,
/// and afterwards an audit finds them.
#[tokio::test]
async fn rows_of_a_detached_partition_are_delivered_if_it_is_attached_again() {
    if !long_matrix() {
        return;
    }
    let _permit = heavy_permit().await;
    let site = Site::shared().await;
    died_in_the_middle(&site).await;
    site.execute("ALTER TABLE outbox DETACH PARTITION outbox_p20200102").await;
    let attach = "ALTER TABLE outbox ATTACH PARTITION outbox_p20200102
                  FOR VALUES FROM ('2020-01-02 00:00Z') TO ('2020-01-03 00:00Z')";
    let in_kafka = site.records().await.len();
    let relay = site.launch(refilling);
    relay.until("/readyz", 200, "streaming").await;
    assert_eq!(site.records().await.len(), in_kafka, "the other rows are not in the table");
    site.execute(attach).await;
    site.insert([("k", 1)]).await;
    site.until_records(in_kafka + 1).await;
    site.until_confirmed(&relay).await;
    let (found, _) = audit(&site, &["--since", "2020-01-01T00:00:00Z"]).await;
    assert_eq!(differences(&found)[0], 50 + ROWS - in_kafka, "{found}");
    relay.stop().await;
}

/// Transactions that are prepared before the gap, and while the new slot is being created.
#[tokio::test]
async fn prepared_transactions_that_straddle_the_gap_are_delivered_once() {
    if !long_matrix() {
        return;
    }
    let _permit = heavy_permit().await;
    let servers = OwnServers::start(PgVersion::V18, &[("max_prepared_transactions", "4")]).await;
    let site = servers.site().await;
    let relay = site.launch(refilling);
    relay.until_ready().await;
    let prepare = async |name: &str| {
        let insert = insert_many(&site, 10);
        let sql = format!("BEGIN; {insert}; PREPARE TRANSACTION '{name}'");
        sqlx::raw_sql(AssertSqlSafe(sql)).execute(&mut site.sql().await).await.unwrap();
    };
    prepare("before").await;
    site.insert((0..20).map(|n| ("k", n))).await;
    site.until_records(20).await;
    site.until_value("SELECT delivered_snapshot::text <> '1:1:' FROM outbox_checkpoint", "true").await;
    relay.kill().await;
    drop_slot(&site).await;
    site.insert([("k", 20)]).await;
    let relay = site.launch(refilling);
    relay.until("/readyz", 503, "SlotCreationWaits").await;
    prepare("during").await;
    site.insert([("k", 21)]).await;
    site.execute("COMMIT PREPARED 'before'").await;
    site.execute("COMMIT PREPARED 'during'").await;
    relay.until("/readyz", 200, "streaming").await;
    site.insert([("k", 22)]).await;
    assert_each_row_once(&site, &relay).await;
}
