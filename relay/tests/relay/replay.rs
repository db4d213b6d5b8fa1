//! R9: a relay that starts behind Kafka does not send rows that Kafka has already.

use std::collections::HashMap;

use rdkafka::ClientConfig;
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};
use serde_json::Value;
use testbed::records::Record;
use testbed::{unique, wait};

use crate::fixture::{Relay, Site, TIMEOUT};

/// A position after all others.
const HIGHEST: &str = "ffffffffffffffff-ffffffffffffffff";

/// Slot and checkpoint at an earlier time, as a relay finds them whose predecessor died before it stored more.
struct Before {
    slot: String,
    checkpoint: Value,
}

impl Before {
    /// Saves both. No relay may hold the slot.
    async fn now(site: &Site) -> Before {
        let slot = copy_slot(site).await;
        let checkpoint = site.value("SELECT row_to_json(c) FROM outbox_checkpoint c").await.unwrap();
        Before { slot, checkpoint: serde_json::from_str(&checkpoint).unwrap() }
    }

    /// Restores both. Kafka is unchanged.
    async fn restore(self, site: &mut Site) {
        site.execute(&format!(
            "UPDATE outbox_checkpoint SET slot = '{}', confirmed_lsn = '{}', kafka_offsets = '{}'",
            self.slot,
            self.checkpoint["confirmed_lsn"].as_str().unwrap(),
            self.checkpoint["kafka_offsets"]
        ))
        .await;
        site.slot = self.slot;
    }
}

async fn copy_slot(site: &Site) -> String {
    let copy = unique("copy");
    site.execute(&format!("SELECT pg_copy_logical_replication_slot('{}', '{copy}')", site.slot)).await;
    copy
}

/// A site whose relay has delivered row 0, stored its checkpoint, delivered rows 1 to 6, and died before storing it
/// again.
pub async fn six_rows_ahead() -> (Site, Vec<Record>) {
    let mut site = Site::shared().await;
    let relay = site.relay().await;
    site.insert([("k", 0)]).await;
    site.until_records(1).await;
    assert_eq!(relay.stop().await.0, Some(0));
    let before = Before::now(&site).await;
    for n in 1..=6 {
        site.insert([("k", n)]).await;
    }
    let relay = site.relay().await;
    let records = site.until_records(7).await;
    relay.kill().await;
    before.restore(&mut site).await;
    (site, records)
}

/// How often each `n` of this site's rows is in Kafka, without the records that only resemble them.
fn occurrences(site: &Site, records: &[Record]) -> HashMap<i64, usize> {
    let source = format!("/{}/public.outbox", site.database.name());
    let ours = records.iter().filter(|record| {
        record.header("ce_source") == Some(&source)
            && record.header("ce_sequence").is_some_and(|position| position.starts_with("00000001-"))
    });
    let mut occurrences = HashMap::new();
    for record in ours {
        let value: Value = serde_json::from_slice(record.value.as_ref().unwrap()).unwrap();
        *occurrences.entry(value["n"].as_i64().unwrap()).or_default() += 1;
    }
    occurrences
}

pub async fn until_metric(relay: &Relay, name: &str, expected: f64) {
    wait::until(format!("{name} to be {expected}"), TIMEOUT, async || {
        let seen = relay.metric(name).await;
        if seen == expected { Ok(()) } else { Err(seen) }
    })
    .await
    .unwrap();
}

/// Appends records as another process.
pub struct Appender(BaseProducer);

impl Appender {
    pub fn new(site: &Site, settings: &[(&str, &str)]) -> Appender {
        let mut config = ClientConfig::new();
        config.set("bootstrap.servers", &site.bootstrap);
        for (name, value) in settings {
            config.set(*name, *value);
        }
        Appender(config.create().unwrap())
    }

    /// Appends `like` with some headers changed, in its partition.
    pub fn append(&self, like: &Record, changes: &[(&str, &str)]) {
        let mut headers = OwnedHeaders::new();
        for (key, value) in &like.headers {
            let changed = changes.iter().find(|(name, _)| name == key).map(|(_, value)| value.as_bytes());
            headers = headers.insert(Header { key, value: changed.or(value.as_deref()) });
        }
        let record = BaseRecord::to(&like.topic)
            .partition(like.partition)
            .key(like.key.as_ref().unwrap())
            .payload(like.value.as_ref().unwrap())
            .headers(headers);
        self.0.send(record).map_err(|(error, _)| error).unwrap();
        self.0.flush(TIMEOUT).unwrap();
    }
}

