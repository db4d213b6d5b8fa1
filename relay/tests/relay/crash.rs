//! No event is lost or duplicated when a process dies.

use std::time::{Duration, Instant};

use testbed::load::{Backlog, Load, write_backlog};
use testbed::postgres::PgVersion;
use testbed::wait;

use crate::fixture::{OwnServers, Relay, Site, TIMEOUT, assert_correct, heavy_permit, long_matrix};
use crate::{data, one_writer, servers};

/// Rows per second: enough to keep a debug build busy, few enough to leave two cores time for everything else.
const RATE: f64 = 600.0;

/// Pseudo-random pauses with a printed seed, which decide where the kill hits.
pub struct Pauses(u64);

impl Pauses {
    pub fn new() -> Pauses {
        let seed = std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap().as_nanos() as u64 | 1;
        println!("seed {seed}");
        Pauses(seed)
    }

    pub async fn next(&mut self, most_ms: u64) {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        tokio::time::sleep(Duration::from_millis(self.0 % most_ms)).await;
    }
}

/// Servers of the test's own, and a relay that delivers what is written.
async fn under_load(version: PgVersion) -> (OwnServers, Site, Relay, Load) {
    let servers = OwnServers::start(version, &[]).await;
    let site = servers.site().await;
    let relay = site.relay().await;
    let load = site.start_load(RATE).await;
    site.until_records(100).await;
    (servers, site, relay, load)
}

async fn survives_kills(site: &Site, kills: usize) {
    // The guarantee starts with the creation of the slot.
    site.relay().await.kill().await;
    let load = site.start_load(RATE).await;
    let mut pauses = Pauses::new();
    for _ in 0..kills {
        let relay = site.launch(|text| text);
        // Any moment from the very start to the middle of delivery.
        pauses.next(900).await;
        relay.kill().await;
    }
    let relay = site.relay().await;
    assert_correct(&site.verdict(load, &relay).await);
}

#[tokio::test]
async fn twenty_kill_9_under_load() {
    let _permit = heavy_permit().await;
    survives_kills(&Site::shared().await, 20).await;
}

#[tokio::test]
async fn kafka_stopped_for_20_seconds_under_load() {
    let _permit = heavy_permit().await;
    survives_a_kafka_outage(PgVersion::V18).await;
}

async fn survives_a_kafka_outage(version: PgVersion) {
    let (mut servers, site, relay, load) = under_load(version).await;
    servers.kafka.stop().await.unwrap();
    let down = Instant::now();
    relay.until("/readyz", 503, "KafkaUnreachable").await;
    assert!(relay.status().await["lagSeconds"].as_f64().unwrap() > 0.0);
    // The outage's length is the test's subject.
    tokio::time::sleep(Duration::from_secs(20).saturating_sub(down.elapsed())).await;
    servers.kafka.start_again().await.unwrap();
    relay.until_ready().await;
    assert_correct(&site.verdict(load, &relay).await);
}

/// A broker that hangs neither acknowledges nor refuses. The records it had received are sent again after it resumes,
/// and must be in Kafka once.
#[tokio::test]
async fn kafka_hangs_longer_than_a_request_may_take() {
    let _permit = heavy_permit().await;
    let (mut servers, site, relay, load) = under_load(PgVersion::V18).await;
    servers.kafka.brokers()[0].pause().unwrap();
    let hangs = Instant::now();
    relay.until("/readyz", 503, "KafkaUnreachable").await;
    // The producers time out a request after 10 s.
    tokio::time::sleep(Duration::from_secs(15).saturating_sub(hangs.elapsed())).await;
    servers.kafka.brokers()[0].resume().unwrap();
    relay.until_ready().await;
    assert_correct(&site.verdict(load, &relay).await);
}

#[tokio::test]
async fn kill_9_while_kafka_is_down() {
    let _permit = heavy_permit().await;
    let (mut servers, site, relay, load) = under_load(PgVersion::V18).await;
    servers.kafka.kill().await.unwrap();
    relay.until("/readyz", 503, "KafkaUnreachable").await;
    relay.kill().await;
    let relay = site.launch(|text| text);
    relay.until("/readyz", 503, "KafkaUnreachable").await;
    servers.kafka.start_again().await.unwrap();
    relay.until_ready().await;
    assert_correct(&site.verdict(load, &relay).await);
}

#[tokio::test]
async fn postgres_killed_under_load() {
    let _permit = heavy_permit().await;
    survives_a_postgres_crash(PgVersion::V18).await;
}

async fn survives_a_postgres_crash(version: PgVersion) {
    let (mut servers, site, relay, load) = under_load(version).await;
    for round in 1..=3 {
        site.until_records(100 * round).await;
        servers.postgres.kill().await.unwrap();
        relay.until("/readyz", 503, "Database").await;
        servers.postgres.start_again().await.unwrap();
        relay.until_ready().await;
    }
    assert_correct(&site.verdict(load, &relay).await);
}

#[tokio::test]
async fn killed_again_and_again_inside_one_large_transaction() {
    let _permit = heavy_permit().await;
    let site = Site::shared().await;
    site.relay().await.stop().await;
    let backlog = Backlog {
        rows: 20_000,
        rows_per_transaction: vec![20_000],
        aggregatetype: site.aggregate.clone(),
        ..Backlog::default()
    };
    write_backlog(site.database.url(), &backlog).await.unwrap();
    for part in 1..=4 {
        let relay = site.launch(|text| text);
        wait::until("a part of the transaction", TIMEOUT, async || {
            let count = site.records().await.len();
            if count >= part * 3_000 { Ok(()) } else { Err(count) }
        })
        .await
        .unwrap();
        relay.kill().await;
    }
    let relay = site.relay().await;
    site.until_records(20_000).await;
    site.judge_table(&relay).await;
}

async fn on_version(version: PgVersion) {
    let _permit = heavy_permit().await;
    let servers = OwnServers::start(version, &[]).await;
    survives_kills(&servers.site().await, if long_matrix() { 20 } else { 3 }).await;
    drop(servers);
    if long_matrix() {
        survives_a_kafka_outage(version).await;
        survives_a_postgres_crash(version).await;
        servers::survives_restarts(version).await;
        let servers = OwnServers::start(version, &[]).await;
        one_writer::survives_terminations(servers.site().await).await;
        data::partitions_come_and_go(servers.site().await).await;
    }
}

#[tokio::test]
async fn on_postgres_15() {
    on_version(PgVersion::V15).await;
}

#[tokio::test]
async fn on_postgres_17() {
    if long_matrix() {
        on_version(PgVersion::V17).await;
    }
}
