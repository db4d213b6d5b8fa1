//! R9: what a relay that starts behind Kafka does with rows that are there already.

use std::collections::HashMap;

use rdkafka::ClientConfig;
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};
use serde_json::Value;
use testbed::records::Record;
use testbed::{unique, wait};

use crate::fixture::{Relay, SOON, Site};

/// A position beyond all others.
const HIGHEST: &str = "ffffffffffffffff-ffffffffffffffff";

/// Slot and checkpoint as they were at some time: what a relay finds that died before it could store more.
struct Before {
    slot: String,
    checkpoint: Value,
}

impl Before {
    /// Keeps both; no relay may hold the slot.
    async fn now(site: &Site) -> Before {
        let slot = copy_slot(site).await;
        let checkpoint = site.value("SELECT row_to_json(c) FROM outbox_checkpoint c").await.unwrap();
        Before { slot, checkpoint: serde_json::from_str(&checkpoint).unwrap() }
    }

    /// Goes back to both; Kafka stays as it is.
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

/// A site whose relay has delivered row 0, stored that, delivered rows 1 to 6 and died without storing them.
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

/// How often each `n` of this site's rows is in Kafka; records that only look like them are left out.
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
    wait::until(format!("{name} to be {expected}"), SOON, async || {
        let seen = relay.metric(name).await;
        if seen == expected { Ok(()) } else { Err(seen) }
    })
    .await
    .unwrap();
}

/// Appends records as another process would.
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
        self.0.flush(SOON).unwrap();
    }
}

#[tokio::test]
async fn r9_rows_that_are_there_already_are_not_sent_again() {
    let (site, records) = six_rows_ahead().await;
    let relay = site.relay().await;
    site.insert([("k", 7)]).await;
    site.until_records(8).await;
    until_metric(&relay, "outbox_relay_duplicates_suppressed_total", 6.0).await;
    site.judge_table(&relay).await;
    // What another process appends behind our back is noticed as soon as we append again.
    Appender::new(&site, &[]).append(&records[6], &[]);
    site.insert([("k", 8)]).await;
    until_metric(&relay, "outbox_relay_duplicates_detected_total", 1.0).await;
}

/// The highest of our own records of this history counts: not the last one, not somebody else's, not one of another
/// timeline (R2), and the last offset may hold no record at all.
#[tokio::test]
async fn r9_a_search_takes_the_highest_of_our_own_records() {
    let (site, records) = six_rows_ahead().await;
    let other = Appender::new(&site, &[]);
    let highest_here = format!("00000001-{HIGHEST}");
    other.append(&records[6], &[("ce_source", "/another/outbox"), ("ce_sequence", &highest_here)]);
    other.append(&records[6], &[("ce_sequence", &format!("00000002-{HIGHEST}"))]);
    other.append(&records[2], &[]);
    // A transaction leaves a control marker, which takes an offset and is never seen by a consumer.
    let transactional = Appender::new(&site, &[("transactional.id", &site.aggregate)]);
    transactional.0.init_transactions(SOON).unwrap();
    transactional.0.begin_transaction().unwrap();
    transactional.append(&records[6], &[("ce_source", "/another/outbox"), ("ce_sequence", &highest_here)]);
    transactional.0.commit_transaction(SOON).unwrap();
    let relay = site.relay().await;
    site.insert([("k", 7)]).await;
    let records = wait::until("row 7", SOON, async || {
        let records = site.records().await;
        let seen = occurrences(&site, &records);
        if seen.contains_key(&7) { Ok(records) } else { Err(format!("{seen:?}")) }
    })
    .await
    .unwrap();
    until_metric(&relay, "outbox_relay_duplicates_suppressed_total", 6.0).await;
    let once = (0..=7).map(|n| (n, if n == 2 { 2 } else { 1 })).collect();
    assert_eq!(occurrences(&site, &records), once, "row 2 is there twice because the test put it there");
}

/// A request of the dead process is appended after the search. The first row sent shows the hole; it cannot be
/// taken back, but it is counted, and what else the hole holds is not sent again.
#[tokio::test]
async fn r9_a_hole_behind_the_search_is_read_before_more_is_sent() {
    let (site, records) = six_rows_ahead().await;
    let peek = copy_slot(&site).await;
    let relay = site.relay().await;
    // All six are found, so the search has been done and nothing was sent after it.
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
    assert_eq!(occurrences(&site, &records), expected, "only the first row sent may be there twice");
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
