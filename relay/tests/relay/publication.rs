//! The publication is dropped, renamed, or altered while the relay streams. PostgreSQL silently omits the rows (15
//! to 17 end the stream when the publication is gone, 18 sends a warning). The guarantee is that the relay detects it,
//! that delivery stops with the reason, and that nothing after the change is confirmed.

use testbed::postgres::PgVersion;
use testbed::wait;

use crate::fixture::{OwnServers, Site, TIMEOUT, heavy_permit};
use crate::misconfiguration::fresh;

/// A change, and the statement that undoes it.
const CHANGES: [(&str, &str); 6] = [
    (
        "DROP PUBLICATION outbox",
        "CREATE PUBLICATION outbox FOR TABLE outbox WITH (publish = 'insert', publish_via_partition_root)",
    ),
    ("ALTER PUBLICATION outbox RENAME TO elsewhere", "ALTER PUBLICATION elsewhere RENAME TO outbox"),
    ("ALTER PUBLICATION outbox DROP TABLE outbox", "ALTER PUBLICATION outbox ADD TABLE outbox"),
    (
        "ALTER PUBLICATION outbox SET TABLE outbox WHERE (aggregateid = 'other')",
        "ALTER PUBLICATION outbox SET TABLE outbox",
    ),
    (
        "ALTER PUBLICATION outbox SET (publish = 'update')",
        "ALTER PUBLICATION outbox SET (publish = 'insert')",
    ),
    (
        "ALTER PUBLICATION outbox SET (publish_via_partition_root = false)",
        "ALTER PUBLICATION outbox SET (publish_via_partition_root = true)",
    ),
];

/// Changes the publication under load and undoes that after some rows, so that only the rows in between are missing.
async fn is_noticed(site: &Site, change: &str, undo: &str) {
    let relay = site.relay().await;
    five_rows(site).await;
    site.until_records(5).await;
    site.execute(change).await;
    let changed_at = site.value("pg_current_wal_insert_lsn()").await.unwrap();
    five_rows(site).await;
    site.execute(undo).await;
    five_rows(site).await;
    relay.until("/readyz", 503, "PublicationChanged").await;
    assert!(!relay.program.log().contains("SlotLost"), "the slot is not the cause:\n{}", relay.program.log());
    // Nothing after the change is confirmed, neither in the checkpoint nor in the slot.
    let beyond = format!(
        "SELECT greatest(confirmed_flush_lsn, (SELECT confirmed_lsn FROM outbox_checkpoint)) > '{changed_at}'
         FROM pg_replication_slots WHERE slot_name = '{}'",
        site.slot
    );
    assert_eq!(
        site.value(&beyond).await.as_deref(),
        Some("false"),
        "{change}: confirmed beyond {changed_at}"
    );
    assert_eq!(relay.metric("outbox_relay_gap_total").await, 1.0);
    // A new process reports the same, although the publication is correct again.
    relay.kill().await;
    let relay = site.launch(|text| text);
    relay.until("/readyz", 503, "PublicationChanged").await;
    assert_eq!(relay.ask("/livez").await.unwrap().0, 200);
    assert_eq!(relay.stop().await.0, Some(0));
}

/// Each row in a separate transaction.
async fn five_rows(site: &Site) {
    for n in 0..5 {
        site.insert([("k", n)]).await;
    }
}

#[tokio::test]
async fn a_change_of_the_publication_is_detected_and_nothing_is_confirmed_after_it() {
    let _permit = heavy_permit().await;
    for (change, undo) in CHANGES {
        println!("{change}");
        is_noticed(&Site::shared().await, change, undo).await;
    }
}

#[tokio::test]
async fn a_changed_publication_on_postgres_15() {
    let _permit = heavy_permit().await;
    let servers = OwnServers::start(PgVersion::V15, &[]).await;
    for (change, undo) in &CHANGES[..3] {
        println!("{change}");
        is_noticed(&servers.site().await, change, undo).await;
    }
}

/// After an administrator has republished the missing rows and runs the documented statement, delivery continues.
#[tokio::test]
async fn delivery_continues_once_the_gap_was_handled_by_hand() {
    let site = Site::shared().await;
    let (change, undo) = CHANGES[2];
    is_noticed(&site, change, undo).await;
    let before = site.records().await.len();
    site.execute("UPDATE outbox_checkpoint SET publication_fingerprint = NULL").await;
    let relay = site.relay().await;
    site.insert([("later", 1)]).await;
    wait::until("the row that was written later", TIMEOUT, async || {
        let records = site.records().await;
        let there = records.iter().any(|record| record.key.as_deref() == Some(b"later"));
        if there && records.len() > before { Ok(()) } else { Err(records.len()) }
    })
    .await
    .unwrap();
    site.until_confirmed(&relay).await;
}

/// Other tables in the publication do not matter.
#[tokio::test]
async fn another_table_in_the_publication_changes_nothing() {
    let site = Site::shared().await;
    let relay = site.relay().await;
    site.execute("CREATE TABLE another (id int PRIMARY KEY); ALTER PUBLICATION outbox ADD TABLE another")
        .await;
    site.execute("INSERT INTO another VALUES (1); ALTER PUBLICATION outbox DROP TABLE another").await;
    site.execute("ANALYZE outbox").await;
    site.insert([("k", 1)]).await;
    site.until_records(1).await;
    site.until_confirmed(&relay).await;
    relay.until_ready().await;
}

/// The stream does not contain rows from before the table was published, even if the slot has retained their WAL.
#[tokio::test]
async fn doctor_reports_that_a_slot_may_be_older_than_the_publication() {
    let site = fresh().await;
    let slot = &site.slot;
    let said = format!("outbox may be newer than slot {slot}");
    let create_slot = format!("SELECT pg_create_logical_replication_slot('{slot}', 'pgoutput')");
    let create_publication =
        "CREATE PUBLICATION outbox WITH (publish = 'insert', publish_via_partition_root = true)";
    site.execute(create_publication).await;
    site.execute(&create_slot).await;
    site.execute("ALTER PUBLICATION outbox ADD TABLE outbox").await;
    let admin = testbed::net::free_port().unwrap();
    let start_now = |text: String| text.replace("source: {", "source: {start: Now, ");
    let doctor = site.command(admin, start_now, &["doctor"]).await;
    assert!(doctor.out.contains(&said), "{doctor:?}");
    let relay = site.launch(start_now);
    relay.until_ready().await;
    assert!(relay.program.log().contains("may be older than the publication"), "{}", relay.program.log());
    let doctor = site.command(admin, start_now, &["doctor"]).await;
    assert!(!doctor.out.contains(&said), "there is a checkpoint: {doctor:?}");
}
