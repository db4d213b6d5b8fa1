//! `replay --missing`: what Kafka lacks is sent once, and what may have been removed only when asked for.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;
use testbed::kafka::{create_topic, delete_records, delete_topic};
use testbed::net;
use testbed::records::Record;

use super::{replay, replayed};
use crate::audit::{LATE, attach_late, audit, differences, insert_late, two_days_ago, until_all_confirmed};
use crate::fixture::{Answer, PARTITIONS, Relay, Site, heavy_permit};
use crate::procedures::{fill_in, statements};

/// Has this relay send what is missing.
async fn send_missing(site: &Site, relay: &Relay, arguments: &[&str]) -> Answer {
    let arguments = [&["--missing", "--allow-reorder"], arguments].concat();
    replay(site, Some(relay.admin), &arguments).await
}

fn assert_sent(answer: &Answer, count: usize) {
    assert_eq!(answer.code, Some(0), "{answer:?}");
    assert!(answer.out.ends_with(&format!("\n{count} sent, 0 refused\n")), "{answer:?}");
}

#[tokio::test]
async fn rows_that_kafka_never_got_are_sent_once() {
    let site = Site::shared().await;
    let relay = site.relay().await;
    site.execute(LATE).await;
    let (first, second) = (insert_late(&site, "late").await, insert_late(&site, "k").await);
    site.insert([("k", 1), ("k", 2)]).await;
    site.until_records(2).await;
    attach_late(&site).await;
    site.insert([("k", 3)]).await;
    let before = site.until_records(3).await.len();
    until_all_confirmed(&site).await;

    let since = two_days_ago(&site).await;
    let listed = replay(&site, None, &["--missing", "--since", &since, "--dry-run"]).await;
    assert_eq!(listed.code, Some(0), "{listed:?}");
    for part in ["missing       2\n", "unverifiable  0\n", "\n2 events would be sent\n", &first, &second] {
        assert!(listed.out.contains(part), "{part} in {listed:?}");
    }
    assert!(listed.out.contains("the table has no rows from before"), "{listed:?}");
    assert_eq!(site.records().await.len(), before, "a dry run sends nothing");

    let selected = ["--since", since.as_str(), "--key", "late", "--type", "n.v1", "--name", "lost"];
    assert_sent(&send_missing(&site, &relay, &selected).await, 1);
    let records = site.records().await;
    let sent = replayed(&records);
    assert_eq!(sent.len(), 1);
    assert_eq!(["ce_id", "ce_replay"].map(|name| sent[0].header(name)), [Some(&*first), Some("lost")]);

    assert_sent(&send_missing(&site, &relay, &["--since", &since]).await, 1);
    let again = send_missing(&site, &relay, &["--since", &since, "--json"]).await;
    let lines: Vec<Value> = again.out.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!((&lines[0]["missing"], &lines[1]), (&0.into(), &serde_json::json!({"sent": 0, "refused": 0})));
    assert_eq!((lines.len(), again.code), (2, Some(0)), "{again:?}");
    let ids: Vec<String> = ids(&site.records().await);
    assert_eq!((ids.len(), ids.iter().collect::<BTreeSet<_>>().len()), (before + 2, before + 2));
    let (found, _) = audit(&site, &["--since", &since]).await;
    assert_eq!(differences(&found), [0; 5], "{found}");
}

/// So many that one audit cannot compare them.
#[tokio::test]
async fn a_large_number_of_missing_rows_is_found_in_parts() {
    let _permit = heavy_permit().await;
    let rows = 130_000;
    let site = Site::shared().await;
    let relay = site.relay().await;
    site.execute(LATE).await;
    let yesterday = "date_trunc('day', now(), 'UTC') - interval '12 hours'";
    site.execute(&format!(
        "INSERT INTO late (id, aggregatetype, aggregateid, type, payload, occurred_at, seq)
         SELECT gen_random_uuid(), '{}', 'k', 'n.v1', '1', {yesterday} + n * interval '1 ms',
                nextval(pg_get_serial_sequence('outbox', 'seq'))
         FROM generate_series(1, {rows}) AS n",
        site.aggregate
    ))
    .await;
    attach_late(&site).await;
    site.insert([("k", 1)]).await;
    site.until_records(1).await;
    until_all_confirmed(&site).await;
    relay.stop().await;

    let since = two_days_ago(&site).await;
    let audit = site.command(net::free_port().unwrap(), |text| text, &["audit", "--since", &since]).await;
    assert!(audit.err.starts_with("more than 100000 rows and records"), "{audit:?}");
    let listed = replay(&site, None, &["--missing", "--since", &since, "--dry-run"]).await;
    assert_eq!(listed.code, Some(0), "{:?}", listed.err);
    assert!(
        listed.out.ends_with(&format!("\n{rows} events would be sent\n")),
        "{:?}",
        listed.out.lines().last()
    );
    let listed: Vec<&str> = listed.out.lines().filter(|line| line.starts_with("would send ")).collect();
    assert_eq!(listed.iter().collect::<BTreeSet<_>>().len(), rows, "each once");
}

