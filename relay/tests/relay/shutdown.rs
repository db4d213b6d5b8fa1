//! A clean stop leaves nothing to do twice.

use crate::fixture::{Site, heavy, right};

#[tokio::test]
async fn a_clean_stop_confirms_all_it_published() {
    let _place = heavy().await;
    let site = Site::shared().await;
    let relay = site.relay().await;
    let load = site.start_load(400.0).await;
    site.until_records(200).await;
    let (code, log) = relay.stop().await;
    assert_eq!(code, Some(0), "{log}");
    let records = site.records().await;
    // Everything that is in Kafka lies before what the slot has confirmed: a commit begins before its end.
    let last = records.iter().map(|record| record.header("ce_sequence").unwrap()).max().unwrap();
    let (high, low) = (&last[9..17], &last[17..25]);
    let confirmed = format!(
        "SELECT confirmed_flush_lsn > '{high}/{low}'::pg_lsn FROM pg_replication_slots WHERE slot_name = '{}'",
        site.slot
    );
    assert_eq!(site.value(&confirmed).await.as_deref(), Some("true"), "the slot would send {last} again");
    let relay = site.relay().await;
    let verdict = site.verdict(load, &relay).await;
    right(&verdict);
    assert_eq!(relay.metric("outbox_relay_duplicates_suppressed_total").await, 0.0, "a row was read twice");
    assert_eq!(relay.metric("outbox_relay_events_total").await as usize, verdict.records - records.len());
}

#[tokio::test]
async fn a_stop_while_starting_is_prompt() {
    let site = Site::shared().await;
    let relay = site.launch(|text| text.replace("host: 127.0.0.1", "host: 127.0.0.2"));
    relay.until("/readyz", 503, "DatabaseUnreachable").await;
    assert_eq!(relay.stop().await.0, Some(0));
}
