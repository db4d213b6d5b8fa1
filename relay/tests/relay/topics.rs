//! Topics that change during delivery: they grow, disappear, are recreated, and the routing changes.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use rdkafka::ClientConfig;
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};
use serde_json::Value;
use testbed::checker;
use testbed::kafka::{create_topic, delete_records, delete_topic, grow_topic};
use testbed::load::Log;
use testbed::records::{Record, read_all};
use testbed::wait;

use crate::fixture::{PARTITIONS, Relay, Site, TIMEOUT, heavy_permit};

/// The number of partitions in use, from the checkpoint.
async fn spread(site: &Site) -> i32 {
    let path = format!("{{current,topics,{},partitions}}", site.topic());
    let sql = format!("SELECT mapping #>> '{path}' FROM outbox_checkpoint");
    site.value(&sql).await.map_or(0, |text| text.parse().unwrap())
}

async fn until_spread(site: &Site, partitions: i32) {
    wait::until(format!("events spread over {partitions} partitions"), TIMEOUT, async || {
        let seen = spread(site).await;
        if seen == partitions { Ok(()) } else { Err(seen) }
    })
    .await
    .unwrap();
}

fn key_seq(record: &Record) -> i64 {
    let value: Value = serde_json::from_slice(record.value.as_ref().unwrap()).unwrap();
    value["key_seq"].as_i64().unwrap()
}

/// Partitions are added under load, and the relay dies around the switch. No event is lost or duplicated, and a
/// key's events in its old partition are older than those in the new one.
#[tokio::test]
async fn a_topic_grows_under_load_and_the_relay_dies_around_the_switch() {
    let _permit = heavy_permit().await;
    let site = Site::shared().await;
    let relay = site.relay().await;
    let load = site.start_load(400.0).await;
    site.until_records(100).await;
    grow_topic(&site.bootstrap, &site.topic(), 6).await.unwrap();
    until_spread(&site, 6).await;
    relay.kill().await;
    let relay = site.relay().await;
    grow_topic(&site.bootstrap, &site.topic(), 8).await.unwrap();
    // The relay queries the metadata every two seconds, so this is between detecting and storing.
    tokio::time::sleep(Duration::from_millis(1900)).await;
    relay.kill().await;
    let relay = site.relay().await;
    until_spread(&site, 8).await;
    let before = site.records().await.len();
    site.until_records(before + 400).await;

    let mut log = load.stop().await.unwrap();
    log.settle(site.database.url(), "outbox").await.unwrap();
    site.until_confirmed(&relay).await;
    let records = site.records().await;
    let verdict = checker::check(&log, &records);
    let faults: Vec<_> = verdict.findings().into_iter().filter(|(kind, _)| *kind != "reordered").collect();
    assert!(faults.iter().all(|(_, findings)| findings.count == 0), "{verdict}");
    let used: BTreeSet<i32> = records.iter().map(|record| record.partition).collect();
    assert_eq!(used, (0..8).collect(), "partitions that got records");
    in_order_where_keys_moved(&records);
}

fn in_order_where_keys_moved(records: &[Record]) {
    let mut keys: BTreeMap<&[u8], BTreeMap<i32, Vec<i64>>> = BTreeMap::new();
    for record in records {
        let places = keys.entry(record.key.as_deref().unwrap()).or_default();
        places.entry(record.partition).or_default().push(key_seq(record));
    }
    for (key, places) in keys {
        let key = String::from_utf8_lossy(key);
        let mut spans = Vec::new();
        for (partition, numbers) in places {
            assert!(numbers.is_sorted(), "key {key} in partition {partition}: {numbers:?}");
            spans.push((numbers[0], numbers[numbers.len() - 1]));
        }
        spans.sort_unstable();
        assert!(spans.is_sorted_by(|before, after| before.1 < after.0), "key {key}: {spans:?}");
    }
}

/// Delivers and confirms three rows.
async fn three_rows_confirmed() -> (Site, Relay) {
    let site = Site::shared().await;
    let relay = site.relay().await;
    site.insert([("a", 1), ("b", 2), ("c", 3)]).await;
    site.until_records(3).await;
    let confirmed =
        "SELECT count(*) > 0 FROM outbox_checkpoint, jsonb_path_query(kafka_offsets, '$.*.*.last')";
    wait::until("a remembered record", TIMEOUT, async || match site.value(confirmed).await.as_deref() {
        Some("true") => Ok(()),
        seen => Err(format!("{seen:?}")),
    })
    .await
    .unwrap();
    site.until_confirmed(&relay).await;
    (site, relay)
}

