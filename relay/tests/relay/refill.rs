//! `source.onGap: Refill`: a lost slot is replaced, and exactly the rows that are missing in Kafka are delivered from the
//! table. docs/REFILL.md is the design.

use sqlx::{Connection, Executor};
use testbed::kafka::delete_records;
use testbed::load::Load;
use testbed::postgres::{PgVersion, Shutdown};
use testbed::wait;

use crate::failover;
use crate::fixture::{OwnServers, Relay, Site, TIMEOUT, assert_correct, heavy_permit};

mod evidence;
#[cfg(feature = "failpoints")]
mod killed;
mod large;
mod paused;
mod rounds;
mod rows;
mod switched_off;
mod two_relays;

/// Rows per second.
const RATE: f64 = 400.0;

fn refilling(text: String) -> String {
    text.replace("slot: {", "onGap: Refill, slot: {")
}

/// Refills so slowly that a test finds the relay in the middle of it.
fn refilling_slowly(text: String) -> String {
    refilling(text) + "delivery: {maxInFlightEvents: 10}\n"
}

/// Inserts this many rows in one transaction.
fn insert_many(site: &Site, rows: usize) -> String {
    format!(
        "INSERT INTO outbox (id, aggregatetype, aggregateid, type, payload)
         SELECT gen_random_uuid(), '{}', 'key-' || n % 100, 'n.v1', jsonb_build_object('n', n)
         FROM generate_series(1, {rows}) n",
        site.aggregate
    )
}

/// Drops the slot while relays run, and inserts rows that no slot streams: a new one waits for the transaction.
async fn drop_slot_under_relays(site: &Site, rows: usize) {
    site.execute(&format!(
        "DO $$ BEGIN
             PERFORM pg_current_xact_id();
             LOOP
                 PERFORM pg_terminate_backend(active_pid) FROM pg_replication_slots
                 WHERE slot_name = '{0}' AND active_pid IS NOT NULL;
                 BEGIN
                     PERFORM pg_drop_replication_slot('{0}');
                     EXIT;
                 EXCEPTION WHEN object_in_use THEN
                     NULL;
                 END;
             END LOOP;
             {1};
         END $$",
        site.slot,
        insert_many(site, rows)
    ))
    .await;
}

/// How many rows the relay has refilled in this session; `None` while it does not refill.
async fn refilled_so_far(relay: &Relay) -> Option<u64> {
    let (_, text) = relay.ask("/status").await?;
    let status: serde_json::Value = serde_json::from_str(&text).unwrap();
    (status["phase"] == "refilling").then(|| status["copiedRows"].as_u64().unwrap_or(0))
}

/// Waits until the relay is in the middle of a refill.
async fn until_in_the_middle(relay: &Relay) {
    wait::until("the middle of a refill", TIMEOUT, async || match refilled_so_far(relay).await {
        Some(rows) if rows >= 200 => Ok(()),
        seen => Err(format!("{seen:?}\n{}", relay.program.log_tail())),
    })
    .await
    .unwrap();
}

/// Everything in the checkpoint that says what is known to be delivered, and how far the refill is.
async fn refill_state(site: &Site) -> String {
    let row = "SELECT (confirmed_lsn, delivered_snapshot, snapshot_offsets, refill_cause, start_phase, start_lsn, start_snapshot,
                       start_cursor)::text FROM outbox_checkpoint";
    site.value(row).await.unwrap()
}

/// No refill is in progress.
async fn assert_complete(site: &Site) {
    let open = "SELECT num_nonnulls(refill_cause, start_phase, start_lsn, start_snapshot, start_cursor) FROM outbox_checkpoint";
    assert_eq!(site.value(open).await.as_deref(), Some("0"));
}

/// Kafka has every row of the table once, and nothing else.
async fn assert_each_row_once(site: &Site, relay: &Relay) {
    relay.until("/readyz", 200, "streaming").await;
    site.judge_table(relay).await;
    let rows = site.value("SELECT count(*) FROM outbox").await.unwrap();
    assert_eq!(site.records().await.len().to_string(), rows);
    assert_complete(site).await;
}

