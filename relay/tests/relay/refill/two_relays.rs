//! Two relays of one slot: exactly one of them refills, and the other one takes over if that one dies.

use crate::fixture::long_matrix;

use super::*;

/// The number of missing rows.
const ROWS: usize = 2_000;

async fn active_and_standby(site: &Site) -> [Relay; 2] {
    let active = site.launch(refilling_slowly);
    active.until("/readyz", 200, "streaming").await;
    site.insert([("k", 1)]).await;
    site.until_records(1).await;
    knows_all_rows(site).await;
    let standby = site.launch(refilling_slowly);
    standby.until("/readyz", 200, "standby").await;
    [active, standby]
}

/// Waits until one of the relays is in the middle of a refill: first that one, then the other.
async fn refilling_and_other(relays: [Relay; 2]) -> [Relay; 2] {
    let [one, two] = relays;
    let is_two = wait::until("a relay in the middle of a refill", TIMEOUT, async || {
        let rows = [refilled_so_far(&one).await, refilled_so_far(&two).await];
        match rows.map(|rows| rows.is_some_and(|rows| rows >= 200)) {
            [false, false] => Err(format!("{rows:?}\n{}", one.program.log_tail())),
            [_, is_two] => Ok(is_two),
        }
    });
    if is_two.await.unwrap() { [two, one] } else { [one, two] }
}

/// Started again by two relays, it is still one refill.
async fn was_replaced_once(site: &Site) {
    let replaced = "SELECT cardinality(slot_replaced_at) FROM outbox_checkpoint";
    assert_eq!(site.value(replaced).await.as_deref(), Some("1"));
}

#[tokio::test]
async fn one_of_two_relays_refills() {
    if !long_matrix() {
        return;
    }
    let _permit = heavy_permit().await;
    let site = Site::shared().await;
    let relays = active_and_standby(&site).await;
    drop_slot_under_relays(&site, ROWS).await;
    let [refills, other] = refilling_and_other(relays).await;
    other.until("/readyz", 200, "standby").await;
    site.insert([("k", 2)]).await;
    assert_each_row_once(&site, &refills).await;
    was_replaced_once(&site).await;
    assert_eq!(refilled(&site, "SlotLost").await, ROWS);
    let series = "outbox_relay_refilled_rows_total{cause=\"SlotLost\"}";
    assert_eq!((refills.metric(series).await, other.metric(series).await), (ROWS as f64, 0.0));
}

#[tokio::test]
async fn a_standby_relay_continues_the_refill_of_one_that_was_killed() {
    let _permit = heavy_permit().await;
    let site = Site::shared().await;
    let relays = active_and_standby(&site).await;
    drop_slot_under_relays(&site, ROWS).await;
    let [refills, other] = refilling_and_other(relays).await;
    refills.kill().await;
    let third = site.launch(refilling_slowly);
    let [refills, other] = refilling_and_other([other, third]).await;
    other.until("/readyz", 200, "standby").await;
    refills.kill().await;
    site.insert([("k", 2)]).await;
    assert_each_row_once(&site, &other).await;
    was_replaced_once(&site).await;
    assert_eq!(refilled(&site, "SlotLost").await, ROWS);
}
