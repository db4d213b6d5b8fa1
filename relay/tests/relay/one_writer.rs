//! One relay writes at a time: the slot is the lock. The slot moves to another relay after a clean stop, a crash, and
//! while its holder is paused.

use std::time::Duration;

use testbed::postgres::PgVersion;
use testbed::process::Signal;
use testbed::wait;

use crate::fixture::{OwnServers, Relay, Site, TIMEOUT, assert_correct, heavy_permit};
use crate::proxied::{Proxied, until_more};

/// Rows per second.
const RATE: f64 = 500.0;

async fn until_streaming(relay: &Relay) {
    relay.until("/readyz", 200, "streaming").await;
}

#[tokio::test]
async fn repeated_sigterm_under_load() {
    let _permit = heavy_permit().await;
    let site = Site::shared().await;
    site.relay().await.stop().await;
    let load = site.start_load(RATE).await;
    for _ in 0..8 {
        let relay = site.relay().await;
        until_more(&relay, 30.0).await;
        let (code, log) = relay.stop().await;
        assert_eq!(code, Some(0), "{log}");
        assert!(log.contains("stopped cleanly"), "{log}");
    }
    let relay = site.relay().await;
    assert_correct(&site.verdict(load, &relay).await);
    assert_eq!(
        relay.metric("outbox_relay_duplicates_suppressed_total").await,
        0.0,
        "a row was read again after a clean stop"
    );
}

/// The relay that does not hold the slot is ready, reports that it stands by, and takes over automatically.
#[tokio::test]
async fn a_standby_takes_over_from_one_that_died() {
    let _permit = heavy_permit().await;
    let site = Site::shared().await;
    let mut first = site.relay().await;
    until_streaming(&first).await;
    let load = site.start_load(RATE).await;
    for round in 0..4 {
        let second = site.launch(|text| text);
        second.until("/readyz", 200, "standby").await;
        assert_eq!(second.status().await["problem"]["reason"], "SlotActive");
        until_more(&first, 30.0).await;
        // After a crash, and after a clean stop.
        if round % 2 == 0 {
            first.kill().await;
        } else {
            assert_eq!(first.stop().await.0, Some(0));
        }
        until_streaming(&second).await;
        until_more(&second, 30.0).await;
        first = second;
    }
    assert_correct(&site.verdict(load, &first).await);
}

/// A relay that waits for the slot does not request it repeatedly.
#[tokio::test]
async fn a_standby_relay_causes_no_errors_in_the_server_log() {
    let _permit = heavy_permit().await;
    let servers = OwnServers::start(PgVersion::V18, &[]).await;
    let site = servers.site().await;
    let active = site.relay().await;
    let standby = site.launch(|text| text);
    standby.until("/readyz", 200, "standby").await;
    let latest =
        "SELECT max(backend_start) FROM pg_stat_activity WHERE application_name = 'outbox-relay session'";
    // It still checks from time to time.
    let mut tries = Vec::new();
    wait::until("two tries", TIMEOUT, async || {
        let started = site.value(latest).await;
        if !tries.contains(&started) {
            tries.push(started);
        }
        if tries.len() > 2 { Ok(()) } else { Err(tries.len()) }
    })
    .await
    .unwrap();
    let log = servers.postgres.log();
    assert!(!log.contains("is active for PID"), "{log}");
    active.kill().await;
    until_streaming(&standby).await;
}

/// A relay is paused for longer than `wal_sender_timeout`, a successor acquires the slot and delivers, then the
/// first is resumed. No event is lost or out of order. Records that the paused process had queued may be appended when
/// it resumes, because the slot does not fence Kafka (R10). The successor counts them when it scans the gaps in its
/// partitions. They are only those that were in flight when the process was paused: rows that the server sent to it
/// during the pause are not sent.
#[tokio::test]
async fn a_paused_relay_wakes_up_behind_its_successor() {
    let _permit = heavy_permit().await;
    let proxied = Proxied::start().await;
    let mut active = proxied.site.relay().await;
    let load = proxied.start_load(RATE).await;
    let mut detected = 0.0;
    const ROUNDS: u8 = 3;
    for _ in 0..ROUNDS {
        let successor = proxied.site.launch(|text| text);
        successor.until("/readyz", 200, "standby").await;
        until_more(&active, 50.0).await;
        active.program.signal(Signal::Stop).unwrap();
        // The server ends the paused relay's stream, which releases the slot.
        until_streaming(&successor).await;
        until_more(&successor, 200.0).await;
        active.program.signal(Signal::Cont).unwrap();
        // The paused relay finds that another holds the slot, and stands by.
        active.until("/readyz", 200, "standby").await;
        until_more(&successor, 200.0).await;
        detected += successor.metric("outbox_relay_duplicates_detected_total").await;
        active.kill().await;
        active = successor;
    }
    let verdict = proxied.site.verdict(load, &active).await;
    let duplicates = verdict.duplicate.count;
    println!("duplicates: {duplicates} in Kafka, {detected} counted");
    assert_eq!(verdict.lost.count, 0, "\n{verdict}");
    assert_eq!(verdict.phantom.count + verdict.reordered.count + verdict.corrupted.count, 0, "\n{verdict}");
    // The rows of one second per round; the server sends for three seconds before it ends the stream.
    let under_way = RATE * f64::from(ROUNDS);
    assert!((duplicates as f64) < under_way, "it continued to send after the pause:\n{verdict}");
    assert!(duplicates == 0 || detected > 0.0, "there are uncounted duplicates:\n{verdict}");
}

/// A pause shorter than the timeout has no effect: the relay still holds its slot, and continues.
#[tokio::test]
async fn a_short_pause_has_no_effect() {
    let _permit = heavy_permit().await;
    let site = Site::shared().await;
    let relay = site.relay().await;
    let load = site.start_load(RATE).await;
    for _ in 0..3 {
        until_more(&relay, 50.0).await;
        relay.program.signal(Signal::Stop).unwrap();
        tokio::time::sleep(Duration::from_secs(2)).await;
        relay.program.signal(Signal::Cont).unwrap();
    }
    until_more(&relay, 50.0).await;
    assert_correct(&site.verdict(load, &relay).await);
}

/// Another client repeatedly terminates the walsender.
#[tokio::test]
async fn the_walsender_is_terminated_repeatedly() {
    let _permit = heavy_permit().await;
    survives_terminations(Site::shared().await).await;
}

pub async fn survives_terminations(site: Site) {
    let relay = site.relay().await;
    let load = site.start_load(RATE).await;
    let terminate = format!(
        "SELECT count(pg_terminate_backend(active_pid)) FROM pg_replication_slots
         WHERE slot_name = '{}' AND active_pid IS NOT NULL",
        site.slot
    );
    for _ in 0..6 {
        until_more(&relay, 30.0).await;
        wait::until("the end of a walsender", TIMEOUT, async || {
            match site.value(&terminate).await.as_deref() {
                Some("1") => Ok(()),
                _ => Err("the slot is free"),
            }
        })
        .await
        .unwrap();
    }
    until_more(&relay, 30.0).await;
    assert_correct(&site.verdict(load, &relay).await);
}
