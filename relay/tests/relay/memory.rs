//! Memory is bounded by configuration, however much waits.

use testbed::load::{Backlog, write_backlog};
use testbed::postgres::PgVersion;

use crate::fixture::{OwnServers, heavy};

const MIB: u64 = 1024 * 1024;

#[tokio::test]
async fn two_hundred_thousand_rows_wait_while_kafka_is_away() {
    let _place = heavy().await;
    // A short timeout, so that a relay that forgot to answer while it cannot read would be thrown out.
    let mut servers = OwnServers::start(PgVersion::V18, &[("wal_sender_timeout", "3s")]).await;
    let site = servers.site().await;
    let relay = site.relay().await;
    site.insert([("k", 1)]).await;
    site.until_records(1).await;
    servers.kafka.stop().await.unwrap();
    let walsender = format!("SELECT active_pid FROM pg_replication_slots WHERE slot_name = '{}'", site.slot);
    let pid = site.value(&walsender).await;
    assert!(pid.is_some());
    let backlog = Backlog { rows: 200_000, aggregatetype: site.aggregate.clone(), ..Backlog::default() };
    write_backlog(site.database.url(), &backlog).await.unwrap();
    relay.until("/readyz", 503, "KafkaUnreachable").await;
    // Long enough for the server to miss an answer three times over.
    tokio::time::sleep(std::time::Duration::from_secs(10)).await;
    assert_eq!(site.value(&walsender).await, pid, "the stream was interrupted while Kafka was away");
    servers.kafka.start_again().await.unwrap();
    relay.until_ready().await;
    site.until_confirmed(&relay).await;
    // Those that Kafka took without an answer getting back are found there: nobody acknowledged them.
    let acknowledged = relay.metric("outbox_relay_events_total").await;
    let found = relay.metric("outbox_relay_duplicates_suppressed_total").await;
    assert!(
        acknowledged <= 200_001.0 && acknowledged + found >= 200_001.0,
        "{acknowledged} acknowledged, {found} found"
    );
    let (_, peak) = relay.program.memory().unwrap();
    assert!(peak < 64 * MIB, "the relay had {} MiB at its peak", peak / MIB);
    site.judge_table(&relay).await;
}
