//! The correctness rules, each provoked.

use rdkafka::ClientConfig;
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::{BaseRecord, Producer, ThreadedProducer};
use testbed::kafka::create_topic;
use testbed::load::Log;
use testbed::records::Record;
use testbed::wait;

use crate::fixture::{Relay, SOON, Site, heavy, right};

async fn judged(site: &Site, relay: &Relay) {
    let topic = site.topic();
    let log = Log::of_table(site.database.url(), "outbox", |_| topic.clone()).await.unwrap();
    right(&site.judge(log, relay).await);
}

fn producer(site: &Site) -> ThreadedProducer<rdkafka::producer::DefaultProducerContext> {
    ClientConfig::new().set("bootstrap.servers", &site.bootstrap).create().unwrap()
}

/// R1: each partition holds a gap-free prefix. A record in the middle is refused by the broker; nothing behind it may
/// be appended before it is.
#[tokio::test]
async fn r1_nothing_is_appended_behind_a_record_that_was_refused() {
    let _place = heavy().await;
    let database = testbed::Database::fresh("r1").await.unwrap();
    let bootstrap = testbed::shared().await.unwrap().kafka_bootstrap().to_owned();
    let site = Site::without_topic(database, &bootstrap);
    create_topic(&bootstrap, &site.topic(), 1, 1, &[("max.message.bytes", "2000")]).await.unwrap();
    let relay = site.relay().await;
    // One transaction: small, small, too large for the topic, small, small.
    let rows: Vec<String> = [10, 10, 20_000, 10, 10]
        .iter()
        .enumerate()
        .map(|(n, size)| {
            format!("(gen_random_uuid(), '{}', 'k', 't', jsonb_build_object('n', {n}, 'x', repeat(md5('{n}'), {size} / 10)))", site.aggregate)
        })
        .collect();
    let insert = "INSERT INTO outbox (id, aggregatetype, aggregateid, type, payload) VALUES";
    site.execute(&format!("{insert} {}", rows.join(", "))).await;
    relay.until("/metrics", 200, "outbox_relay_produce_errors_total{").await;
    relay.kill().await;
    let relay = site.launch(|text| text);
    relay.until("/metrics", 200, "outbox_relay_produce_errors_total{").await;
    assert!(site.records().await.len() <= 2, "a record was appended behind the one that was refused");
    let kafka_settings = [("max.message.bytes", "1000000")];
    alter_topic(&site, &kafka_settings).await;
    site.until_records(5).await;
    judged(&site, &relay).await;
}

async fn alter_topic(site: &Site, settings: &[(&str, &str)]) {
    testbed::kafka::alter_topic(&site.bootstrap, &site.topic(), settings).await.unwrap();
}

/// R2: positions of another history mean nothing; delivery stops instead of guessing.
#[tokio::test]
async fn r2_another_history_stops_delivery() {
    for spoil in ["timeline = timeline + 1", "system_identifier = system_identifier + 1"] {
        let site = Site::shared().await;
        let relay = site.relay().await;
        site.insert([("k", 1)]).await;
        site.until_records(1).await;
        assert_eq!(relay.stop().await.0, Some(0));
        site.execute(&format!("UPDATE outbox_checkpoint SET {spoil}")).await;
        site.insert([("k", 2)]).await;
        let relay = site.launch(|text| text);
        relay.until("/readyz", 503, "HistoryChanged").await;
        assert_eq!(relay.ask("/livez").await.unwrap().0, 200);
        assert_eq!(site.records().await.len(), 1, "something was delivered on another history");
    }
}

/// A record as the relay would have written it.
fn imitate(site: &Site, record: &Record) {
    let producer = producer(site);
    let mut headers = OwnedHeaders::new();
    for (key, value) in &record.headers {
        headers = headers.insert(Header { key, value: value.as_ref() });
    }
    let imitation = BaseRecord::to(&record.topic)
        .partition(record.partition)
        .key(record.key.as_ref().unwrap())
        .payload(record.value.as_ref().unwrap())
        .headers(headers);
    producer.send(imitation).map_err(|(error, _)| error).unwrap();
    producer.flush(SOON).unwrap();
}

/// R9: a search takes the highest of our own records, not the last record; foreign ones do not count.
#[tokio::test]
async fn r9_the_search_finds_our_records_among_others() {
    let site = Site::shared().await;
    let relay = site.relay().await;
    site.insert((1..=20).map(|n| ("k", n))).await;
    site.until_records(20).await;
    site.until_confirmed(&relay).await;
    // The checkpoint as it was before: the next relay has to find all twenty in Kafka.
    let offsets = "SELECT kafka_offsets FROM outbox_checkpoint";
    assert!(site.value(offsets).await.unwrap().contains("20"));
    relay.kill().await;
    let foreign = producer(&site);
    for partition in 0..3 {
        let topic = site.topic();
        let headers = OwnedHeaders::new()
            .insert(Header { key: "ce_source", value: Some("/another/outbox") })
            .insert(Header { key: "ce_sequence", value: Some("00000001-ffffffffffffffff-ffffffffffffffff") });
        let record =
            BaseRecord::to(&topic).partition(partition).key("foreign").payload("{}").headers(headers);
        foreign.send(record).map_err(|(error, _)| error).unwrap();
    }
    foreign.flush(SOON).unwrap();
    let relay = site.relay().await;
    site.insert((21..=25).map(|n| ("k", n))).await;
    let records = site.until_records(20 + 3 + 5).await;
    let ours = records.iter().filter(|record| record.header("ce_source") != Some("/another/outbox")).count();
    assert_eq!(ours, 25, "a foreign record was taken for one of ours");
    assert_eq!(relay.metric("outbox_relay_duplicates_detected_total").await, 0.0);
}