#[tokio::test]
async fn r9_rows_that_kafka_has_are_not_sent_again() {
    let (site, records) = six_rows_ahead().await;
    let relay = site.relay().await;
    site.insert([("k", 7)]).await;
    site.until_records(8).await;
    until_metric(&relay, "outbox_relay_duplicates_suppressed_total", 6.0).await;
    site.judge_table(&relay).await;
    // A record that another process appends is detected with the relay's next record.
    Appender::new(&site, &[]).append(&records[6], &[]);
    site.insert([("k", 8)]).await;
    until_metric(&relay, "outbox_relay_duplicates_detected_total", 1.0).await;
}

/// The outbox's own record with the highest position on the server's timelines counts: not the last record, not one of
/// another producer, not one on another timeline (R2). The last offset may have no record.
#[tokio::test]
async fn r9_a_scan_finds_the_highest_own_record() {
    let (site, records) = six_rows_ahead().await;
    let other = Appender::new(&site, &[]);
    let highest_here = format!("00000001-{HIGHEST}");
    other.append(&records[6], &[("ce_source", "/another/outbox"), ("ce_sequence", &highest_here)]);
    other.append(&records[6], &[("ce_sequence", &format!("00000002-{HIGHEST}"))]);
    other.append(&records[2], &[]);
    // A transaction leaves a control record, which has an offset and is not returned to consumers.
    let transactional = Appender::new(&site, &[("transactional.id", &site.aggregate)]);
    transactional.0.init_transactions(TIMEOUT).unwrap();
    transactional.0.begin_transaction().unwrap();
    transactional.append(&records[6], &[("ce_source", "/another/outbox"), ("ce_sequence", &highest_here)]);
    transactional.0.commit_transaction(TIMEOUT).unwrap();
    let relay = site.relay().await;
    site.insert([("k", 7)]).await;
    let records = wait::until("row 7", TIMEOUT, async || {
        let records = site.records().await;
        let seen = occurrences(&site, &records);
        if seen.contains_key(&7) { Ok(records) } else { Err(format!("{seen:?}")) }
    })
    .await
    .unwrap();
    until_metric(&relay, "outbox_relay_duplicates_suppressed_total", 6.0).await;
    let once = (0..=7).map(|n| (n, if n == 2 { 2 } else { 1 })).collect();
    assert_eq!(occurrences(&site, &records), once, "row 2 is in Kafka twice because the test appended it");
}

/// A request of the dead process is appended after the scan. The first row sent reveals the gap. It is a duplicate,
/// which is counted, and the other rows in the gap are not sent again.
#[tokio::test]
async fn r9_a_gap_after_the_scan_is_scanned_before_more_is_sent() {
    let (site, records) = six_rows_ahead().await;
    let peek = copy_slot(&site).await;
    let relay = site.relay().await;
    // All six rows were found, so the scan is complete and nothing was sent after it.
    until_metric(&relay, "outbox_relay_duplicates_suppressed_total", 6.0).await;
    relay.program.pause().unwrap();
    site.insert([("k", 7), ("k", 8), ("k", 9)]).await;
    let commit = begin_lsn_of_last_transaction(&site, &peek).await;
    let dead = Appender::new(&site, &[]);
    for (index, n) in [7, 8].into_iter().enumerate() {
        let id = format!("SELECT id FROM outbox WHERE payload ->> 'n' = '{n}'");
        let id = site.value(&id).await.unwrap();
        let position = format!("00000001-{commit}-{index:016x}");
        let row = Record { value: Some(format!("{{\"n\": {n}}}").into_bytes()), ..records[6].clone() };
        dead.append(&row, &[("ce_id", &id), ("ce_sequence", &position)]);
    }
    relay.program.resume().unwrap();
    let records = site.until_records(7 + 2 + 2).await;
    until_metric(&relay, "outbox_relay_duplicates_detected_total", 1.0).await;
    until_metric(&relay, "outbox_relay_duplicates_suppressed_total", 7.0).await;
    let expected = (0..=9).map(|n| (n, if n == 7 { 2 } else { 1 })).collect();
    assert_eq!(occurrences(&site, &records), expected, "only the first row sent may be in Kafka twice");
}

/// The LSN that pgoutput's Begin message carries, in the digits of a position. Byte 0 is the kind, the LSN follows.
async fn begin_lsn_of_last_transaction(site: &Site, slot: &str) -> String {
    let begins = format!(
        "SELECT encode(substr(data, 2, 8), 'hex')
         FROM pg_logical_slot_peek_binary_changes('{slot}', NULL, NULL, 'proto_version', '1',
                                                  'publication_names', 'outbox') WITH ORDINALITY
              AS changes (lsn, xid, data, number)
         WHERE get_byte(data, 0) = ascii('B') ORDER BY number DESC LIMIT 1"
    );
    site.value(&begins).await.unwrap()
}