/// A relay that has delivered for a while under load, and is killed: Kafka has rows that the checkpoint does not know of.
async fn delivered_and_killed(site: &Site) -> Load {
    let relay = site.launch(refilling);
    relay.until_ready().await;
    let load = site.start_load(RATE).await;
    site.until_records(200).await;
    knows_delivered_rows(site).await;
    let delivered = site.records().await.len();
    site.until_records(delivered + 100).await;
    relay.kill().await;
    load
}

/// Waits until the checkpoint says which rows were delivered.
async fn knows_delivered_rows(site: &Site) {
    let known =
        "SELECT delivered_snapshot::text <> '1:1:' AND snapshot_offsets <> '{}' FROM outbox_checkpoint";
    site.until_value(known, "true").await;
}

/// Waits until the checkpoint says that all rows were delivered.
async fn knows_all_rows(site: &Site) {
    let known =
        "SELECT bool_and(pg_visible_in_snapshot(xid, delivered_snapshot)) FROM outbox, outbox_checkpoint";
    site.until_value(known, "true").await;
}

/// Drops the slot as soon as the server has noticed that the relay is gone.
async fn drop_slot(site: &Site) {
    site.until_value(&slot_is("NOT active", site), "true").await;
    site.execute(&format!("SELECT pg_drop_replication_slot('{}')", site.slot)).await;
}

fn slot_is(condition: &str, site: &Site) -> String {
    format!("SELECT {condition} FROM pg_replication_slots WHERE slot_name = '{}'", site.slot)
}

/// Waits until the table has this many more rows.
async fn until_more_rows(site: &Site, more: usize) {
    let rows: usize = site.value("SELECT count(*) FROM outbox").await.unwrap().parse().unwrap();
    site.until_value(&format!("SELECT count(*) >= {} FROM outbox", rows + more), "true").await;
}

/// Kafka has every row once, in order, and the refilled ones say so.
async fn ends_well(site: &Site, load: Load, relay: &Relay, cause: &str) {
    relay.until("/readyz", 200, "streaming").await;
    let before = site.records().await.len();
    site.until_records(before + 50).await;
    assert_correct(&site.verdict(load, relay).await);
    assert_eq!(relay.metric("outbox_relay_duplicates_detected_total").await, 0.0);
    let refilled = refilled(site, cause).await;
    assert!(refilled >= 50, "{refilled}");
    assert_complete(site).await;
}

/// The number of records with the header of a refill, of this cause and no other.
async fn refilled(site: &Site, cause: &str) -> usize {
    let records = site.records().await;
    let marked: Vec<&str> = records.iter().filter_map(|record| record.header("ce_refill")).collect();
    assert!(marked.iter().all(|shown| *shown == cause), "{marked:?}");
    marked.len()
}

async fn counts(relay: &Relay, site: &Site, cause: &str) {
    let series = |name: &str| format!("outbox_relay_{name}{{cause=\"{cause}\"}}");
    assert_eq!(relay.metric(&series("gap_total")).await, 1.0);
    assert_eq!(relay.metric("outbox_relay_gap_total").await, 1.0);
    let rows = relay.metric(&series("refilled_rows_total")).await;
    assert_eq!(rows as usize, refilled(site, cause).await);
}

#[tokio::test]
async fn a_slot_dropped_while_the_relay_is_down_is_refilled() {
    let _permit = heavy_permit().await;
    let site = Site::shared().await;
    let load = delivered_and_killed(&site).await;
    drop_slot(&site).await;
    until_more_rows(&site, 200).await;
    // Without the setting the relay stops at the gap and changes nothing.
    let stopped = site.launch(|text| text);
    stopped.until("/readyz", 503, "SlotLost").await;
    let doctor = site.command(stopped.admin, refilling, &["doctor"]).await;
    assert!(doctor.out.contains("a relay would replace the slot"), "{doctor:?}");
    stopped.kill().await;
    let relay = site.launch(refilling);
    ends_well(&site, load, &relay, "SlotLost").await;
    counts(&relay, &site, "SlotLost").await;
}

