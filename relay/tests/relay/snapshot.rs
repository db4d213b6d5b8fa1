//! The snapshot in the checkpoint says exactly what is in Kafka, whatever the server does meanwhile.

use serde_json::Value;
use sqlx::AssertSqlSafe;
use testbed::postgres::PgVersion;
use testbed::wait;

use crate::fixture::{OwnServers, SOON, Site, heavy};

/// R5: a server that is killed loses the end of its log, with `synchronous_commit = off` committed transactions too,
/// and gives their ids to others. No snapshot that is ever stored shows an id as delivered that is yet to come.
#[tokio::test]
async fn r5_no_stored_snapshot_shows_an_id_that_is_used_again() {
    let _place = heavy().await;
    let settings = [("synchronous_commit", "off"), ("wal_writer_delay", "10s")];
    let mut servers = OwnServers::start(PgVersion::V18, &settings).await;
    let site = servers.site().await;
    let relay = site.relay().await;
    // Rows, and very many ids without any: what a crash loses is mostly ids.
    let write = format!(
        "DO $$ BEGIN
             FOR n IN 1..20000 LOOP
                 IF n % 100 = 0 THEN
                     INSERT INTO outbox (id, aggregatetype, aggregateid, type, payload)
                     VALUES (gen_random_uuid(), '{}', 'k', 'n.v1', '1');
                 ELSE
                     PERFORM pg_current_xact_id();
                 END IF;
                 COMMIT;
             END LOOP;
         END $$",
        site.aggregate
    );
    let snapshot = "SELECT delivered_snapshot FROM outbox_checkpoint";
    let reused =
        "SELECT pg_visible_in_snapshot(pg_current_xact_id(), delivered_snapshot) FROM outbox_checkpoint";
    for _ in 0..2 {
        let before = site.value(snapshot).await.unwrap();
        let mut writer = site.sql().await;
        let written = tokio::spawn({
            let write = write.clone();
            async move {
                // Until the server is killed.
                while sqlx::raw_sql(AssertSqlSafe(write.as_str())).execute(&mut writer).await.is_ok() {}
            }
        });
        wait::until("another snapshot", SOON, async || {
            if site.value(snapshot).await.unwrap() == before { Err(before.clone()) } else { Ok(()) }
        })
        .await
        .unwrap();
        servers.postgres.kill().await.unwrap();
        written.await.unwrap();
        servers.postgres.start_again().await.unwrap();
        let after = site.value(snapshot).await.unwrap();
        wait::until("a snapshot of the server that has recovered", SOON, async || {
            assert_eq!(site.value(reused).await.as_deref(), Some("false"));
            site.insert([("k", 1)]).await;
            if site.value(snapshot).await.unwrap() == after { Err(after.clone()) } else { Ok(()) }
        })
        .await
        .unwrap();
        assert_eq!(site.value(reused).await.as_deref(), Some("false"));
    }
    site.judge_table(&relay).await;
}

/// R11: with a synchronous standby that is away, a transaction is in the stream and in Kafka, while every snapshot
/// still shows it as running. A refill would send it again if the offsets stored with the snapshot lay behind it.
#[tokio::test]
async fn r11_the_offsets_do_not_pass_a_record_that_the_snapshot_does_not_show() {
    let _place = heavy().await;
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
    // Time enough for several snapshots, each with checkpoints that know of later records.
    let mut seen = std::collections::HashSet::new();
    wait::until("several snapshots", SOON, async || {
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
    wait::until("a snapshot that shows it, with offsets behind it", SOON, async || {
        site.insert([("k", 3)]).await;
        let now: Value = serde_json::from_str(&site.value(&row).await.unwrap()).unwrap();
        let passed = now["refill"]["search"].as_i64().unwrap_or(0) > record.offset;
        if now["shown"] == true && passed { Ok(()) } else { Err(now) }
    })
    .await
    .unwrap();
    site.judge_table(&relay).await;
}

/// Begins a commit that returns only when the standby is no longer waited for; returns its transaction id.
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
