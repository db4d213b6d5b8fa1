//! An idle outbox in a busy cluster retains no WAL (R14), and does not keep the cluster busy itself (R13).

use std::time::{Duration, Instant};

use testbed::postgres::PgVersion;
use testbed::{Database, wait};

use crate::fixture::{OwnServers, Site, TIMEOUT, heavy_permit, long_matrix};

const MIB: i64 = 1024 * 1024;

/// Random text does not compress, so it takes its full size in the WAL.
const TEN_MEGABYTES: &str = "INSERT INTO busy SELECT string_agg(md5(random()::text), '')
     FROM generate_series(1, 10000) row, generate_series(1, 32) part GROUP BY row";

/// Waits until the slot has confirmed almost all of the server's WAL.
async fn until_close_behind(site: &Site) {
    let behind = format!(
        "SELECT pg_wal_lsn_diff(pg_current_wal_lsn(), confirmed_flush_lsn)::bigint
         FROM pg_replication_slots WHERE slot_name = '{}'",
        site.slot
    );
    wait::until("a confirmation that follows", TIMEOUT, async || {
        let bytes: i64 = site.value(&behind).await.unwrap().parse().unwrap();
        if bytes < 16 * MIB { Ok(()) } else { Err(format!("{bytes} bytes behind")) }
    })
    .await
    .unwrap();
}

#[tokio::test]
async fn the_wal_of_another_tables_100_megabytes_is_not_retained() {
    let _permit = heavy_permit().await;
    let site = Site::shared().await;
    let relay = site.relay().await;
    site.execute("CREATE TABLE busy (filler text)").await;
    let start = site.value("pg_current_wal_lsn()").await.unwrap();
    for _ in 0..10 {
        site.execute(TEN_MEGABYTES).await;
        until_close_behind(&site).await;
    }
    let written =
        site.value(&format!("pg_wal_lsn_diff(pg_current_wal_lsn(), '{start}')::bigint")).await.unwrap();
    assert!(written.parse::<i64>().unwrap() > 90 * MIB, "the test wrote only {written} bytes");
    wait::until("retained WAL that is small", TIMEOUT, async || {
        // The restart LSN advances when the server next logs its running transactions.
        site.execute("SELECT pg_log_standby_snapshot()").await;
        site.insert([("k", 1)]).await;
        let retained = relay.metric("outbox_relay_retained_wal_bytes").await as i64;
        if retained < 20 * MIB { Ok(()) } else { Err(format!("{retained} bytes retained")) }
    })
    .await
    .unwrap();
}

#[tokio::test]
async fn an_idle_relay_writes_few_checkpoints() {
    let _permit = heavy_permit().await;
    // A dedicated server, because writes of other tests are progress, too.
    let servers = OwnServers::start(PgVersion::V18, &[]).await;
    let site = servers.site().await;
    let relay = site.relay().await;
    site.insert([("k", 1)]).await;
    site.until_records(1).await;
    site.until_confirmed(&relay).await;
    let version = "SELECT xmin::text::bigint FROM outbox_checkpoint";
    let before = site.value(version).await;
    // Each checkpoint is a write that the stream reports. A relay that reacted to each with another checkpoint would
    // write dozens in this time; one that waits for its interval writes one at most.
    let mut changes = 0;
    let mut last = before;
    for _ in 0..60 {
        tokio::time::sleep(Duration::from_millis(50)).await;
        let now = site.value(version).await;
        changes += u32::from(now != last);
        last = now;
    }
    assert!(changes <= 2, "{changes} checkpoints in three idle seconds");
}

/// The outbox is idle for minutes while the rest of the cluster is busy: another table, and another database,
/// which the stream does not show. The relay stays ready, without lag, and retains no WAL. Then a row arrives.
#[tokio::test]
async fn an_idle_outbox_in_a_busy_cluster_is_ready_and_not_behind() {
    if !long_matrix() {
        return;
    }
    let _permit = heavy_permit().await;
    let servers = OwnServers::start(PgVersion::V18, &[]).await;
    let site = servers.site().await;
    let other = Database::on(&servers.postgres.url("postgres"), "other").await.unwrap();
    let relay = site.relay().await;
    site.insert([("k", 1)]).await;
    site.until_records(1).await;
    let make = "CREATE TABLE busy (filler text)";
    site.execute(make).await;
    other.execute(make).await.unwrap();
    let both: [&[&Database]; 3] = [&[&other], &[&site.database], &[&other, &site.database]];
    for busy in both {
        let since = Instant::now();
        while since.elapsed() < Duration::from_secs(60) {
            for database in busy {
                database.execute(TEN_MEGABYTES).await.unwrap();
            }
            let (status, text) = relay.ask("/readyz").await.unwrap();
            assert_eq!(status, 200, "{text}");
            let lag = relay.status().await["lagSeconds"].as_f64().unwrap();
            // Without rows there is no lag, but a heartbeat in flight may be a second old.
            assert!(lag < 10.0, "{lag} s of lag with nothing to deliver: {}", relay.status_text().await);
            until_close_behind(&site).await;
        }
    }
    site.insert([("k", 2)]).await;
    site.until_records(2).await;
    site.judge_table(&relay).await;
}
