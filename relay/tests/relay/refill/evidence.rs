//! The proof of which rows Kafka has is gone: compaction has removed records, or the topic was recreated. Delivery stops
//! before the first row, and names the partition.

use testbed::Database;
use testbed::kafka::{Kafka, KafkaOptions, create_topic, delete_topic};

use crate::fixture::{PARTITIONS, long_matrix};
use crate::procedures::{fill_in, statements};

use super::*;

const KEYS: [&str; 5] = ["a", "b", "c", "d", "e"];

/// A broker that compacts within seconds.
async fn compacting() -> (Kafka, Site) {
    let settings = [("log.cleaner.backoff.ms", "200"), ("log.retention.check.interval.ms", "200")];
    let settings = settings.map(|(name, value)| (name.to_owned(), value.to_owned())).to_vec();
    let kafka = Kafka::start(KafkaOptions { settings, ..KafkaOptions::default() }).await.unwrap();
    let postgres = testbed::shared().await.unwrap().postgres_url("postgres");
    let site = Site::without_topic(Database::on(&postgres, "relay").await.unwrap(), &kafka.bootstrap());
    let topic = [("cleanup.policy", "compact"), ("segment.ms", "100"), ("min.cleanable.dirty.ratio", "0.01")];
    create_topic(&site.bootstrap, &site.topic(), PARTITIONS, 1, &topic).await.unwrap();
    (kafka, site)
}

#[tokio::test]
async fn a_refill_is_blocked_where_compaction_has_removed_records() {
    if !long_matrix() {
        return;
    }
    let _permit = heavy_permit().await;
    let (_kafka, site) = compacting().await;
    let relay = site.launch(refilling);
    relay.until_ready().await;
    site.insert([("k", 0)]).await;
    let partition = site.until_records(1).await[0].partition;
    let mut n = 0;
    wait::until("a compacted partition", TIMEOUT, async || {
        n += 1;
        // Each record closes a segment, and the last one is not compacted.
        site.insert([("k", n)]).await;
        let records = site.records().await;
        let last = records.iter().map(|record| record.offset).max().unwrap();
        if (records.len() as i64) <= last { Ok(()) } else { Err(format!("{} records", records.len())) }
    })
    .await
    .unwrap();
    site.until_confirmed(&relay).await;
    knows_all_rows(&site).await;
    relay.kill().await;
    drop_slot(&site).await;
    site.insert([("k", n + 1), ("k", n + 2)]).await;
    // As after a long transaction, behind which the offsets stay.
    site.execute("UPDATE outbox_checkpoint SET snapshot_offsets = '{}'").await;
    let relay = site.launch(refilling);
    let text = relay.until("/readyz", 503, "RefillBlocked").await;
    let named = format!("{}/{partition}: the topic is compacted", site.topic());
    assert!(text.contains(&named), "{text}");
    assert_eq!(refilled(&site, "SlotLost").await, 0, "nothing was sent");
    let end = 1 + site.records().await.iter().map(|record| record.offset).max().unwrap();
    begin_at(&site, partition, end).await;
    relay.until("/readyz", 200, "streaming").await;
    assert!(refilled(&site, "SlotLost").await >= 1);
}

/// The documented statement.
async fn begin_at(site: &Site, partition: i32, offset: i64) {
    let found = statements("A refill is blocked");
    let update = found.iter().find(|statement| statement.contains("jsonb_set")).unwrap();
    let update = fill_in(update, "relay", &site.slot)
        .replace("outbox.event.basket,0", &format!("{},{partition}", site.topic()))
        .replace("'1200'", &format!("'{offset}'"));
    site.execute(&update).await;
}

/// Acknowledged records are lost, too, and which of the two is noticed first is open.
#[tokio::test]
async fn a_topic_that_was_recreated_before_the_refill_blocks_it() {
    let _permit = heavy_permit().await;
    let site = Site::shared().await;
    let relay = site.launch(refilling);
    relay.until_ready().await;
    let stored = format!(
        "SELECT coalesce(bool_or((value ->> 'search')::bigint > 0), false)
         FROM outbox_checkpoint, jsonb_each(snapshot_offsets -> '{}')",
        site.topic()
    );
    wait::until("offsets that are stored with a snapshot", TIMEOUT, async || {
        site.insert(KEYS.map(|key| (key, 1))).await;
        match site.value(&stored).await.as_deref() {
            Some("true") => Ok(()),
            seen => Err(format!("{seen:?}")),
        }
    })
    .await
    .unwrap();
    knows_all_rows(&site).await;
    relay.kill().await;
    drop_slot(&site).await;
    site.insert((0..6).flat_map(|n| KEYS.map(|key| (key, n)))).await;
    delete_topic(&site.bootstrap, &site.topic()).await.unwrap();
    create_topic(&site.bootstrap, &site.topic(), PARTITIONS, 1, &[]).await.unwrap();
    let relay = site.launch(refilling);
    let text = relay.until("/readyz", 503, &site.topic()).await;
    assert!(text.contains("KafkaLostRecords") || text.contains("RefillBlocked"), "{text}");
    let known = refill_state(&site).await;
    relay.kill().await;
    let forget = |statement: &String| statement.contains("kafka_offsets - ");
    let forget = statements("Kafka lost records").into_iter().find(forget).unwrap();
    site.execute(&fill_in(&forget, "relay", &site.slot).replace("outbox.event.basket", &site.topic())).await;
    let relay = site.launch(refilling);
    let text = relay.until("/readyz", 503, "RefillBlocked").await;
    assert!(text.contains(&format!("{}/", site.topic())) && text.contains("ends at offset 0"), "{text}");
    assert_eq!(refill_state(&site).await, known, "what is known of the delivered rows does not change");
    assert_eq!(site.records().await.len(), 0, "nothing was sent");
    for partition in 0..PARTITIONS {
        begin_at(&site, partition, 0).await;
    }
    relay.until("/readyz", 200, "streaming").await;
    assert_complete(&site).await;
    assert_eq!(refilled(&site, "SlotLost").await, 30);
}