/// R9: rows that a dead process appended and did not live to store are found and dropped.
#[tokio::test]
async fn r9_rows_that_are_there_already_are_not_sent_again() {
    let site = Site::shared().await;
    let relay = site.relay().await;
    site.insert([("k", 0)]).await;
    site.until_records(1).await;
    assert_eq!(relay.stop().await.0, Some(0));
    // What the relay would send for the next rows is learned from a twin with a slot and checkpoint of its own.
    site.insert((1..=6).map(|n| ("k", n))).await;
    let rows = "SELECT count(*) FROM outbox";
    assert_eq!(site.value(rows).await.as_deref(), Some("7"));
    let stored = site.value("SELECT row_to_json(c) FROM outbox_checkpoint c").await.unwrap();
    let stored: serde_json::Value = serde_json::from_str(&stored).unwrap();
    let slot_copy = testbed::unique("copy");
    site.execute(&format!("SELECT pg_copy_logical_replication_slot('{}', '{slot_copy}')", site.slot)).await;
    let relay = site.relay().await;
    site.until_records(7).await;
    site.until_confirmed(&relay).await;
    relay.kill().await;
    // Back to before: the copy of the slot and the checkpoint as it was. Kafka is ahead of both.
    site.execute(&format!(
        "UPDATE outbox_checkpoint SET slot = '{slot_copy}', confirmed_lsn = '{}', kafka_offsets = '{}'",
        stored["confirmed_lsn"].as_str().unwrap(),
        stored["kafka_offsets"]
    ))
    .await;
    let old_slot = site.slot.clone();
    let relay = site.launch(|text| text.replace(&old_slot, &slot_copy));
    relay.until_ready().await;
    site.insert([("k", 7)]).await;
    site.until_records(8).await;
    wait::until("six suppressed rows", SOON, async || {
        let suppressed = relay.metric("outbox_relay_duplicates_suppressed_total").await;
        if suppressed == 6.0 { Ok(()) } else { Err(suppressed) }
    })
    .await
    .unwrap();
    let records = site.records().await;
    assert_eq!(records.len(), 8);
    // And what another process appends behind our back is noticed as soon as we append again.
    imitate(&site, records.last().unwrap());
    site.insert([("k", 8)]).await;
    wait::until("a detected duplicate", SOON, async || {
        let detected = relay.metric("outbox_relay_duplicates_detected_total").await;
        if detected == 1.0 { Ok(()) } else { Err(detected) }
    })
    .await
    .unwrap();
}

/// R13: what Postgres is told never runs ahead of the checkpoint.
#[tokio::test]
async fn r13_confirmations_never_outrun_the_checkpoint() {
    let _place = heavy().await;
    let site = Site::shared().await;
    let relay = site.relay().await;
    let load = site.start_load(400.0).await;
    let ahead = format!(
        "SELECT confirmed_flush_lsn > (SELECT confirmed_lsn FROM outbox_checkpoint)
         FROM pg_replication_slots WHERE slot_name = '{}'",
        site.slot
    );
    let mut looks = 0;
    while looks < 300 {
        assert_ne!(
            site.value(&ahead).await.as_deref(),
            Some("true"),
            "the slot was told more than was stored"
        );
        looks += 1;
    }
    right(&site.verdict(load, &relay).await);
}

/// R13: a slot ahead of the checkpoint is a gap, and delivery stops.
#[tokio::test]
async fn r13_a_slot_that_somebody_advanced_stops_delivery() {
    let site = Site::shared().await;
    let relay = site.relay().await;
    site.insert([("k", 1)]).await;
    site.until_records(1).await;
    assert_eq!(relay.stop().await.0, Some(0));
    site.insert([("k", 2)]).await;
    site.execute(&format!("SELECT pg_replication_slot_advance('{}', pg_current_wal_lsn())", site.slot)).await;
    let relay = site.launch(|text| text);
    relay.until("/readyz", 503, "SlotAhead").await;
    assert_eq!(site.records().await.len(), 1);
}

/// A slot that vanished is never made anew in silence: the rows between are somebody's events.
#[tokio::test]
async fn a_slot_that_vanished_stops_delivery() {
    let site = Site::shared().await;
    let relay = site.relay().await;
    site.insert([("k", 1)]).await;
    site.until_records(1).await;
    assert_eq!(relay.stop().await.0, Some(0));
    site.execute(&format!("SELECT pg_drop_replication_slot('{}')", site.slot)).await;
    let relay = site.launch(|text| text);
    relay.until("/readyz", 503, "SlotLost").await;
    assert!(relay.status().await["trouble"]["remedy"].as_str().unwrap().contains("docs/OPERATIONS.md"));
}
