//! The correctness rules about what may be delivered, each provoked. Those about replays are in [`crate::replay`],
//! those about confirmations to PostgreSQL in [`crate::confirmation`].

use testbed::kafka::{alter_topic, create_topic};

use crate::fixture::{Relay, Site, heavy_permit};

/// R1: each partition has a gap-free prefix. The broker refuses a record while requests with later records are in
/// flight; none of them may be appended. After the refusal the relay reads the topic's limit again: the row is poison
/// then, and batches of small records stay below the limit.
#[tokio::test]
async fn r1_nothing_is_appended_after_a_refused_record() {
    let _permit = heavy_permit().await;
    let database = testbed::Database::fresh("r1").await.unwrap();
    let bootstrap = testbed::shared().await.unwrap().kafka_bootstrap().to_owned();
    let site = Site::without_topic(database, &bootstrap);
    create_topic(&bootstrap, &site.topic(), 1, 1, &[]).await.unwrap();
    let relay = site.relay().await;
    site.insert([("k", 0)]).await;
    site.until_records(1).await;
    alter_topic(&bootstrap, &site.topic(), &[("max.message.bytes", "20000")]).await.unwrap();
    write_with_a_large_row(&site).await;
    relay.until("/metrics", 200, "outbox_relay_produce_errors_total{").await;
    stops_at_the_large_row(&site, &relay).await;
    relay.kill().await;
    let relay = site.launch(|text| text);
    stops_at_the_large_row(&site, &relay).await;
    alter_topic(&bootstrap, &site.topic(), &[("max.message.bytes", "1000000")]).await.unwrap();
    site.until_records(1 + ROWS).await;
    site.judge_table(&relay).await;
    relay.until_ready().await;
}

const ROWS: usize = 1_000;
/// Late enough for several requests to be in flight when the row is sent.
const LARGE_ROW: usize = 600;

/// Every row in a separate transaction, so that each can be in a separate request.
async fn write_with_a_large_row(site: &Site) {
    let write = format!(
        "DO $$ BEGIN
             FOR n IN 1..{ROWS} LOOP
                 INSERT INTO outbox (id, aggregatetype, aggregateid, type, payload)
                 SELECT gen_random_uuid(), '{}', 'k', 'n.v1',
                        jsonb_build_object('n', n, 'x', string_agg(md5(part::text), ''))
                 FROM generate_series(1, CASE n WHEN {LARGE_ROW} THEN 2000 ELSE 1 END) part;
                 COMMIT;
             END LOOP;
         END $$",
        site.aggregate
    );
    site.execute(&write).await;
}

async fn stops_at_the_large_row(site: &Site, relay: &Relay) {
    let text = relay.until("/readyz", 503, "PoisonRow").await;
    assert!(text.contains(&format!("max.message.bytes of topic {} is 20000", site.topic())), "{text}");
    // Every row before it is in Kafka, and none after it.
    assert_eq!(site.until_records(LARGE_ROW).await.len(), LARGE_ROW);
}

/// R2: positions of another server cannot be compared, so delivery stops.
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
        assert_eq!(site.records().await.len(), 1, "an event of another server was delivered");
    }
}

/// A slot that disappeared is never silently recreated, because the rows in between would be lost.
#[tokio::test]
async fn a_slot_that_disappeared_stops_delivery() {
    let site = Site::shared().await;
    let relay = site.relay().await;
    site.insert([("k", 1)]).await;
    site.until_records(1).await;
    assert_eq!(relay.stop().await.0, Some(0));
    site.execute(&format!("SELECT pg_drop_replication_slot('{}')", site.slot)).await;
    let relay = site.launch(|text| text);
    relay.until("/readyz", 503, "SlotLost").await;
    assert!(relay.status().await["problem"]["remedy"].as_str().unwrap().contains("docs/OPERATIONS.md"));
}
