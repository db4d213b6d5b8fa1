//! The snapshot in the checkpoint describes exactly the rows in Kafka, during any activity of the server.

use serde_json::Value;
use sqlx::{AssertSqlSafe, Connection, PgConnection};
use testbed::postgres::{PgVersion, Postgres, PostgresOptions};
use testbed::wait;

use crate::fixture::{OwnServers, Site, TIMEOUT, heavy_permit};

/// The assumption of R5: a server that is killed loses the end of its WAL, and assigns the transaction ids in it again.
/// An earlier snapshot shows these ids as committed. A snapshot can be trusted only if the WAL still reaches the LSN
/// that was read after it. Nothing beyond the end of the WAL was ever confirmed.
#[tokio::test]
async fn r5_a_snapshot_that_shows_a_lost_id_has_an_lsn_that_was_lost_too() {
    let settings =
        [("synchronous_commit", "off"), ("wal_writer_delay", "10s"), ("wal_writer_flush_after", "1GB")];
    let settings = settings.map(|(name, value)| (name.to_owned(), value.to_owned())).into();
    let mut server =
        Postgres::start(PostgresOptions { settings, ..PostgresOptions::default() }).await.unwrap();
    let url = server.url("postgres");
    let mut lost_ids = 0;
    for _ in 0..5 {
        let mut sql = PgConnection::connect(&url).await.unwrap();
        let ids = "DO $$ BEGIN FOR n IN 1..5000 LOOP PERFORM pg_current_xact_id(); COMMIT; END LOOP; END $$";
        sqlx::raw_sql(ids).execute(&mut sql).await.unwrap();
        let (snapshot, until): (String, String) =
            sqlx::query_as("SELECT pg_current_snapshot()::text, pg_current_wal_insert_lsn()::text")
                .fetch_one(&mut sql)
                .await
                .unwrap();
        server.kill().await.unwrap();
        server.start_again().await.unwrap();
        let mut sql = PgConnection::connect(&url).await.unwrap();
        // Recovery ends with a checkpoint record, which begins where the recovered WAL ended.
        let (shown, has_it): (bool, bool) = sqlx::query_as(
            "SELECT pg_visible_in_snapshot(pg_current_xact_id(), $1::pg_snapshot), redo_lsn >= $2::pg_lsn
             FROM pg_control_checkpoint()",
        )
        .bind(snapshot)
        .bind(until)
        .fetch_one(&mut sql)
        .await
        .unwrap();
        assert!(!(shown && has_it), "a transaction id was reused that a snapshot with a surviving LSN shows");
        lost_ids += u32::from(shown);
    }
    assert!(lost_ids > 0, "no id was lost, so the test proves nothing");
}

/// R11: while a synchronous standby is down, a transaction is in the stream and in Kafka, but every snapshot still
/// shows it as running. A refill would send it again if the offsets stored with the snapshot were after it.
#[tokio::test]
async fn r11_the_offsets_do_not_pass_a_record_that_the_snapshot_does_not_show() {
    let _permit = heavy_permit().await;
    let servers = OwnServers::start(PgVersion::V18, &[]).await;
    let site = servers.site().await;
    let relay = site.relay().await;
    site.insert([("k", 1), ("k", 2)]).await;
    site.until_records(2).await;
    site.execute("ALTER SYSTEM SET synchronous_standby_names = 'away'").await;
    site.execute("SELECT pg_reload_conf()").await;
    let (xid, waits) = commit_that_waits(&site).await;
    let record = site.until_records(3).await.into_iter().find(|record| record.offset == 2).unwrap();
    let row = format!(
        "SELECT json_build_object('shown', pg_visible_in_snapshot('{xid}', delivered_snapshot),
                                  'search', kafka_offsets #> '{{{topic},{partition}}}',
                                  'refill', snapshot_offsets #> '{{{topic},{partition}}}')
         FROM outbox_checkpoint",
        topic = site.topic(),
        partition = record.partition
    );
    // Enough time for several snapshots, each with checkpoints that include later records.
    let mut seen = std::collections::HashSet::new();
    wait::until("several snapshots", TIMEOUT, async || {
        insert_without_waiting(&site).await;
        let now: Value = serde_json::from_str(&site.value(&row).await.unwrap()).unwrap();
        assert_eq!(now["shown"], false);
        assert!(now["refill"]["search"].as_i64().unwrap_or(0) <= record.offset, "{now}");
        seen.insert(site.value("SELECT delivered_snapshot FROM outbox_checkpoint").await.unwrap());
        let passed = now["search"]["search"].as_i64().unwrap() > record.offset + 1;
        if passed && seen.len() >= 4 { Ok(()) } else { Err(now) }
    })
    .await
    .unwrap();
    site.execute("ALTER SYSTEM RESET synchronous_standby_names").await;
    site.execute("SELECT pg_reload_conf()").await;
    waits.await.unwrap();
    wait::until("a snapshot that shows it, with offsets behind it", TIMEOUT, async || {
        site.insert([("k", 3)]).await;
        let now: Value = serde_json::from_str(&site.value(&row).await.unwrap()).unwrap();
        let passed = now["refill"]["search"].as_i64().unwrap_or(0) > record.offset;
        if now["shown"] == true && passed { Ok(()) } else { Err(now) }
    })
    .await
    .unwrap();
    site.judge_table(&relay).await;
}

/// Starts a commit that waits for the standby. Returns its transaction id.
async fn commit_that_waits(site: &Site) -> (String, tokio::task::JoinHandle<()>) {
    let mut sql = site.sql().await;
    let insert = format!(
        "BEGIN;
         INSERT INTO outbox (id, aggregatetype, aggregateid, type, payload)
         VALUES (gen_random_uuid(), '{}', 'k', 'waits.v1', '1')",
        site.aggregate
    );
    sqlx::raw_sql(AssertSqlSafe(insert)).execute(&mut sql).await.unwrap();
    let xid = sqlx::query_scalar("SELECT pg_current_xact_id()::text").fetch_one(&mut sql).await.unwrap();
    let waits = tokio::spawn(async move {
        sqlx::raw_sql("COMMIT").execute(&mut sql).await.unwrap();
    });
    (xid, waits)
}

async fn insert_without_waiting(site: &Site) {
    site.execute(&format!(
        "SET synchronous_commit = local;
         INSERT INTO outbox (id, aggregatetype, aggregateid, type, payload)
         VALUES (gen_random_uuid(), '{}', 'k', 'local.v1', '1')",
        site.aggregate
    ))
    .await;
}
