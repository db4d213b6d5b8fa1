//! The decision at the start of a session: promotions, restored servers, and slots that another client changed.

use testbed::kafka::create_topic;
use testbed::postgres::{PgVersion, Shutdown};
use testbed::wait;

use crate::fixture::{OwnServers, PARTITIONS, Relay, Site, TIMEOUT, assert_correct, heavy_permit};

/// R2: a fully replicated standby is promoted: the relay continues on the new timeline, and no event is lost or sent
/// twice.
#[tokio::test]
async fn r2_delivery_continues_from_a_promoted_standby() {
    let _permit = heavy_permit().await;
    let mut servers = OwnServers::start(PgVersion::V18, &[]).await;
    let site = servers.site().await;
    // Snapshot rows have positions of the first timeline, too.
    site.insert([("k", 1), ("k", 2)]).await;
    let relay = site.relay().await;
    let load = site.start_load(400.0).await;
    site.until_records(300).await;
    // Killed, so that rows of the old timeline are replayed on the new one and scanned for in Kafka.
    relay.kill().await;
    servers.postgres.stop(Shutdown::Fast).await.unwrap();
    servers.postgres.start_as_standby().await.unwrap();
    let relay = site.launch(|text| text);
    let text = relay.until("/readyz", 503, "NoWritableHost").await;
    assert!(text.contains("standby"), "{text}");
    site.execute("SELECT pg_promote()").await;
    relay.until("/readyz", 200, "streaming").await;
    let before = site.records().await.len();
    site.until_records(before + 300).await;
    let promoted_once = site.verdict(load, &relay).await;
    let positions = |records: &[testbed::records::Record], timeline: &str| {
        records.iter().filter(|record| record.header("ce_sequence").unwrap().starts_with(timeline)).count()
    };
    let records: Vec<_> = site.records().await;
    assert!(positions(&records, "00000001-") > 0 && positions(&records, "00000002-") > 0);
    assert_eq!(relay.metric("outbox_relay_phantom_events_total").await, 0.0);
    // The two rows from before the load are not in the writers' log.
    assert_eq!(promoted_once.records, records.len());
    site.judge_table(&relay).await;
    // A second promotion, while a relay runs.
    servers.postgres.stop(Shutdown::Fast).await.unwrap();
    servers.postgres.start_as_standby().await.unwrap();
    site.execute("SELECT pg_promote()").await;
    site.insert([("k", 3)]).await;
    relay.until("/readyz", 200, "streaming").await;
    site.judge_table(&relay).await;
    assert_eq!(site.value("SELECT timeline FROM outbox_checkpoint").await.as_deref(), Some("3"));
}

/// R2, R12: a promotion during the initial snapshot, which continues with positions of the timeline of the slot's
/// creation.
#[tokio::test]
async fn r2_a_promotion_during_the_initial_snapshot() {
    let _permit = heavy_permit().await;
    let mut servers = OwnServers::start(PgVersion::V18, &[]).await;
    let site = servers.site().await;
    let late = format!("{}_late", site.aggregate);
    site.insert([("a", 1), ("b", 2)]).await;
    // Its topic does not exist, so the snapshot is blocked here.
    site.execute(&format!(
        "INSERT INTO outbox (id, aggregatetype, aggregateid, type, payload)
         VALUES (gen_random_uuid(), '{late}', 'k', 'n.v1', '3')"
    ))
    .await;
    site.insert([("a", 4)]).await;
    let relay = site.launch(|text| text);
    relay.until("/readyz", 503, "TopicMissing").await;
    site.until_records(2).await;
    // R15: the server waits for the relay, which reads nothing now and has nothing to write.
    servers.postgres.stop(Shutdown::Fast).await.unwrap();
    servers.postgres.start_as_standby().await.unwrap();
    site.execute("SELECT pg_promote()").await;
    site.insert([("a", 5)]).await;
    relay.until("/readyz", 503, "TopicMissing").await;
    let row = site.value("SELECT timeline || ' ' || start_phase FROM outbox_checkpoint").await;
    assert_eq!(row.as_deref(), Some("2 copying"));
    create_topic(&site.bootstrap, &format!("outbox.event.{late}"), PARTITIONS, 1, &[]).await.unwrap();
    relay.until("/readyz", 200, "streaming").await;
    let records = site.until_records(4).await;
    let mut timelines: Vec<&str> = records.iter().map(|r| &r.header("ce_sequence").unwrap()[..8]).collect();
    timelines.sort_unstable();
    assert_eq!(timelines, ["00000001", "00000001", "00000001", "00000002"]);
}

