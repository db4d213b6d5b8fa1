//! `source.onGap` is set back to `Stop` before a refill is complete: the relay stops and says how to continue, and
//! nothing that is known of the delivered rows is lost.

use crate::fixture::long_matrix;
use crate::procedures::{fill_in, statements};

use super::*;

/// The number of missing rows.
const ROWS: usize = 1_000;

/// A relay with `Stop` says what is the case, and changes neither the checkpoint nor Kafka.
async fn stops(site: &Site) {
    let (state, records) = (refill_state(site).await, site.records().await.len());
    let relay = site.launch(|text| text);
    let text = relay.until("/readyz", 503, "SlotLost").await;
    assert!(text.contains("is not complete") && text.contains("set source.onGap: Refill"), "{text}");
    let doctor = site.command(relay.admin, |text| text, &["doctor"]).await;
    assert!(doctor.out.contains("set source.onGap: Refill"), "{doctor:?}");
    site.insert([("k", 0)]).await;
    assert_eq!(relay.stop().await.0, Some(0));
    assert_eq!(refill_state(site).await, state);
    assert_eq!(site.records().await.len(), records);
}

async fn delivered_and_lost(site: &Site) {
    let relay = site.launch(refilling);
    relay.until_ready().await;
    site.insert([("k", 1)]).await;
    site.until_records(1).await;
    knows_all_rows(site).await;
    relay.kill().await;
    drop_slot(site).await;
    site.execute(&insert_many(site, ROWS)).await;
}

#[tokio::test]
async fn in_the_middle_of_the_rows() {
    let _permit = heavy_permit().await;
    let site = Site::shared().await;
    delivered_and_lost(&site).await;
    let relay = site.launch(refilling_slowly);
    until_in_the_middle(&relay).await;
    relay.kill().await;
    stops(&site).await;
    let relay = site.launch(refilling);
    assert_each_row_once(&site, &relay).await;
    assert_eq!(refilled(&site, "SlotLost").await, ROWS);
}

/// The new slot may exist or not.
#[tokio::test]
async fn while_the_slot_is_being_created() {
    if !long_matrix() {
        return;
    }
    let _permit = heavy_permit().await;
    let site = Site::shared().await;
    delivered_and_lost(&site).await;
    let mut sql = site.sql().await;
    let mut open = sql.begin().await.unwrap();
    open.execute("SELECT pg_current_xact_id()").await.unwrap();
    let relay = site.launch(refilling);
    relay.until("/readyz", 503, "SlotCreationWaits").await;
    relay.kill().await;
    stops(&site).await;
    open.commit().await.unwrap();
    stops(&site).await;
    let relay = site.launch(refilling);
    assert_each_row_once(&site, &relay).await;
}

/// The documented way to end it: missing rows that were not sent count as delivered, and the new slot is kept.
#[tokio::test]
async fn the_refill_is_ended_instead() {
    if !long_matrix() {
        return;
    }
    let _permit = heavy_permit().await;
    let site = Site::shared().await;
    delivered_and_lost(&site).await;
    let relay = site.launch(refilling_slowly);
    until_in_the_middle(&relay).await;
    relay.kill().await;
    site.insert([("k", 2)]).await;
    let end = |statement: &String| statement.contains("confirmed_lsn = NULL");
    let end = statements("The slot was lost").into_iter().find(end).unwrap();
    site.execute(&fill_in(&end, "relay", &site.slot)).await;
    let sent = site.records().await.len();
    assert!(sent < ROWS, "{sent}");
    let relay = site.launch(|text| text.replace("source: {", "source: {start: Now, "));
    relay.until("/readyz", 200, "streaming").await;
    site.insert([("k", 3)]).await;
    site.until_confirmed(&relay).await;
    assert_eq!(site.records().await.len(), sent + 2, "the rows from before the slot are not sent any more");
    relay.kill().await;
    let relay = site.launch(refilling);
    relay.until("/readyz", 200, "streaming").await;
    assert_eq!(site.records().await.len(), sent + 2);
}
