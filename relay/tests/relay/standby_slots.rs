//! `synchronized_standby_slots`: the server holds the stream of a failover slot back until standbys have what is in it.
//! Nothing is left out, no session ends for it, and what is waited for is named.

use testbed::postgres::PgVersion;

use crate::fixture::{OwnServers, Relay, Site, heavy};

async fn set(site: &Site, slots: &str) {
    site.execute(&format!("ALTER SYSTEM SET synchronized_standby_slots = '{slots}'")).await;
    site.execute("SELECT pg_reload_conf()").await;
}

/// A row waits, with `said` beside the reason, and is delivered when the setting is reset.
async fn waits_and_goes_on(site: &Site, relay: &Relay, slots: &str, said: &[&str]) {
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
async fn a_standby_that_is_waited_for_is_named() {
    let _place = heavy().await;
    for version in [PgVersion::V18, PgVersion::V17] {
        let servers = OwnServers::start(version, &[]).await;
        let site = servers.site().await;
        site.execute("SELECT pg_create_physical_replication_slot('unread')").await;
        site.execute("SELECT pg_create_physical_replication_slot('reserved', true)").await;
        let relay = site.relay().await;
        site.insert([("k", 0)]).await;
        site.until_records(1).await;
        waits_and_goes_on(&site, &relay, "reserved", &["does not have active_pid"]).await;
        waits_and_goes_on(&site, &relay, "unread", &["does not have active_pid"]).await;
        waits_and_goes_on(&site, &relay, "not_there", &["does not exist"]).await;
    }
}

/// From the start on: the first row that the slot has is waited with.
#[tokio::test]
async fn a_start_with_a_standby_that_is_away_is_no_missing_publication() {
    let _place = heavy().await;
    let servers = OwnServers::start(PgVersion::V18, &[]).await;
    let site = servers.site().await;
    site.execute("SELECT pg_create_physical_replication_slot('unread')").await;
    set(&site, "unread").await;
    let relay = site.launch(|text| text);
    relay.until("/readyz", 200, "streaming").await;
    waits_and_goes_on(&site, &relay, "unread", &["does not have active_pid"]).await;
    site.judge_table(&relay).await;
}