/// R2: the server is restored to an earlier state on a new timeline; events delivered in between are phantoms.
/// They are counted and listed, block nothing, and rows with positions among theirs are delivered.
#[tokio::test]
async fn r2_phantoms_of_a_server_that_lost_its_end_in_a_failover() {
    let _permit = heavy_permit().await;
    let mut servers = OwnServers::start(PgVersion::V18, &[]).await;
    let site = servers.site().await;
    let relay = site.relay().await;
    site.insert([("k", 1)]).await;
    site.until_records(1).await;
    servers.postgres.stop(Shutdown::Fast).await.unwrap();
    servers.postgres.keep_copy().unwrap();
    servers.postgres.start_again().await.unwrap();
    for n in 2..=40 {
        site.insert([("k", n), ("k", n)]).await;
    }
    site.until_records(1 + 78).await;
    relay.kill().await;
    let delivered = site.records().await;
    servers.postgres.stop(Shutdown::Fast).await.unwrap();
    servers.postgres.restore().unwrap();
    servers.postgres.start_as_standby().await.unwrap();
    site.execute("SELECT pg_promote()").await;
    let survivor = site.value("SELECT id FROM outbox").await.unwrap();
    // Their positions are among those of the phantoms.
    for n in 2..=20 {
        site.insert([("k", n), ("third", n)]).await;
    }
    // They are replayed, so their partition is scanned.
    let relay = site.relay().await;
    let lives = async |rows: usize| {
        let records = site.until_records(78 + rows).await;
        let ids: Vec<&str> = records.iter().map(|record| record.header("ce_id").unwrap()).collect();
        let mut sql = site.sql().await;
        let stored: Vec<String> =
            sqlx::query_scalar("SELECT id::text FROM outbox").fetch_all(&mut sql).await.unwrap();
        assert_eq!(stored.len(), rows);
        for id in &stored {
            assert_eq!(ids.iter().filter(|seen| *seen == id).count(), 1, "{id}");
        }
        assert_eq!(ids.len(), 78 + rows);
    };
    lives(1 + 38).await;
    let shown = relay.status().await["phantoms"].clone();
    let mut listed: Vec<&str> =
        shown["ids"].as_array().unwrap().iter().map(|id| id.as_str().unwrap()).collect();
    let mut phantoms: Vec<&str> =
        delivered.iter().map(|record| record.header("ce_id").unwrap()).filter(|id| *id != survivor).collect();
    listed.sort_unstable();
    phantoms.sort_unstable();
    assert_eq!(listed, phantoms);
    assert_eq!(shown["count"], 78);
    assert_eq!(relay.metric("outbox_relay_phantom_events_total").await, 78.0);
    // A crash: rows are replayed, and the phantoms must still not count.
    relay.program.pause().unwrap();
    site.insert([("k", 21), ("other", 21), ("third", 21)]).await;
    relay.kill().await;
    let _relay = site.relay().await;
    site.insert([("k", 22), ("other", 22)]).await;
    lives(1 + 38 + 5).await;
}

/// Delivers twenty rows, and keeps a copy of the server as it was after the first.
async fn copy_after_one_of_twenty_rows(servers: &mut OwnServers, site: &Site, relay: &Relay) {
    site.insert([("k", 1)]).await;
    site.until_records(1).await;
    servers.postgres.stop(Shutdown::Fast).await.unwrap();
    servers.postgres.keep_copy().unwrap();
    servers.postgres.start_again().await.unwrap();
    for n in 2..=20 {
        site.insert([("k", n)]).await;
    }
    site.until_records(20).await;
    site.until_confirmed(relay).await;
}

