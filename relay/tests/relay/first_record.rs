//! The first records of a producer session in a partition (R1, R20). A broker that has no state of a producer accepts
//! any first sequence number, so a second record must not be sent before the first is acknowledged.

use std::time::Duration;

use testbed::checker::{Findings, Verdict};
use testbed::kafka::{Kafka, KafkaOptions, alter_topic, create_topic};
use testbed::load::Dice;
use testbed::proxy::Fault;
use testbed::{Database, shared, wait};

use crate::fixture::{PARTITIONS, Relay, Site, TIMEOUT, assert_correct, heavy_permit, long_matrix};
use crate::proxied::until_more;

/// Larger than any batch, so that the record is alone in its request and the next record is in another.
const LARGE: &str =
    "(SELECT to_jsonb(string_agg(md5(n::text || random()), '')) FROM generate_series(1, 62500) n)";

/// A site whose topic has one partition.
async fn one_partition(bootstrap: &str, settings: &[(&str, &str)]) -> Site {
    let database = Database::on(&shared().await.unwrap().postgres_url("postgres"), "first").await.unwrap();
    let site = Site::without_topic(database, bootstrap);
    create_topic(bootstrap, &site.topic(), 1, 1, settings).await.unwrap();
    site
}

async fn insert(site: &Site, event_type: &str, payload: &str) {
    site.execute(&row(site, event_type, payload)).await;
}

fn row(site: &Site, event_type: &str, payload: &str) -> String {
    let columns = "id, aggregatetype, aggregateid, type, payload";
    format!(
        "INSERT INTO outbox ({columns}) VALUES (gen_random_uuid(), '{}', 'k', '{event_type}', {payload});",
        site.aggregate
    )
}

async fn types(site: &Site, count: usize) -> Vec<String> {
    let records = site.until_records(count).await;
    records.iter().map(|record| record.header("ce_type").unwrap_or_default().to_owned()).collect()
}

/// Runs a relay that delivers one row and stops, so that the next one has nothing to replay.
async fn delivered_one(site: &Site, edit: impl FnOnce(String) -> String) {
    let relay = site.launch(edit);
    relay.until_ready().await;
    insert(site, "first.v1", "'1'").await;
    site.until_records(1).await;
    site.until_confirmed(&relay).await;
    assert_eq!(relay.stop().await.0, Some(0));
}

fn with_limit(text: String) -> String {
    text.replace("tls: {mode: disable}}\nadmin", "tls: {mode: disable}, maxMessageBytes: 5000000}\nadmin")
}

/// Permanently refused: the broker does not accept a record of this size, but would accept the small one after it.
#[tokio::test]
async fn a_refused_first_record_is_not_passed_by_the_next() {
    let bootstrap = shared().await.unwrap().kafka_bootstrap();
    let site = one_partition(bootstrap, &[("max.message.bytes", "5000000")]).await;
    delivered_one(&site, with_limit).await;
    let relay = site.launch(with_limit);
    relay.until_ready().await;
    alter_topic(bootstrap, &site.topic(), &[("max.message.bytes", "1000000")]).await.unwrap();
    let (large, small) = (row(&site, "large.v1", LARGE), row(&site, "small.v1", "'1'"));
    site.execute(&format!("BEGIN; {large} {small} COMMIT")).await;
    relay.until("/readyz", 503, "PoisonRow").await;
    assert_eq!(types(&site, 1).await, ["first.v1"], "a record overtook a refused one");
    alter_topic(bootstrap, &site.topic(), &[("max.message.bytes", "5000000")]).await.unwrap();
    assert_eq!(types(&site, 3).await, ["first.v1", "large.v1", "small.v1"]);
    site.judge_table(&relay).await;
}

/// Three brokers of which one is dead, so two replicas are in sync. A topic that requires three temporarily refuses
/// every record.
struct TwoInSync {
    kafka: Kafka,
    sites: Vec<Site>,
}

impl TwoInSync {
    async fn start(sites: usize, partitions: i32) -> TwoInSync {
        let options = KafkaOptions { brokers: 3, proxied: true, ..KafkaOptions::default() };
        let mut kafka = Kafka::start(options).await.unwrap();
        let (all, postgres) = (kafka.bootstrap(), shared().await.unwrap().postgres_url("postgres"));
        let (alive, _) = all.rsplit_once(',').unwrap();
        let mut created = Vec::new();
        for _ in 0..sites {
            let site = Site::without_topic(Database::on(&postgres, "first").await.unwrap(), alive);
            kafka.create_topic(&site.topic(), partitions, 3, &settings("2")).await.unwrap();
            created.push(site);
        }
        kafka.brokers()[2].kill().await.unwrap();
        kafka.until_brokers(2).await.unwrap();
        TwoInSync { kafka, sites: created }
    }

    fn launch(&self, site: &Site) -> Relay {
        site.launch(|text| text.replace(&site.bootstrap, &self.kafka.proxied_bootstrap()))
    }

    fn set(&self, fault: Fault) {
        self.kafka.proxies().iter().for_each(|proxy| proxy.set(fault));
    }
}

/// Sets all settings of a topic: a setting that is not named returns to the broker's default.
fn settings(replicas_needed: &str) -> [(&str, &str); 2] {
    [("max.message.bytes", "5000000"), ("min.insync.replicas", replicas_needed)]
}

async fn replicas_needed(site: &Site, needed: &str) {
    alter_topic(&site.bootstrap, &site.topic(), &settings(needed)).await.unwrap();
}

