//! `synchronized_standby_slots`: the server delays the stream of a failover slot until standbys have received it. No
//! row is omitted, no session ends because of it, and the standby that the server waits for is named.

use testbed::postgres::PgVersion;

use crate::fixture::{OwnServers, Relay, Site, heavy_permit};

async fn set(site: &Site, slots: &str) {
    site.execute(&format!("ALTER SYSTEM SET synchronized_standby_slots = '{slots}'")).await;
    site.execute("SELECT pg_reload_conf()").await;
}

/// A row waits, with `said` in the message, and is delivered once the setting is reset.
async fn waits_then_delivers(site: &Site, relay: &Relay, slots: &str, said: &[&str]) {
    set(site, slots).await;
    let before = site.records().await.len();
    site.insert([("k", 1)]).await;
    let text = relay.until("/readyz", 503, "WaitingForStandby").await;
    for said in said.iter().chain(&["synchronized_standby_slots", slots]) {
        assert!(text.contains(said), "{said}: {text}");
    }
    let doctor = site.command(relay.admin, |text| text, &["doctor"]).await;
    assert!(doctor.out.contains("standbys") && doctor.out.contains(slots), "{doctor:?}");
    set(site, "").await;
    relay.until_ready().await;
    site.until_records(before + 1).await;
    assert_eq!(relay.metric("outbox_relay_reconnects_total").await, 0.0, "{}", relay.program.log());
}

#[tokio::test]
async fn the_standby_that_the_server_waits_for_is_named() {
    let _permit = heavy_permit().await;
    for version in [PgVersion::V18, PgVersion::V17] {
        let servers = OwnServers::start(version, &[]).await;
        let site = servers.site().await;
        site.execute("SELECT pg_create_physical_replication_slot('unread')").await;
        site.execute("SELECT pg_create_physical_replication_slot('reserved', true)").await;
        let relay = site.relay().await;
        site.insert([("k", 0)]).await;
        site.until_records(1).await;
        waits_then_delivers(&site, &relay, "reserved", &["does not have active_pid"]).await;
        waits_then_delivers(&site, &relay, "unread", &["does not have active_pid"]).await;
        waits_then_delivers(&site, &relay, "not_there", &["does not exist"]).await;
    }
}

/// The standby is down from the start: even the first row of the slot waits.
#[tokio::test]
async fn a_start_without_the_standby_is_not_reported_as_a_missing_publication() {
    let _permit = heavy_permit().await;
    let servers = OwnServers::start(PgVersion::V18, &[]).await;
    let site = servers.site().await;
    site.execute("SELECT pg_create_physical_replication_slot('unread')").await;
    set(&site, "unread").await;
    let relay = site.launch(|text| text);
    relay.until("/readyz", 200, "streaming").await;
    waits_then_delivers(&site, &relay, "unread", &["does not have active_pid"]).await;
    site.judge_table(&relay).await;
}
