//! Faults of the network between the relay and its servers: no event is lost or duplicated, order is kept, and the
//! relay recovers automatically.

use std::time::Duration;

use testbed::postgres::PgVersion;
use testbed::proxy::{Fault, Way};
use testbed::wait;

use crate::fixture::{TIMEOUT, heavy_permit, long_matrix};
use crate::proxied::{Proxied, until_more};

/// Rows per second.
const RATE: f64 = 500.0;

#[tokio::test]
async fn connections_are_reset_on_either_side() {
    let _permit = heavy_permit().await;
    let proxied = Proxied::start().await;
    let relay = proxied.relay().await;
    let load = proxied.start_load(RATE).await;
    for _ in 0..3 {
        until_more(&relay, 50.0).await;
        proxied.to_postgres.reset_open();
        until_more(&relay, 50.0).await;
        proxied.kafka.proxies()[0].reset_open();
    }
    proxied.to_postgres.set(Fault::Reset);
    relay.until("/readyz", 503, "DatabaseUnreachable").await;
    proxied.to_postgres.set(Fault::None);
    relay.until_ready().await;
    proxied.to_kafka(Fault::Reset);
    relay.until("/readyz", 503, "KafkaUnreachable").await;
    proxied.to_kafka(Fault::None);
    relay.until_ready().await;
    proxied.judge(load, &relay).await;
}

#[tokio::test]
async fn silence_shorter_and_longer_than_the_timeouts() {
    let _permit = heavy_permit().await;
    let proxied = Proxied::start().await;
    let relay = proxied.relay().await;
    let load = proxied.start_load(RATE).await;
    for fault in [Fault::Silence, Fault::SilenceOneWay(Way::ToServer), Fault::SilenceOneWay(Way::ToClient)] {
        until_more(&relay, 50.0).await;
        // Shorter than any timeout, so it need not be detected.
        proxied.to_postgres.set(fault);
        proxied.to_kafka(fault);
        tokio::time::sleep(Duration::from_millis(700)).await;
        proxied.to_postgres.set(Fault::None);
        proxied.to_kafka(Fault::None);
        until_more(&relay, 50.0).await;
    }
    proxied.to_postgres.set(Fault::Silence);
    relay.until("/readyz", 503, "DatabaseUnreachable").await;
    proxied.to_postgres.set(Fault::None);
    relay.until_ready().await;
    proxied.to_kafka(Fault::Silence);
    relay.until("/readyz", 503, "KafkaUnreachable").await;
    proxied.to_kafka(Fault::None);
    relay.until_ready().await;
    proxied.judge(load, &relay).await;
}

/// Most of the stream is between a Begin and its Commit, and a frame has hundreds of bytes. So most cuts break a frame,
/// and nearly all of them a transaction. Cuts towards the server break a confirmation.
#[tokio::test]
async fn the_stream_is_cut_inside_a_message() {
    let _permit = heavy_permit().await;
    let proxied = Proxied::start().await;
    proxied.relay().await.kill().await;
    let load = proxied.start_load(RATE).await;
    for round in 0..4_u64 {
        // A new process each time, so that its backoff starts again.
        let relay = proxied.relay().await;
        for step in 1..=5 {
            until_more(&relay, 20.0).await;
            let way = if step % 5 == 0 { Way::ToServer } else { Way::ToClient };
            let bytes = if way == Way::ToServer { 50 + round } else { 1 + (round * 5 + step) * 787 % 9_973 };
            let cuts = proxied.to_postgres.cuts();
            proxied.to_postgres.set(Fault::CutAfter { way, bytes });
            wait::until(format!("a cut after {bytes} bytes"), TIMEOUT, async || {
                if proxied.to_postgres.cuts() > cuts { Ok(()) } else { Err("none") }
            })
            .await
            .unwrap();
        }
        until_more(&relay, 20.0).await;
        relay.kill().await;
    }
    let relay = proxied.relay().await;
    proxied.judge(load, &relay).await;
}

/// The same towards Kafka: requests and responses break in the middle. Idempotent producers retry, and a record that
/// was appended is not appended again.
#[tokio::test]
async fn requests_and_responses_are_cut_inside() {
    let _permit = heavy_permit().await;
    let proxied = Proxied::start().await;
    let relay = proxied.relay().await;
    let load = proxied.start_load(RATE).await;
    let proxy = &proxied.kafka.proxies()[0];
    for step in 0..10_u64 {
        until_more(&relay, 20.0).await;
        let way = if step % 2 == 0 { Way::ToServer } else { Way::ToClient };
        let bytes = 1 + step * 787 % if way == Way::ToServer { 9_973 } else { 211 };
        let cuts = proxy.cuts();
        proxy.set(Fault::CutAfter { way, bytes });
        wait::until(format!("a cut after {bytes} bytes"), TIMEOUT, async || {
            if proxy.cuts() > cuts { Ok(()) } else { Err("none") }
        })
        .await
        .unwrap();
    }
    proxied.judge(load, &relay).await;
}