/// A topic that disappears while the relay runs is reported as missing, and once recreated it is not treated as the
/// old one. The recovery is the procedure in docs/OPERATIONS.md.
#[tokio::test]
async fn a_topic_deleted_and_recreated_while_the_relay_runs() {
    let (site, relay) = three_rows_confirmed().await;
    let topic = site.topic();
    delete_topic(&site.bootstrap, &topic).await.unwrap();
    relay.until("/readyz", 503, "TopicMissing").await;
    site.insert([("a", 4), ("b", 5)]).await;
    create_topic(&site.bootstrap, &topic, PARTITIONS - 1, 1, &[]).await.unwrap();
    let text = relay.until("/readyz", 503, "KafkaLostRecords").await;
    assert!(text.contains(&topic) && text.contains("docs/OPERATIONS.md"), "{text}");
    assert_eq!(site.records().await.len(), 0, "something was delivered to another topic");
    relay.kill().await;
    site.execute(&format!(
        "UPDATE outbox_checkpoint SET mapping = mapping #- '{{current,topics,{topic}}}', kafka_offsets = kafka_offsets - '{topic}'"
    ))
    .await;
    let relay = site.relay().await;
    assert_eq!(site.until_records(2).await.len(), 2, "only the rows that were not delivered before");
    relay.until_ready().await;
}

/// R6: while no relay ran, the topic was recreated and got as many records of another producer: offsets alone would
/// not show it.
#[tokio::test]
async fn r6_a_topic_recreated_with_as_many_foreign_records_is_detected() {
    let (site, relay) = three_rows_confirmed().await;
    assert_eq!(relay.stop().await.0, Some(0));
    delete_topic(&site.bootstrap, &site.topic()).await.unwrap();
    create_topic(&site.bootstrap, &site.topic(), PARTITIONS, 1, &[]).await.unwrap();
    let other: BaseProducer = ClientConfig::new().set("bootstrap.servers", &site.bootstrap).create().unwrap();
    let topic = site.topic();
    for n in 0..30 {
        let record = BaseRecord::<(), _>::to(&topic).partition(n % PARTITIONS).payload("foreign");
        other.send(record).map_err(|(error, _)| error).unwrap();
    }
    other.flush(TIMEOUT).unwrap();
    let relay = site.launch(|text| text);
    let text = relay.until("/readyz", 503, "KafkaLostRecords").await;
    assert!(text.contains("now has a record of another producer"), "{text}");
    site.insert([("a", 4), ("b", 5), ("c", 6)]).await;
    relay.until("/status", 200, "KafkaLostRecords").await;
    assert_eq!(site.records().await.len(), 30, "something was delivered");
}

/// Another Kafka cluster with the same configuration: the records were mirrored to other offsets, and the end of the
/// last transaction is missing. The record at the stored offset is of the same transaction, but another one.
#[tokio::test]
async fn r6_a_mirror_that_lacks_the_end_of_a_large_transaction_is_detected() {
    const ROWS: i32 = 1000;
    let site = Site::shared().await;
    let relay = site.relay().await;
    site.insert((1..=ROWS).map(|n| ("k", n))).await;
    let records = site.until_records(ROWS as usize).await;
    site.until_confirmed(&relay).await;
    assert_eq!(relay.stop().await.0, Some(0));
    delete_topic(&site.bootstrap, &site.topic()).await.unwrap();
    create_topic(&site.bootstrap, &site.topic(), PARTITIONS, 1, &[]).await.unwrap();
    let other: BaseProducer = ClientConfig::new().set("bootstrap.servers", &site.bootstrap).create().unwrap();
    let topic = site.topic();
    let record = || BaseRecord::<[u8], [u8]>::to(&topic).partition(records[0].partition);
    for _ in 0..10 {
        other.send(record().payload(b"foreign")).map_err(|(error, _)| error).unwrap();
    }
    for mirrored in &records[..records.len() - 5] {
        let headers = mirrored.headers.iter().fold(OwnedHeaders::new(), |headers, (key, value)| {
            headers.insert(Header { key, value: value.as_deref() })
        });
        let record = record().key(b"k").payload(mirrored.value.as_deref().unwrap()).headers(headers);
        other.send(record).map_err(|(error, _)| error).unwrap();
    }
    other.flush(TIMEOUT).unwrap();
    let relay = site.launch(|text| text);
    let text = relay.until("/readyz", 503, "KafkaLostRecords").await;
    assert!(text.contains("now has another event"), "{text}");
    site.insert([("k", ROWS + 1)]).await;
    relay.until("/status", 200, "KafkaLostRecords").await;
    assert_eq!(site.records().await.len(), ROWS as usize + 5, "something was delivered");
}

/// Retention has removed all records that the checkpoint knows, which is normal.
#[tokio::test]
async fn records_removed_by_retention_are_not_reported_as_lost() {
    let (site, relay) = three_rows_confirmed().await;
    assert_eq!(relay.stop().await.0, Some(0));
    for partition in 0..PARTITIONS {
        delete_records(&site.bootstrap, &site.topic(), partition).await.unwrap();
    }
    assert_eq!(site.records().await.len(), 0);
    let relay = site.relay().await;
    site.insert([("a", 4), ("b", 5), ("c", 6)]).await;
    assert_eq!(site.until_records(3).await.len(), 3);
    site.until_confirmed(&relay).await;
    relay.until_ready().await;
}