async fn put_back(servers: &mut OwnServers) {
    servers.postgres.stop(Shutdown::Fast).await.unwrap();
    servers.postgres.restore().unwrap();
    servers.postgres.start_again().await.unwrap();
}

/// Restored without a new timeline: the same positions stand for other events, so records in Kafka cannot be trusted,
/// and delivery stops. With the documented statement it continues, and no event is lost.
#[tokio::test]
async fn r2_a_server_restored_on_its_own_timeline_is_refused_until_kafkas_records_are_ignored() {
    let _permit = heavy_permit().await;
    let mut servers = OwnServers::start(PgVersion::V18, &[]).await;
    let site = servers.site().await;
    let relay = site.relay().await;
    copy_after_one_of_twenty_rows(&mut servers, &site, &relay).await;
    put_back(&mut servers).await;
    site.insert([("k", 21), ("k", 22)]).await;
    relay.until("/readyz", 503, "HistoryChanged").await;
    assert_eq!(site.records().await.len(), 20);
    assert_eq!(relay.metric("outbox_relay_gap_total").await, 1.0);
    site.execute("UPDATE outbox_checkpoint SET mapping = '{}', kafka_offsets = '{}'").await;
    relay.until("/readyz", 200, "streaming").await;
    // Rows delivered after the copied server's checkpoint may be sent again: row 1 at most.
    let wanted: Vec<String> = {
        let mut sql = site.sql().await;
        sqlx::query_scalar("SELECT id::text FROM outbox").fetch_all(&mut sql).await.unwrap()
    };
    assert_eq!(wanted.len(), 3);
    wait::until("every row of the table", TIMEOUT, async || {
        let records = site.records().await;
        let ids: Vec<&str> = records.iter().map(|record| record.header("ce_id").unwrap()).collect();
        let missing = wanted.iter().filter(|id| !ids.contains(&id.as_str())).count();
        if missing == 0 { Ok(()) } else { Err(format!("{missing} missing")) }
    })
    .await
    .unwrap();
}

/// The same while no relay runs: there is no earlier position to compare the checkpoint with. The last records in Kafka
/// reveal it, before a new row is treated as delivered.
#[tokio::test]
async fn r2_a_server_restored_while_the_relay_was_stopped_is_refused_before_anything_is_sent() {
    let _permit = heavy_permit().await;
    let mut servers = OwnServers::start(PgVersion::V18, &[]).await;
    let site = servers.site().await;
    let relay = site.relay().await;
    copy_after_one_of_twenty_rows(&mut servers, &site, &relay).await;
    relay.kill().await;
    put_back(&mut servers).await;
    let relay = site.launch(|text| text);
    let text = relay.until("/readyz", 503, "HistoryChanged").await;
    assert!(text.contains("restored to an earlier"), "{text}");
    site.insert([("k", 21), ("k", 22)]).await;
    relay.until("/status", 200, "HistoryChanged").await;
    assert_eq!(site.records().await.len(), 20);
}

/// The slot is dropped while the relay streams from it. It is not silently recreated.
#[tokio::test]
async fn a_slot_dropped_while_the_relay_runs_stops_delivery() {
    let site = Site::shared().await;
    let relay = site.relay().await;
    site.insert([("k", 1)]).await;
    site.until_records(1).await;
    let dropped = format!(
        "DO $$ BEGIN
             PERFORM pg_terminate_backend(active_pid) FROM pg_replication_slots WHERE slot_name = '{0}';
             LOOP
                 BEGIN
                     PERFORM pg_drop_replication_slot('{0}');
                     EXIT;
                 EXCEPTION WHEN object_in_use THEN NULL;
                 END;
             END LOOP;
         END $$",
        site.slot
    );
    site.execute(&dropped).await;
    relay.until("/readyz", 503, "SlotLost").await;
    assert_eq!(relay.metric("outbox_relay_gap_total").await, 1.0);
    site.insert([("k", 2)]).await;
    assert_eq!(site.records().await.len(), 1);
    let slots = format!("SELECT count(*) FROM pg_replication_slots WHERE slot_name = '{}'", site.slot);
    assert_eq!(site.value(&slots).await.as_deref(), Some("0"));
    // Recreated by another client, at a later position.
    site.execute(&format!("SELECT pg_create_logical_replication_slot('{}', 'pgoutput')", site.slot)).await;
    relay.until("/readyz", 503, "SlotAhead").await;
    assert_eq!(site.records().await.len(), 1);
}

