//! A relay that dies at a step of the refill leaves a checkpoint from which the next one continues.

use std::os::unix::process::ExitStatusExt;

use super::*;
use crate::fixture::TIMEOUT;

/// The signal that ends a process that called `abort`.
const SIGABRT: i32 = 6;

#[tokio::test]
async fn gap_recorded() {
    dies_at("gap-recorded=return").await;
}

#[tokio::test]
async fn lost_slot_dropped() {
    dies_at("lost-slot-dropped=return").await;
}

#[tokio::test]
async fn slot_created() {
    dies_at("slot-created=return").await;
}

/// Once: the next relay continues from here.
#[tokio::test]
async fn slot_in_the_checkpoint() {
    dies("refill-begun=return", 1).await;
}

#[tokio::test]
async fn in_the_scan_for_evidence() {
    dies_at("in-search=20*off->return").await;
}

/// Some rows are in Kafka, and no acknowledgement was seen.
#[tokio::test]
async fn rows_sent() {
    dies_at("in-transaction=60*off->return(500)").await;
}

#[tokio::test]
async fn rows_acknowledged() {
    dies_at("all-acknowledged=60*off->return").await;
}

#[tokio::test]
async fn all_rows_acknowledged() {
    dies_at("refill-acknowledged=return").await;
}

/// The relay dies there two times in a row.
async fn dies_at(failpoint: &str) {
    dies(failpoint, 2).await;
}

async fn dies(failpoint: &str, times: usize) {
    let _permit = heavy_permit().await;
    let site = Site::shared().await;
    let load = delivered_and_killed(&site).await;
    drop_slot(&site).await;
    until_more_rows(&site, 200).await;
    let frozen = "SELECT (confirmed_lsn, delivered_snapshot)::text FROM outbox_checkpoint";
    let known = site.value(frozen).await;
    for time in 0..times {
        let mut relay = site.launch_with(&[("FAILPOINTS", failpoint)], refilling);
        let status = relay.program.wait(TIMEOUT).await.unwrap();
        assert_eq!(status.signal(), Some(SIGABRT), "{}", relay.program.log_tail());
        let in_progress = site.value(&format!("{frozen} WHERE refill_cause IS NOT NULL")).await;
        // What the first one had in flight may have been the rest, so that the second one died in the stream.
        let has_ended = time > 0 && in_progress.is_none();
        assert!(
            has_ended || in_progress == known,
            "what is known of the delivered rows changed: {in_progress:?}"
        );
    }
    let relay = site.launch(refilling);
    ends_well(&site, load, &relay, "SlotLost").await;
}