#[tokio::test]
async fn a_slot_that_another_client_recreated_is_replaced_and_refilled() {
    let _permit = heavy_permit().await;
    let site = Site::shared().await;
    let load = delivered_and_killed(&site).await;
    drop_slot(&site).await;
    until_more_rows(&site, 100).await;
    site.execute(&format!("SELECT pg_create_logical_replication_slot('{}', 'pgoutput')", site.slot)).await;
    until_more_rows(&site, 100).await;
    let relay = site.launch(refilling);
    ends_well(&site, load, &relay, "SlotAhead").await;
    counts(&relay, &site, "SlotAhead").await;
}

#[tokio::test]
async fn a_slot_that_was_advanced_by_hand_is_replaced_and_refilled() {
    let _permit = heavy_permit().await;
    let site = Site::shared().await;
    let load = delivered_and_killed(&site).await;
    until_more_rows(&site, 100).await;
    site.until_value(&slot_is("NOT active", &site), "true").await;
    site.execute(&format!("SELECT pg_replication_slot_advance('{}', pg_current_wal_lsn())", site.slot)).await;
    let relay = site.launch(refilling);
    ends_well(&site, load, &relay, "SlotAhead").await;
    counts(&relay, &site, "SlotAhead").await;
}

#[tokio::test]
async fn an_invalidated_slot_is_refilled() {
    let _permit = heavy_permit().await;
    let servers = OwnServers::start(PgVersion::V18, &[("max_slot_wal_keep_size", "1MB")]).await;
    let site = servers.site().await;
    let load = delivered_and_killed(&site).await;
    until_more_rows(&site, 100).await;
    for _ in 0..3 {
        site.execute("SELECT pg_switch_wal()").await;
        site.execute("CHECKPOINT").await;
        until_more_rows(&site, 10).await;
    }
    site.until_value(&slot_is("wal_status", &site), "lost").await;
    let relay = site.launch(refilling);
    ends_well(&site, load, &relay, "SlotLost").await;
    counts(&relay, &site, "SlotLost").await;
}

/// The promoted standby has no copy of the slot. Its timeline is another one, and the checkpoint came with the data.
#[tokio::test]
async fn a_slot_that_the_promoted_standby_does_not_have_is_refilled() {
    let _permit = heavy_permit().await;
    let mut servers = OwnServers::start(PgVersion::V18, &[]).await;
    let standby = servers.postgres.start_streaming_standby("standby_1").await.unwrap();
    failover::set(&standby, "sync_replication_slots", "off").await;
    let site = servers.site().await;
    let hosts = failover::hosts(&[&servers.postgres, &standby]);
    let both = |text: String| refilling(hosts(text));
    let relay = site.launch(both.clone());
    relay.until_ready().await;
    let row = |n: i32| (["a", "b", "c"][n as usize % 3], n);
    site.insert((0..50).map(row)).await;
    site.until_records(50).await;
    knows_delivered_rows(&site).await;
    site.insert((50..100).map(row)).await;
    site.until_records(100).await;
    relay.kill().await;
    for n in 100..150 {
        site.insert([row(n)]).await;
    }

    servers.postgres.stop(Shutdown::Fast).await.unwrap();
    failover::execute(&standby, "SELECT pg_promote()").await;
    let relay = site.launch(both);
    relay.until("/readyz", 200, "streaming").await;
    site.until_records(150).await;
    assert_eq!(site.records().await.len(), 150, "none twice");
    assert_eq!(refilled(&site, "SlotLost").await, 50);
}