/// R7: a record that retention would delete immediately is sent with the current time; the event keeps its own.
#[tokio::test]
async fn r7_a_record_too_old_for_its_topic_gets_the_current_time() {
    let site = Site::shared().await;
    let relay = site.relay().await;
    for (key, age) in [("old", "8 days"), ("young", "1 day")] {
        site.execute(&format!(
            "INSERT INTO outbox (id, aggregatetype, aggregateid, type, payload, occurred_at)
             VALUES (gen_random_uuid(), '{}', '{key}', 'n.v1', '{{}}', now() - interval '{age}')",
            site.aggregate
        ))
        .await;
    }
    let records = site.until_records(2).await;
    let age_ms = |key: &str| {
        let record = records.iter().find(|record| record.key.as_deref() == Some(key.as_bytes())).unwrap();
        let time = chrono::DateTime::parse_from_rfc3339(record.header("ce_time").unwrap()).unwrap();
        record.timestamp.unwrap() - time.timestamp_millis()
    };
    assert_eq!(age_ms("young"), 0, "its own time");
    let eight_days = 8 * 24 * 3600 * 1000;
    assert!((eight_days - 60_000..eight_days + 600_000).contains(&age_ms("old")), "{}", age_ms("old"));
    assert_eq!(relay.metric("outbox_relay_timestamps_replaced_total").await, 1.0);
}

/// R3: the routing changes between two runs, with rows that the old run may have sent. Each row is in one topic, once:
/// that of the old rule if it was committed before the new run, otherwise that of the new rule.
#[tokio::test]
async fn r3_a_changed_routing_sends_no_row_twice_and_loses_none() {
    let site = crate::replay::six_rows_ahead().await.0;
    let (old, new) = (site.topic(), format!("{}.new", site.topic()));
    create_topic(&site.bootstrap, &new, PARTITIONS, 1, &[]).await.unwrap();
    site.insert([("k", 7), ("l", 8)]).await;
    let rerouted =
        |text: String| format!("{text}routing: {{replacement: 'outbox.event.${{routedByValue}}.new'}}\n");
    let relay = site.launch(rerouted);
    relay.until_ready().await;
    assert_eq!(site.until_records(9).await.len(), 9);
    assert_eq!(relay.metric("outbox_relay_duplicates_suppressed_total").await, 6.0);
    relay.kill().await;
    let relay = site.launch(rerouted);
    relay.until_ready().await;
    site.insert([("k", 9), ("l", 10)]).await;
    let log = Log::of_table(site.database.url(), "outbox", |_| old.clone()).await.unwrap();
    wait::until("11 records", TIMEOUT, async || {
        let records = read_all(&site.bootstrap, &[&old, &new]).await.unwrap();
        if records.len() == 11 { Ok(()) } else { Err(records.len()) }
    })
    .await
    .unwrap();
    site.until_confirmed(&relay).await;
    let mut records = read_all(&site.bootstrap, &[&old, &new]).await.unwrap();
    assert_eq!(records.iter().filter(|record| record.topic == new).count(), 2);
    for record in &mut records {
        record.topic.clone_from(&old);
    }
    let verdict = checker::check(&log, &records);
    assert!(
        verdict.lost.count == 0 && verdict.duplicate.count == 0 && verdict.phantom.count == 0,
        "{verdict}"
    );
    let previous = "SELECT mapping -> 'previous' IS NULL FROM outbox_checkpoint";
    assert_eq!(site.value(previous).await.as_deref(), Some("true"), "the old mapping is dropped");
}

/// R3: a row without a destination in the old rule was never sent, and is routed by the new rule.
#[tokio::test]
async fn r3_a_poison_row_is_delivered_with_another_rule() {
    let site = Site::shared().await;
    let relay = site.relay().await;
    site.insert([("k", 1)]).await;
    site.execute(&format!(
        "INSERT INTO outbox (id, aggregatetype, aggregateid, type, payload)
         VALUES (gen_random_uuid(), '{} (old)', 'k', 'n.v1', '{{\"n\": 2}}')",
        site.aggregate
    ))
    .await;
    site.insert([("k", 3)]).await;
    relay.until("/readyz", 503, "PoisonRow").await;
    assert_eq!(site.until_records(1).await.len(), 1);
    relay.kill().await;
    let relay = site.launch(|text| format!("{text}routing: {{regex: '(?<routedByValue>[a-z0-9_-]+).*'}}\n"));
    site.until_records(3).await;
    site.judge_table(&relay).await;
    relay.until_ready().await;
}
