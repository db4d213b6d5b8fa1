//! Many missing rows, and few missing rows in a large table: memory is bounded.

use std::time::{Duration, Instant};

use testbed::log_ends::LogEnds;

use crate::fixture::long_matrix;

use super::*;

const MIB: u64 = 1024 * 1024;
/// A debug build on a machine that does other things as well.
const ALL_OF_THEM: Duration = Duration::from_secs(45 * 60);

/// A relay for which the rows that are in the table count as delivered. It was killed, and its slot dropped.
async fn lost_behind(site: &Site) {
    let relay = site.launch(|text| refilling(text).replace("source: {", "source: {start: Now, "));
    relay.until_ready().await;
    site.insert([("k", 1)]).await;
    site.until_records(1).await;
    knows_all_rows(site).await;
    relay.kill().await;
    drop_slot(site).await;
}

/// Refills `rows` rows, and prints the rate.
async fn refills(site: &Site, rows: usize) {
    let logs = LogEnds::open(&site.bootstrap, &[site.topic()]).await.unwrap();
    let began = Instant::now();
    let relay = site.launch(refilling);
    wait::until("the end of the refill", ALL_OF_THEM, async || match relay.ask("/readyz").await {
        Some((200, text)) if text.contains("streaming") => Ok(()),
        seen => Err(format!("{seen:?}\n{}", relay.program.log_tail())),
    })
    .await
    .unwrap();
    let took = began.elapsed();
    let (_, peak) = relay.program.memory().unwrap();
    println!(
        "{rows} missing rows refilled in {took:?}, start of the process included: {:.0} rows/s, peak {} MiB",
        rows as f64 / took.as_secs_f64(),
        peak / MIB
    );
    assert_eq!(logs.records().await.unwrap(), rows as u64);
    assert_eq!(relay.metric("outbox_relay_refilled_rows_total{cause=\"SlotLost\"}").await, rows as f64);
    assert!(peak < 64 * MIB, "the relay had {} MiB at its peak", peak / MIB);
    assert_complete(site).await;
}

#[tokio::test]
async fn two_million_missing_rows() {
    if !long_matrix() {
        return;
    }
    let _permit = heavy_permit().await;
    let servers = OwnServers::start(PgVersion::V18, &[]).await;
    let site = servers.site().await;
    lost_behind(&site).await;
    site.execute(&insert_many(&site, 2_000_000)).await;
    refills(&site, 2_000_000).await;
}

#[tokio::test]
async fn five_thousand_missing_rows_in_a_table_of_five_million() {
    if !long_matrix() {
        return;
    }
    let _permit = heavy_permit().await;
    let servers = OwnServers::start(PgVersion::V18, &[("max_wal_size", "4GB")]).await;
    let site = servers.site().await;
    site.execute(&insert_many(&site, 5_000_000)).await;
    lost_behind(&site).await;
    site.execute(&insert_many(&site, 5_000)).await;
    refills(&site, 5_000).await;
}