/// Temporarily refused: the first record waits for its retry when the second one, delayed by the network, arrives.
#[tokio::test]
async fn a_first_record_that_has_to_be_sent_again_is_not_passed_by_the_next() {
    let _permit = heavy_permit().await;
    let cluster = TwoInSync::start(1, 1).await;
    let site = &cluster.sites[0];
    delivered_one(site, |text| text).await;
    let relay = cluster.launch(site);
    relay.until_ready().await;
    replicas_needed(site, "3").await;
    insert(site, "refused.v1", "'1'").await;
    wait::until("the first record is in flight", TIMEOUT, async || {
        let in_flight = relay.metric("outbox_relay_in_flight_events").await;
        if in_flight > 0.0 { Ok(()) } else { Err(relay.status_text().await) }
    })
    .await
    .unwrap();
    cluster.set(Fault::BytesPerSecond(50_000));
    insert(site, "slow.v1", &LARGE.replace("62500", "12000")).await;
    wait::until("the second row is read", TIMEOUT, async || {
        let status = relay.status().await;
        let is_sent = status["inFlightEvents"].as_u64() > Some(1);
        if is_sent || status["notReadingBecause"].is_string() { Ok(()) } else { Err(status.to_string()) }
    })
    .await
    .unwrap();
    replicas_needed(site, "2").await;
    until_acknowledged(&relay, 1.0).await;
    cluster.set(Fault::None);
    assert_eq!(types(site, 3).await, ["first.v1", "refused.v1", "slow.v1"]);
    site.judge_table(&relay).await;
}

/// A session ends while its first request waits for a retry and the second, delayed by the network, is in flight.
/// Purging the first must also drop everything after it.
#[tokio::test]
async fn what_is_behind_a_record_that_was_given_up_is_not_sent_again() {
    let _permit = heavy_permit().await;
    let cluster = TwoInSync::start(1, 1).await;
    let site = &cluster.sites[0];
    let relay =
        site.launch(|text| with_limit(text.replace(&site.bootstrap, &cluster.kafka.proxied_bootstrap())));
    relay.until_ready().await;
    insert(site, "first.v1", "'1'").await;
    until_acknowledged(&relay, 1.0).await;
    replicas_needed(site, "3").await;
    cluster.set(Fault::BytesPerSecond(200_000));
    insert(site, "refused.v1", &LARGE.replace("62500", "9400")).await;
    insert(site, "slow.v1", LARGE).await;
    wait::until("both are in flight", TIMEOUT, async || {
        let status = relay.status().await;
        if status["inFlightEvents"] == 2 { Ok(()) } else { Err(status.to_string()) }
    })
    .await
    .unwrap();
    // The duration of the fault: the first record's 300 kB arrive and are refused within it, the second record's 2 MB
    // do not arrive.
    tokio::time::sleep(Duration::from_secs(4)).await;
    replicas_needed(site, "2").await;
    let holder = format!("SELECT active_pid FROM pg_replication_slots WHERE slot_name = '{}'", site.slot);
    site.execute(&format!("SELECT pg_terminate_backend(({holder}))")).await;
    relay.until("/status", 200, "57P01").await;
    cluster.set(Fault::None);
    site.judge_table(&relay).await;
    assert_eq!(types(site, 3).await, ["first.v1", "refused.v1", "slow.v1"]);
}

async fn until_acknowledged(relay: &Relay, count: f64) {
    wait::until(format!("{count} acknowledged"), TIMEOUT, async || {
        let seen = relay.metric("outbox_relay_events_total").await;
        if seen >= count { Ok(()) } else { Err(relay.status_text().await) }
    })
    .await
    .unwrap();
}

/// The number of relays that start sessions at the same time.
const RELAYS: usize = 4;

/// Two hundred sessions in the long matrix, otherwise forty, that start under load while the brokers temporarily refuse
/// records.
#[tokio::test]
async fn sessions_that_begin_while_records_are_refused_lose_nothing() {
    let _permit = heavy_permit().await;
    let cluster = TwoInSync::start(RELAYS, PARTITIONS).await;
    let sessions = if long_matrix() { 200 } else { 40 } / RELAYS;
    let relays = (1..).zip(&cluster.sites).map(|(seed, site)| begin_sessions(&cluster, site, seed, sessions));
    futures::future::join_all(relays).await;
}

/// A record may be appended although its acknowledgement fails, because the topic requires more replicas by then. The
/// next session's scan may not see it. Then it is in Kafka twice, and counted. No other fault is allowed.
async fn begin_sessions(cluster: &TwoInSync, site: &Site, seed: u64, sessions: usize) {
    let relay = cluster.launch(site);
    relay.until_ready().await;
    let load = site.start_load(100.0).await;
    let mut dice = Dice::new(seed);
    for _ in 0..sessions {
        until_more(&relay, 20.0).await;
        replicas_needed(site, "3").await;
        let holder = format!("SELECT active_pid FROM pg_replication_slots WHERE slot_name = '{}'", site.slot);
        site.execute(&format!("SELECT pg_terminate_backend(({holder}))")).await;
        // The duration of the fault.
        tokio::time::sleep(Duration::from_millis(dice.below(300) as u64)).await;
        replicas_needed(site, "2").await;
    }
    let verdict = site.verdict(load, &relay).await;
    assert!(relay.metric("outbox_relay_reconnects_total").await >= sessions as f64);
    let detected = relay.metric("outbox_relay_duplicates_detected_total").await;
    println!("duplicates: {} in Kafka, {detected} counted", verdict.duplicate.count);
    assert!(verdict.duplicate.count == 0 || detected > 0.0, "duplicates that were not counted:\n{verdict}");
    assert_correct(&Verdict { duplicate: Findings::default(), ..verdict });
}