/// A slot that the relay cannot use.
#[tokio::test]
async fn an_unsuitable_slot_is_refused() {
    let site = Site::shared().await;
    site.execute(&format!("SELECT pg_create_physical_replication_slot('{}')", site.slot)).await;
    let relay = site.launch(|text| text);
    let text = relay.until("/readyz", 503, "SlotUnsuitable").await;
    assert!(text.contains("a physical slot") && text.contains("choose another source.slot.name"), "{text}");
    site.execute(&format!("SELECT pg_drop_replication_slot('{}')", site.slot)).await;
    let elsewhere = Site::shared().await;
    elsewhere
        .execute(&format!("SELECT pg_create_logical_replication_slot('{}', 'pgoutput')", site.slot))
        .await;
    let text = relay.until("/readyz", 503, elsewhere.database.name()).await;
    assert!(text.contains("SlotUnsuitable"), "{text}");
    elsewhere.execute(&format!("SELECT pg_drop_replication_slot('{}')", site.slot)).await;
    // With two_phase, transactions would arrive before it is known whether they commit.
    let two_phase =
        format!("SELECT pg_create_logical_replication_slot('{}', 'pgoutput', false, true)", site.slot);
    let relay = relay.stop().await;
    assert_eq!(relay.0, Some(0));
    site.execute(&two_phase).await;
    let relay = site.launch(|text| text);
    let text = relay.until("/readyz", 503, "two_phase").await;
    assert!(text.contains("SlotUnsuitable") && text.contains("choose another source.slot.name"), "{text}");
    let doctor = site.command(relay.admin, |text| text, &["doctor"]).await;
    assert!(doctor.out.contains("problem  slot") && doctor.out.contains("two_phase"), "{doctor:?}");
    site.execute(&format!("SELECT pg_drop_replication_slot('{}')", site.slot)).await;
    relay.until_ready().await;
}

/// R15: a server that shuts down waits for its replication clients to confirm. The relay does so promptly, and
/// continues once the server is back.
#[tokio::test]
async fn r15_a_fast_stop_of_postgres_under_load_is_prompt() {
    let _permit = heavy_permit().await;
    let mut servers = OwnServers::start(PgVersion::V18, &[]).await;
    let site = servers.site().await;
    let relay = site.relay().await;
    let load = site.start_load(500.0).await;
    for round in 1..=3 {
        site.until_records(200 * round).await;
        // It fails if the server still runs after a minute.
        servers.postgres.stop(Shutdown::Fast).await.unwrap();
        relay.until("/readyz", 503, "DatabaseUnreachable").await;
        servers.postgres.start_again().await.unwrap();
        relay.until("/readyz", 200, "streaming").await;
    }
    assert_correct(&site.verdict(load, &relay).await);
}

/// The checkpoint is gone and the slot exists: it is unknown which rows were delivered, so the relay asks for a
/// decision.
#[tokio::test]
async fn a_slot_without_its_checkpoint_requires_a_decision() {
    let site = Site::shared().await;
    let relay = site.relay().await;
    site.insert([("k", 1)]).await;
    site.until_records(1).await;
    site.until_confirmed(&relay).await;
    assert_eq!(relay.stop().await.0, Some(0));
    site.execute("DELETE FROM outbox_checkpoint").await;
    site.insert([("k", 2)]).await;
    let relay = site.launch(|text| text);
    relay.until("/readyz", 503, "StartRefused").await;
    relay.kill().await;
    let relay = site.launch(|text| text.replace("user: postgres,", "user: postgres, start: Now,"));
    relay.until_ready().await;
    site.judge_table(&relay).await;
}
