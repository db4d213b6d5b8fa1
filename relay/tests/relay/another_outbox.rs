//! Another outbox writes to the same topic under the same `ce_source`: two databases of one name, or clones of one
//! server. Delivery stops, with the reason, before a row is treated as delivered because of the other outbox's record.

use testbed::kafka::create_topic;
use testbed::postgres::{PgVersion, Postgres, PostgresOptions};
use testbed::records::Record;
use testbed::{Database, shared};

use crate::fixture::{PARTITIONS, Relay, Site, heavy_permit};
use crate::replay::until_metric;

/// Starts a relay with the shared source name, or with another.
fn launch(site: &Site, source: &str) -> Relay {
    site.launch(|text| text.replace("source: {", &format!("source: {{eventSource: {source}, ")))
}

async fn start(site: &Site) -> Relay {
    let relay = launch(site, "/shared");
    relay.until_ready().await;
    relay
}

fn has(records: &[Record], key: &str, n: i64) -> bool {
    records.iter().any(|record| {
        let value: serde_json::Value = serde_json::from_slice(record.value.as_ref().unwrap()).unwrap();
        record.key.as_deref() == Some(key.as_bytes()) && value["n"] == n
    })
}

/// Two databases with interleaved positions, as clones have: they are on one server.
async fn clones() -> (Site, Site) {
    let one = Site::shared().await;
    let mut other = Site::shared().await;
    other.aggregate.clone_from(&one.aggregate);
    (one, other)
}

/// The other outbox's records are after rows that Kafka does not have. Those rows must not be treated as delivered.
#[tokio::test]
async fn r21_rows_are_not_lost_among_the_records_of_a_clone() {
    let (one, other) = clones().await;
    let relay = start(&one).await;
    let others = start(&other).await;
    one.insert([("one", 1)]).await;
    one.until_records(1).await;
    relay.kill().await;
    one.insert([("one", 2), ("one", 3)]).await;
    other.insert([("one", 1), ("other", 1)]).await;
    one.until_records(3).await;
    one.insert([("one", 4)]).await;
    let relay = launch(&one, "/shared");
    let text = relay.until("/readyz", 503, "EventSourceShared").await;
    assert!(text.contains(&one.topic()) && text.contains("/shared"), "{text}");
    assert_eq!(one.records().await.len(), 3, "nothing was sent");
    relay.kill().await;
    others.kill().await;
    // The procedure in docs/OPERATIONS.md.
    let relay = launch(&one, "/one");
    relay.until_ready().await;
    one.until_confirmed(&relay).await;
    let records = one.records().await;
    assert!((1..=4).all(|n| has(&records, "one", n)), "{records:?}");
}

/// While both deliver, each sees the other's records between its own.
#[tokio::test]
async fn r21_a_clone_that_delivers_at_the_same_time_is_detected() {
    let (one, other) = clones().await;
    let relay = start(&one).await;
    let _others = start(&other).await;
    one.insert([("k", 1)]).await;
    one.until_records(1).await;
    other.insert([("k", 2)]).await;
    one.until_records(2).await;
    one.insert([("k", 3)]).await;
    relay.until("/readyz", 503, "EventSourceShared").await;
}

/// A server whose WAL is far ahead of the other server's.
async fn far_ahead(bootstrap: &str) -> (Postgres, Site) {
    let options = PostgresOptions { version: PgVersion::V18, ..PostgresOptions::default() };
    let postgres = Postgres::start(options).await.unwrap();
    let database = Database::on(&postgres.url("postgres"), "relay").await.unwrap();
    let site = Site::without_topic(database, bootstrap);
    (postgres, site)
}

async fn advance(site: &Site) {
    for _ in 0..8 {
        site.execute("SELECT pg_logical_emit_message(false, 'test', 'x')").await;
        site.execute("SELECT pg_switch_wal()").await;
    }
}

/// The other outbox's positions are beyond the end of this server's WAL, although this server was not restored.
#[tokio::test]
async fn r21_records_beyond_the_wal_of_this_server_are_another_outboxs() {
    let _permit = heavy_permit().await;
    let kafka = shared().await.unwrap().kafka_bootstrap().to_owned();
    let (_postgres, one) = far_ahead(&kafka).await;
    let (_others_postgres, mut other) = far_ahead(&kafka).await;
    other.aggregate.clone_from(&one.aggregate);
    create_topic(&kafka, &one.topic(), PARTITIONS, 1, &[]).await.unwrap();
    advance(&other).await;
    let relay = start(&one).await;
    let _others = start(&other).await;
    one.insert([("k", 1)]).await;
    one.until_records(1).await;
    // Both deliver.
    other.insert([("k", 2)]).await;
    one.until_records(2).await;
    one.insert([("k", 3)]).await;
    relay.until("/readyz", 503, "EventSourceShared").await;
    relay.kill().await;
    // One relay was stopped.
    one.insert([("k", 4)]).await;
    other.insert([("k", 5)]).await;
    one.until_records(4).await;
    let relay = launch(&one, "/shared");
    let text = relay.until("/readyz", 503, "EventSourceShared").await;
    assert!(text.contains("while this server was running"), "{text}");
    assert_eq!(relay.metric("outbox_relay_phantom_events_total").await, 0.0);
    relay.kill().await;
    let relay = launch(&one, "/one");
    relay.until_ready().await;
    one.until_confirmed(&relay).await;
    let records = one.records().await;
    assert!([1, 3, 4].into_iter().all(|n| has(&records, "k", n)));
    until_metric(&relay, "outbox_relay_phantom_events_total", 0.0).await;
}
