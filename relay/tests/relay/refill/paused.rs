//! The process that held the lost slot was only paused, and wakes up during the refill with records in flight. The
//! slot does not fence Kafka, so they are appended.

use testbed::checker;
use testbed::load::Log;
use testbed::process::Signal;
use testbed::proxy::{Fault, Way};

use crate::fixture::long_matrix;
use crate::proxied::Proxied;

use super::*;

/// Rows that are in flight when the process is paused.
const IN_FLIGHT: usize = 500;
/// The number of rows after them.
const ROWS: usize = 2_000;

/// Nothing is lost and the order is kept. The relay that refills notices the records, and reads again which rows Kafka
/// has. Those that it had sent until then are there twice, and are counted.
#[tokio::test]
async fn records_of_a_process_that_wakes_up_during_the_refill_are_found_and_counted() {
    if !long_matrix() {
        return;
    }
    let _permit = heavy_permit().await;
    let proxied = Proxied::start().await;
    let site = &proxied.site;
    let by_proxy =
        |text: String| refilling(text).replace(&site.bootstrap, &proxied.kafka.proxied_bootstrap());
    let paused = site.launch(by_proxy);
    paused.until("/readyz", 200, "streaming").await;
    site.execute(&insert_many(site, 300)).await;
    site.until_records(300).await;
    knows_all_rows(site).await;
    proxied.to_kafka(Fault::SilenceOneWay(Way::ToServer));
    site.execute(&insert_many(site, IN_FLIGHT)).await;
    wait::until("records in flight", TIMEOUT, async || {
        let events = paused.metric("outbox_relay_in_flight_events").await;
        if events >= IN_FLIGHT as f64 { Ok(()) } else { Err(events) }
    })
    .await
    .unwrap();
    paused.program.signal(Signal::Stop).unwrap();
    // The server ends its stream.
    drop_slot(site).await;
    site.execute(&insert_many(site, ROWS)).await;
    let relay = site.launch(refilling_slowly);
    until_in_the_middle(&relay).await;
    proxied.to_kafka(Fault::None);
    paused.program.signal(Signal::Cont).unwrap();
    paused.until("/readyz", 200, "standby").await;
    relay.until("/readyz", 200, "streaming").await;

    let topic = site.topic();
    let log = Log::of_table(site.database.url(), "outbox", |_| topic.clone()).await.unwrap();
    site.until_confirmed(&relay).await;
    let verdict = checker::check(&log, &site.records().await);
    let counted = relay.metric("outbox_relay_duplicates_detected_total").await as usize;
    println!("{} rows are in Kafka twice, {counted} were counted", verdict.duplicate.count);
    let others =
        verdict.lost.count + verdict.phantom.count + verdict.reordered.count + verdict.corrupted.count;
    assert_eq!(others, 0, "\n{verdict}");
    assert!(verdict.duplicate.count <= IN_FLIGHT, "\n{verdict}");
    assert!(counted >= verdict.duplicate.count, "some were not counted:\n{verdict}");
    assert_complete(site).await;
}