/// The relay loses the slot while it streams, and several times: each loss is refilled, until it is too often.
#[tokio::test]
async fn a_slot_that_is_lost_again_and_again_is_not_replaced_forever() {
    let site = Site::shared().await;
    let mut relay = site.launch(refilling);
    relay.until_ready().await;
    for n in 1..=3 {
        site.insert([("k", 2 * n)]).await;
        site.until_records(2 * n as usize - 1).await;
        knows_delivered_rows(&site).await;
        relay.kill().await;
        drop_slot(&site).await;
        site.insert([("k", 2 * n + 1)]).await;
        relay = site.launch(refilling);
        relay.until("/readyz", 200, "streaming").await;
        site.until_records(2 * n as usize).await;
    }
    relay.kill().await;
    drop_slot(&site).await;
    let relay = site.launch(refilling);
    let text = relay.until("/readyz", 503, "SlotLost").await;
    assert!(text.contains("replaced 3 times within the last hour"), "{text}");
    site.execute("UPDATE outbox_checkpoint SET slot_replaced_at = '{}'").await;
    relay.until("/readyz", 200, "streaming").await;
    site.judge_table(&relay).await;
}

/// A transaction that was open before the gap and commits behind it, and one that commits after the creation of the slot
/// has begun.
#[tokio::test]
async fn transactions_that_straddle_the_gap_are_delivered_once() {
    let site = Site::shared().await;
    let relay = site.launch(refilling);
    relay.until_ready().await;
    let insert = |key: &str| {
        format!(
            "INSERT INTO outbox (id, aggregatetype, aggregateid, type, payload)
             VALUES (gen_random_uuid(), '{}', '{key}', 'n.v1', '1')",
            site.aggregate
        )
    };
    let (mut early, mut late) = (site.sql().await, site.sql().await);
    let mut before = early.begin().await.unwrap();
    before.execute(sqlx::AssertSqlSafe(insert("early"))).await.unwrap();
    for n in 0..20 {
        site.insert([("k", n), ("l", n)]).await;
    }
    site.until_records(40).await;
    // Behind an open transaction no offsets are stored, so the partitions are scanned from their beginning.
    site.until_value("SELECT delivered_snapshot::text <> '1:1:' FROM outbox_checkpoint", "true").await;
    relay.kill().await;
    drop_slot(&site).await;
    site.insert([("k", 20)]).await;
    let relay = site.launch(refilling);
    relay.until("/readyz", 503, "SlotCreationWaits").await;
    let mut during = late.begin().await.unwrap();
    during.execute(sqlx::AssertSqlSafe(insert("late"))).await.unwrap();
    site.insert([("k", 21)]).await;
    before.commit().await.unwrap();
    during.commit().await.unwrap();
    relay.until("/readyz", 200, "streaming").await;
    site.insert([("k", 22)]).await;
    site.judge_table(&relay).await;
    assert_eq!(site.records().await.len(), 45);
}

/// A removed record may be the proof that a row was delivered, so delivery stops, and continues with the documented
/// statement.
#[tokio::test]
async fn a_refill_is_blocked_where_records_were_removed() {
    let site = Site::shared().await;
    let relay = site.launch(refilling);
    relay.until_ready().await;
    site.insert([("k", 1)]).await;
    let partition = site.until_records(1).await[0].partition;
    knows_delivered_rows(&site).await;
    site.until_confirmed(&relay).await;
    relay.kill().await;
    drop_slot(&site).await;
    site.insert([("k", 2)]).await;
    delete_records(&site.bootstrap, &site.topic(), partition).await.unwrap();
    // As after a long transaction, behind which the offsets stay.
    site.execute("UPDATE outbox_checkpoint SET snapshot_offsets = '{}'").await;
    let relay = site.launch(refilling);
    let text = relay.until("/readyz", 503, "RefillBlocked").await;
    let begins =
        format!("{}/{partition}: retention has removed its records from offset 0 to 1", site.topic());
    assert!(text.contains(&begins), "{text}");
    assert_eq!(site.records().await.len(), 0, "nothing was sent");
    let begin_later = format!(
        "UPDATE outbox_checkpoint SET snapshot_offsets = jsonb_set(snapshot_offsets, '{{{},{partition},search}}', '1')",
        site.topic()
    );
    site.execute(&begin_later).await;
    relay.until("/readyz", 200, "streaming").await;
    assert!(refilled(&site, "SlotLost").await >= 1);
}