fn ids(records: &[Record]) -> Vec<String> {
    records.iter().map(|record| record.header("ce_id").unwrap().to_owned()).collect()
}

/// A record that was removed may have been consumed.
#[tokio::test]
async fn rows_whose_records_may_have_been_removed_are_sent_only_when_asked_for() {
    let site = Site::shared().await;
    let relay = site.relay().await;
    site.insert([("k", 1), ("k", 2)]).await;
    let records = site.until_records(2).await;
    until_all_confirmed(&site).await;
    delete_records(&site.bootstrap, &site.topic(), records[0].partition).await.unwrap();
    let answer = send_missing(&site, &relay, &[]).await;
    assert_sent(&answer, 0);
    let reason = format!("2: topic {}: retention has removed records", site.topic());
    for part in ["unverifiable  2, not sent", &reason] {
        assert!(answer.out.contains(part), "{part} in {answer:?}");
    }
    assert_eq!(site.records().await.len(), 0);
    assert_sent(&send_missing(&site, &relay, &["--include-unverifiable"]).await, 2);
    assert_sent(&send_missing(&site, &relay, &["--include-unverifiable"]).await, 0);
    assert_eq!(replayed(&site.records().await).len(), 2);
}

/// Delivers rows, replaces the topic by an empty one, and follows the procedure of this section until the relay streams.
async fn with_an_empty_topic(rows: i32, section: &str, step: &str) -> (Site, Relay) {
    let site = Site::shared().await;
    let topic = site.topic();
    let relay = site.relay().await;
    let keys = ["a", "b", "c", "d", "e"];
    site.insert((0..rows).map(|n| (keys[n as usize % keys.len()], n))).await;
    site.until_records(rows as usize).await;
    until_all_confirmed(&site).await;
    assert_eq!(relay.stop().await.0, Some(0));
    delete_topic(&site.bootstrap, &topic).await.unwrap();
    create_topic(&site.bootstrap, &topic, PARTITIONS + 1, 1, &[]).await.unwrap();
    let relay = site.launch(|text| text);
    relay.until("/readyz", 503, "KafkaLostRecords").await;
    relay.kill().await;
    let step = statements(section).into_iter().find(|statement| statement.contains(step)).unwrap();
    site.execute(&fill_in(&step, "relay", &site.slot).replace("outbox.event.basket", &topic)).await;
    let relay = site.relay().await;
    // No event has come since, so the checkpoint does not have the topic any more.
    let known = format!("SELECT to_jsonb(c)::text LIKE '%{topic}%' FROM outbox_checkpoint c");
    site.until_value(&known, "false").await;
    (site, relay)
}

async fn assert_all_come_back(site: &Site, relay: &Relay, rows: usize) {
    assert_sent(&send_missing(site, relay, &[]).await, rows);
    assert_sent(&send_missing(site, relay, &[]).await, 0);
    let records = site.records().await;
    assert_eq!((records.len(), replayed(&records).len()), (rows, rows));
    let ids: BTreeSet<String> = ids(&records).into_iter().collect();
    assert_eq!(ids.len(), rows, "none twice");
    // In the order of the table.
    let mut partitions: BTreeMap<i32, Vec<i64>> = BTreeMap::new();
    for record in replayed(&records) {
        let payload: Value = serde_json::from_slice(record.value.as_ref().unwrap()).unwrap();
        partitions.entry(record.partition).or_default().push(payload["n"].as_i64().unwrap());
    }
    assert!(partitions.values().all(|numbers| numbers.is_sorted()), "{partitions:?}");
    // New events follow.
    site.insert([("a", 0)]).await;
    site.until_records(rows + 1).await;
    until_all_confirmed(site).await;
    let (found, _) = audit(site, &[]).await;
    assert_eq!(differences(&found), [0; 5], "{found}");
}

#[tokio::test]
async fn a_topic_that_was_recreated_gets_all_rows_of_the_table() {
    // Of several requests.
    let rows = 1_100;
    let (site, relay) = with_an_empty_topic(rows, "Kafka lost records", "mapping #- ").await;
    assert_all_come_back(&site, &relay, rows as usize).await;
}

#[tokio::test]
async fn another_kafka_cluster_gets_all_rows_of_the_table() {
    let (site, relay) = with_an_empty_topic(6, "Another Kafka cluster", "mapping = '{}'").await;
    assert_all_come_back(&site, &relay, 6).await;
}
