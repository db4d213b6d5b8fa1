//! Confirmations to PostgreSQL: never beyond the stored checkpoint (R13), never past an open transaction, and with
//! progress during any other activity of the cluster (R14).

use crate::fixture::{Site, assert_correct, heavy_permit};

/// R13: the position confirmed to PostgreSQL is never ahead of the checkpoint.
#[tokio::test]
async fn r13_confirmations_never_outrun_the_checkpoint() {
    let _permit = heavy_permit().await;
    let site = Site::shared().await;
    // Read the slot first, then the checkpoint, which only advances. Each statement of a volatile function sees what
    // was committed when it began; in a single statement the checkpoint could be older than the slot.
    site.execute(&format!(
        "CREATE FUNCTION outran() RETURNS boolean VOLATILE LANGUAGE plpgsql AS $$
         DECLARE
             told   pg_lsn;
             stored pg_lsn;
         BEGIN
             SELECT confirmed_flush_lsn INTO told FROM pg_replication_slots WHERE slot_name = '{}';
             SELECT confirmed_lsn INTO stored FROM outbox_checkpoint;
             RETURN coalesce(told > stored, false);
         END $$",
        site.slot
    ))
    .await;
    let relay = site.relay().await;
    let load = site.start_load(400.0).await;
    let mut sql = site.sql().await;
    while load.committed() < 1_500 {
        let outran: bool = sqlx::query_scalar("SELECT outran()").fetch_one(&mut sql).await.unwrap();
        assert!(!outran, "the slot's confirmed position is ahead of the checkpoint");
    }
    assert_correct(&site.verdict(load, &relay).await);
}

/// R13: a slot ahead of the checkpoint is a gap, and delivery stops.
#[tokio::test]
async fn r13_a_slot_that_another_client_advanced_stops_delivery() {
    let site = Site::shared().await;
    let relay = site.relay().await;
    site.insert([("k", 1)]).await;
    site.until_records(1).await;
    assert_eq!(relay.stop().await.0, Some(0));
    site.insert([("k", 2)]).await;
    site.execute(&format!("SELECT pg_replication_slot_advance('{}', pg_current_wal_lsn())", site.slot)).await;
    let relay = site.launch(|text| text);
    relay.until("/readyz", 503, "SlotAhead").await;
    assert_eq!(site.records().await.len(), 1);
}

/// R10: the checkpoint belongs to the session that holds the slot. A session that finds it changed by another process
/// does not overwrite it, and continues from its position.
#[tokio::test]
async fn r10_a_checkpoint_that_another_process_wrote_is_not_overwritten() {
    let site = Site::shared().await;
    let relay = site.relay().await;
    site.insert([("k", 1)]).await;
    site.until_confirmed(&relay).await;
    site.execute("UPDATE outbox_checkpoint SET mapping_version = 100").await;
    site.insert([("k", 2)]).await;
    site.until_confirmed(&relay).await;
    assert_eq!(site.records().await.len(), 2);
    let version = site.value("SELECT mapping_version FROM outbox_checkpoint").await;
    assert_eq!(version.as_deref(), Some("100"));
    let (_, log) = relay.stop().await;
    assert!(log.contains("another process has written"), "{log}");
}

/// A lock on the checkpoint's row delays no event. It is shown, and after its end everything is confirmed.
#[tokio::test]
async fn a_locked_checkpoint_is_shown_and_delivery_continues() {
    let site = Site::shared().await;
    let relay = site.relay().await;
    site.insert([("k", 1)]).await;
    site.until_confirmed(&relay).await;
    let mut locking = site.sql().await;
    sqlx::raw_sql("BEGIN; SELECT FROM outbox_checkpoint FOR UPDATE").execute(&mut locking).await.unwrap();
    site.insert([("k", 2)]).await;
    relay.until("/readyz", 503, "CheckpointStalled").await;
    site.insert([("k", 3)]).await;
    assert_eq!(site.until_records(3).await.len(), 3);
    sqlx::raw_sql("ROLLBACK").execute(&mut locking).await.unwrap();
    relay.until("/readyz", 200, "streaming").await;
    site.until_confirmed(&relay).await;
    site.judge_table(&relay).await;
}

/// R14: confirmations advance under load while another table is busy and a transaction stays open. The open
/// transaction's event is not skipped, although the relay dies while it is open.
#[tokio::test]
async fn r14_an_open_transaction_neither_blocks_confirmations_nor_is_skipped() {
    let _permit = heavy_permit().await;
    let site = Site::shared().await;
    site.execute("CREATE TABLE busy (filler text)").await;
    let relay = site.relay().await;
    let mut open = site.sql().await;
    let begin = format!(
        "BEGIN;
         INSERT INTO busy VALUES ('open');
         INSERT INTO outbox (id, aggregatetype, aggregateid, type, payload)
         VALUES (gen_random_uuid(), '{}', 'late', 'late.v1', '1')",
        site.aggregate
    );
    sqlx::raw_sql(sqlx::AssertSqlSafe(begin)).execute(&mut open).await.unwrap();
    let load = site.start_load(300.0).await;
    for _ in 0..3 {
        site.execute("INSERT INTO busy SELECT repeat(md5(n::text), 100) FROM generate_series(1, 1000) n")
            .await;
        site.until_confirmed(&relay).await;
    }
    relay.kill().await;
    let relay = site.relay().await;
    site.until_confirmed(&relay).await;
    sqlx::raw_sql("COMMIT").execute(&mut open).await.unwrap();
    load.stop().await.unwrap();
    site.judge_table(&relay).await;
    let late =
        site.records().await.iter().filter(|record| record.header("ce_type") == Some("late.v1")).count();
    assert_eq!(late, 1);
}
