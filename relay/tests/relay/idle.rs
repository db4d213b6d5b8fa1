//! An idle outbox in a busy cluster holds no WAL (R14), and does not keep the cluster busy itself (R13).

use testbed::postgres::PgVersion;
use testbed::wait;

use crate::fixture::{OwnServers, SOON, Site, heavy};

const MIB: i64 = 1024 * 1024;

#[tokio::test]
async fn another_tables_100_megabytes_are_not_held() {
    let _place = heavy().await;
    let site = Site::shared().await;
    let relay = site.relay().await;
    site.execute("CREATE TABLE busy (filler text)").await;
    let behind = format!(
        "SELECT pg_wal_lsn_diff(pg_current_wal_lsn(), confirmed_flush_lsn)::bigint
         FROM pg_replication_slots WHERE slot_name = '{}'",
        site.slot
    );
    let start = site.value("pg_current_wal_lsn()").await.unwrap();
    for _ in 0..10 {
        // Random text does not compress, so it is as large in the log as it is here.
        site.execute(
            "INSERT INTO busy SELECT string_agg(md5(random()::text), '')
             FROM generate_series(1, 10000) row, generate_series(1, 32) part GROUP BY row",
        )
        .await;
        wait::until("a confirmation that follows", SOON, async || {
            let bytes: i64 = site.value(&behind).await.unwrap().parse().unwrap();
            if bytes < 16 * MIB { Ok(()) } else { Err(format!("{bytes} bytes behind")) }
        })
        .await
        .unwrap();
    }
    let written =
        site.value(&format!("pg_wal_lsn_diff(pg_current_wal_lsn(), '{start}')::bigint")).await.unwrap();
    assert!(written.parse::<i64>().unwrap() > 90 * MIB, "the test wrote only {written} bytes");
    wait::until("retained WAL that is small", SOON, async || {
        // The restart point moves with the server's next look at running transactions.
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
    let _place = heavy().await;
    // A server of its own: other tests' writes are progress, too.
    let servers = OwnServers::start(PgVersion::V18, &[]).await;
    let site = servers.site().await;
    let relay = site.relay().await;
    site.insert([("k", 1)]).await;
    site.until_records(1).await;
    site.until_confirmed(&relay).await;
    let version = "SELECT xmin::text::bigint FROM outbox_checkpoint";
    let before = site.value(version).await;
    // Each checkpoint is a write that the stream reports; a relay that answered each with another would write
    // dozens in this time, and one that waits for its interval one at the most.
    let mut changes = 0;
    let mut last = before;
    for _ in 0..60 {
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        let now = site.value(version).await;
        changes += u32::from(now != last);
        last = now;
    }
    assert!(changes <= 2, "{changes} checkpoints in three idle seconds");
}