/// Requests arrive and are appended, their acknowledgements are lost, and then the relay dies. Its successor must find
/// the records.
#[tokio::test]
async fn acknowledgements_are_lost_and_the_relay_dies() {
    let _permit = heavy_permit().await;
    let proxied = Proxied::start().await;
    let mut relay = proxied.relay().await;
    let load = proxied.start_load(RATE).await;
    let mut of_the_dead = 0;
    for _ in 0..3 {
        until_more(&relay, 50.0).await;
        proxied.to_kafka(Fault::SilenceOneWay(Way::ToClient));
        wait::until("records without acknowledgements", TIMEOUT, async || {
            let acknowledged = relay.metric("outbox_relay_events_total").await as usize;
            let arrived = proxied.site.records().await.len() - of_the_dead;
            if arrived > acknowledged {
                Ok(())
            } else {
                Err(format!("{arrived} arrived, {acknowledged} acknowledged"))
            }
        })
        .await
        .unwrap();
        relay.kill().await;
        of_the_dead = proxied.site.records().await.len();
        proxied.to_kafka(Fault::None);
        relay = proxied.relay().await;
        wait::until("rows that were found in Kafka", TIMEOUT, async || {
            let found = relay.metric("outbox_relay_duplicates_suppressed_total").await;
            if found > 0.0 { Ok(()) } else { Err(relay.status_text().await) }
        })
        .await
        .unwrap();
    }
    proxied.judge(load, &relay).await;
}

/// Half-open for longer than the timeouts each way, late, slow, in segments of one byte.
/// The durations are realistic: the server's default timeout, and a longer silence.
async fn survives_a_bad_network(version: PgVersion) {
    if !long_matrix() {
        return;
    }
    let _permit = heavy_permit().await;
    let proxied = Proxied::on(version, 1, "60s").await;
    let relay = proxied.relay().await;
    let load = proxied.start_load(100.0).await;
    let delay = Fault::Delay { by: Duration::from_millis(20), jitter: Duration::from_millis(50) };
    for fault in [
        Fault::SilenceOneWay(Way::ToServer),
        Fault::SilenceOneWay(Way::ToClient),
        Fault::Silence,
        Fault::Slices(1),
        Fault::BytesPerSecond(64_000),
        delay,
    ] {
        let silent = matches!(fault, Fault::Silence | Fault::SilenceOneWay(_));
        until_more(&relay, 20.0).await;
        proxied.to_postgres.set(fault);
        if silent {
            tokio::time::sleep(Duration::from_secs(90)).await
        } else {
            until_more(&relay, 20.0).await
        }
        proxied.to_postgres.set(Fault::None);
        until_more(&relay, 20.0).await;
        proxied.to_kafka(fault);
        if silent {
            tokio::time::sleep(Duration::from_secs(90)).await
        } else {
            until_more(&relay, 20.0).await
        }
        proxied.to_kafka(Fault::None);
        relay.until_ready().await;
    }
    proxied.judge(load, &relay).await;
}

#[tokio::test]
async fn a_bad_network_with_literal_durations_on_15() {
    survives_a_bad_network(PgVersion::V15).await;
}

#[tokio::test]
async fn a_bad_network_with_literal_durations_on_17() {
    survives_a_bad_network(PgVersion::V17).await;
}

#[tokio::test]
async fn a_bad_network_with_literal_durations_on_18() {
    survives_a_bad_network(PgVersion::V18).await;
}

/// The relay cannot reach one of three brokers, which the cluster considers healthy and keeps as a leader. The
/// rows of its partitions wait, others are delivered, and once it is reachable again the waiting rows arrive.
#[tokio::test]
async fn one_of_three_brokers_is_silent() {
    if !long_matrix() {
        return;
    }
    let _permit = heavy_permit().await;
    let proxied = Proxied::on(PgVersion::V18, 3, "3s").await;
    let relay = proxied.relay().await;
    let load = proxied.start_load(200.0).await;
    for proxy in proxied.kafka.proxies() {
        until_more(&relay, 50.0).await;
        proxy.set(Fault::Silence);
        tokio::time::sleep(Duration::from_secs(40)).await;
        proxy.set(Fault::None);
        relay.until_ready().await;
    }
    proxied.judge(load, &relay).await;
}

/// Three brokers, three replicas, two of them in sync at least: the leader of a partition dies five times.
#[tokio::test]
async fn a_leader_killed_five_times_under_load() {
    if !long_matrix() {
        return;
    }
    let _permit = heavy_permit().await;
    let mut proxied = Proxied::on(PgVersion::V18, 3, "3s").await;
    let relay = proxied.relay().await;
    let load = proxied.start_load(RATE).await;
    for round in 0..5 {
        until_more(&relay, 100.0).await;
        // Leaders are distributed over the brokers and move when one dies, so every broker leads a partition.
        proxied.kafka.brokers()[round % 3].kill().await.unwrap();
        until_more(&relay, 500.0).await;
        proxied.kafka.start_again().await.unwrap();
    }
    proxied.judge(load, &relay).await;
}
