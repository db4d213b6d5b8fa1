//! R12: the initial snapshot: the rows that are in the table before the first start are delivered first, each once,
//! through all faults.

use std::collections::HashSet;
use std::time::Duration;

use testbed::kafka::create_topic;
use testbed::load::{Backlog, Log, write_backlog};
use testbed::postgres::PgVersion;
use testbed::proxy::{Fault, Way};
use testbed::{unique, wait};

use crate::crash::Pauses;
use crate::fixture::{OwnServers, PARTITIONS, Site, TIMEOUT, assert_correct, heavy_permit};
use crate::proxied::Proxied;

const MIB: u64 = 1024 * 1024;

async fn backlog(site: &Site, rows: usize) {
    let backlog = Backlog {
        rows,
        rows_per_transaction: vec![20],
        aggregatetype: site.aggregate.clone(),
        ..Backlog::default()
    };
    write_backlog(site.database.url(), &backlog).await.unwrap();
}

async fn until_events(relay: &crate::fixture::Relay, least: f64) {
    relay.until("/livez", 200, "").await;
    wait::until(format!("{least} acknowledged events"), TIMEOUT, async || {
        let events = relay.metric("outbox_relay_events_total").await;
        if events >= least { Ok(()) } else { Err(format!("{events}\n{}", relay.status_text().await)) }
    })
    .await
    .unwrap();
}

async fn progress(site: &Site, column: &str) -> Option<String> {
    site.value(&format!("SELECT {column} FROM outbox_checkpoint")).await
}

#[tokio::test]
async fn r12_two_hundred_thousand_rows_and_ten_kill_9_under_continuing_writes() {
    let _permit = heavy_permit().await;
    let site = Site::shared().await;
    backlog(&site, 200_000).await;
    let load = site.start_load(300.0).await;
    let mut pauses = Pauses::new();
    let mut copying = 0;
    for _ in 0..10 {
        let relay = site.launch(|text| text);
        // Any moment from the start into the snapshot; a debug build needs some seconds for all of it.
        pauses.next(1_200).await;
        relay.kill().await;
        copying += usize::from(progress(&site, "min(start_phase)").await.as_deref() == Some("copying"));
    }
    println!("{copying} of 10 kills hit the copy");
    let relay = site.relay().await;
    let log = load.stop().await.unwrap();
    site.until_confirmed(&relay).await;
    assert!(progress(&site, "start_phase").await.is_none());
    site.judge_table(&relay).await;
    // Rows that were rolled back never arrive; the writers' own log has them.
    let known: HashSet<String> = log.rows().iter().map(|row| row.id.to_string()).collect();
    let mut records = site.records().await;
    records.retain(|record| known.contains(record.header("ce_id").unwrap()));
    assert_correct(&testbed::checker::check(&log, &records));
}

/// Kafka is down during the snapshot, for longer than the server waits for a status update: memory stays bounded, the
/// stream stays open, and the snapshot continues.
#[tokio::test]
async fn a_snapshot_is_bounded_in_memory_and_keeps_the_stream_while_kafka_is_down() {
    let _permit = heavy_permit().await;
    let mut servers = OwnServers::start(PgVersion::V18, &[("wal_sender_timeout", "3s")]).await;
    let site = servers.site().await;
    backlog(&site, 150_000).await;
    let relay = site.launch(|text| text);
    until_events(&relay, 1_000.0).await;
    servers.kafka.stop().await.unwrap();
    assert_eq!(progress(&site, "start_phase").await.as_deref(), Some("copying"));
    let walsender = format!("SELECT active_pid FROM pg_replication_slots WHERE slot_name = '{}'", site.slot);
    let pid = site.value(&walsender).await;
    assert!(pid.is_some());
    relay.until("/readyz", 503, "KafkaUnreachable").await;
    let status = relay.status().await;
    assert_eq!(status["phase"], "copying");
    assert!(status["copiedRows"].as_u64().unwrap() >= 1_000, "{status}");
    assert!(status["lagSeconds"].as_f64().unwrap() > 0.0, "{status}");
    // Three times as long as the server waits for a status update.
    tokio::time::sleep(Duration::from_secs(10)).await;
    assert_eq!(site.value(&walsender).await, pid, "the stream was interrupted while Kafka was down");
    servers.kafka.start_again().await.unwrap();
    relay.until("/readyz", 200, "streaming").await;
    // Records that Kafka stored before it stopped, without the acknowledgement arriving, are found by the scan.
    let copied = relay.metric("outbox_relay_refilled_rows_total").await;
    let found = relay.metric("outbox_relay_duplicates_suppressed_total").await;
    assert!(copied <= 150_000.0 && copied + found >= 150_000.0, "{copied} copied, {found} found");
    let (_, peak) = relay.program.memory().unwrap();
    assert!(peak < 64 * MIB, "the relay had {} MiB at its peak", peak / MIB);
    site.insert([("k", 1)]).await;
    site.judge_table(&relay).await;
}

/// A firewall drops one connection: the snapshot's connection falls silent, while the stream's continues.
#[tokio::test]
async fn a_snapshot_whose_connection_falls_silent_continues_over_another() {
    let proxied = Proxied::start().await;
    backlog(&proxied.site, 10_000).await;
    proxied.to_postgres.set(Fault::SilenceAfter { way: Way::ToClient, bytes: 500_000 });
    let relay = proxied.launch();
    proxied.site.until_records(10_000).await;
    assert_eq!(proxied.to_postgres.cuts(), 1);
    assert!(relay.program.log().contains("is not working for it"), "{}", relay.program.log());
    relay.until_ready().await;
    proxied.site.judge_table(&relay).await;
}

/// Transactions that are open while the slot is created: the server waits for them. Rows that they insert arrive once,
/// rows that are rolled back never.
#[tokio::test]
async fn transactions_that_are_open_while_the_slot_is_created() {
    let site = Site::shared().await;
    site.insert([("k", 1), ("k", 2)]).await;
    let mut open = Vec::new();
    for n in [10, 20, 30] {
        let mut sql = site.sql().await;
        let begin = format!(
            "BEGIN;
             INSERT INTO outbox (id, aggregatetype, aggregateid, type, payload)
             VALUES (gen_random_uuid(), '{0}', 'k{n}', 'n.v1', '{{\"n\": {n}}}');
             SAVEPOINT a;
             INSERT INTO outbox (id, aggregatetype, aggregateid, type, payload)
             VALUES (gen_random_uuid(), '{0}', 'k{n}', 'n.v1', '{{\"n\": {n}1}}');
             ROLLBACK TO a",
            site.aggregate
        );
        sqlx::raw_sql(sqlx::AssertSqlSafe(begin)).execute(&mut sql).await.unwrap();
        open.push(sql);
    }
    let relay = site.launch(|text| text);
    wait::until("a slot that is being created", TIMEOUT, async || {
        let slot = format!("SELECT count(*) FROM pg_replication_slots WHERE slot_name = '{}'", site.slot);
        if site.value(&slot).await.as_deref() == Some("1") { Ok(()) } else { Err("no slot") }
    })
    .await
    .unwrap();
    // Started after the creation began: no exported snapshot shows it, and the creation does not wait for it.
    site.insert([("k", 3)]).await;
    for (sql, end) in open.iter_mut().zip(["COMMIT", "ROLLBACK", "COMMIT"]) {
        sqlx::raw_sql(end).execute(sql).await.unwrap();
    }
    site.insert([("k", 4)]).await;
    relay.until("/readyz", 200, "streaming").await;
    site.judge_table(&relay).await;
    assert_eq!(site.records().await.len(), 6);
}

/// The slot is a failover slot if the server supports that, unless the setting disables it.
#[tokio::test]
async fn a_slot_survives_a_failover_if_the_server_supports_it() {
    for (edit, expected) in [("", "true"), (", failover: Never", "false")] {
        let site = Site::shared().await;
        let name = format!("slot: {{name: {}", site.slot);
        let relay = site.launch(|text| text.replace(&name, &format!("{name}{edit}")));
        relay.until("/readyz", 200, "streaming").await;
        let slot = format!("FROM pg_replication_slots s WHERE slot_name = '{}'", site.slot);
        let failover = site.value(&format!("SELECT to_jsonb(s) ->> 'failover' {slot}")).await;
        let can = site.major().await >= 17;
        assert_eq!(failover.as_deref(), can.then_some(expected));
    }
}

/// The checkpoint that a relay writes before it creates the slot for a snapshot.
async fn intend_slot(site: &Site) {
    site.execute(&format!(
        "INSERT INTO outbox_checkpoint (relay, slot, system_identifier, timeline, start_phase)
         SELECT 'relay', '{}', system_identifier, 1, 'creating' FROM pg_control_system()",
        site.slot
    ))
    .await;
}

/// The relay died after it recorded the creation and before it stored the snapshot: before the slot existed, or after.
#[tokio::test]
async fn r12_a_creation_without_a_stored_snapshot_starts_again() {
    for slot_exists in [false, true] {
        let site = Site::shared().await;
        site.insert([("k", 1)]).await;
        intend_slot(&site).await;
        if slot_exists {
            site.execute(&format!("SELECT pg_create_logical_replication_slot('{}', 'pgoutput')", site.slot))
                .await;
        }
        site.insert([("k", 2)]).await;
        let relay = site.relay().await;
        relay.until("/readyz", 200, "streaming").await;
        site.insert([("k", 3)]).await;
        site.judge_table(&relay).await;
        assert_eq!(site.records().await.len(), 3, "slot exists: {slot_exists}");
    }
}

/// The same with `start: Now`, set before the restart: the unfinished slot is recreated without a snapshot.
#[tokio::test]
async fn an_unfinished_creation_causes_no_snapshot_with_start_now() {
    let site = Site::shared().await;
    site.insert([("k", 1)]).await;
    intend_slot(&site).await;
    site.execute(&format!("SELECT pg_create_logical_replication_slot('{}', 'pgoutput')", site.slot)).await;
    site.insert([("k", 2)]).await;
    let relay = site.launch(|text| text.replace("user: postgres,", "user: postgres, start: Now,"));
    relay.until("/readyz", 200, "streaming").await;
    site.insert([("k", 3)]).await;
    site.until_confirmed(&relay).await;
    let bodies: Vec<_> = site.records().await.iter().map(|record| record.value.clone()).collect();
    assert_eq!(bodies, [Some(b"{\"n\": 3}".to_vec())]);
}

/// A snapshot that is blocked at a row whose topic is missing has stored its progress. The next process continues from
/// there, and does not read the stream before.
#[tokio::test]
async fn r12_a_snapshot_continues_where_another_process_stopped() {
    let site = Site::shared().await;
    let late = format!("{}_late", site.aggregate);
    site.insert([("a", 1), ("b", 2), ("c", 3)]).await;
    site.execute(&format!(
        "INSERT INTO outbox (id, aggregatetype, aggregateid, type, payload)
         VALUES (gen_random_uuid(), '{late}', 'k', 'n.v1', '4')"
    ))
    .await;
    site.insert([("a", 5), ("b", 6)]).await;
    let relay = site.launch(|text| text);
    relay.until("/readyz", 503, "TopicMissing").await;
    site.until_records(3).await;
    wait::until("a stored cursor", TIMEOUT, async || {
        match progress(&site, "start_cursor").await.as_deref() {
            Some("3") => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })
    .await
    .unwrap();
    assert!(progress(&site, "confirmed_lsn").await.is_none(), "nothing of the stream is delivered");
    relay.kill().await;
    // In the stream, after the whole snapshot.
    site.insert([("a", 7)]).await;
    let relay = site.launch(|text| text);
    relay.until("/readyz", 503, "TopicMissing").await;
    let late_topic = format!("outbox.event.{late}");
    create_topic(&site.bootstrap, &late_topic, PARTITIONS, 1, &[]).await.unwrap();
    relay.until("/readyz", 200, "streaming").await;
    site.until_confirmed(&relay).await;
    assert_eq!(
        relay.metric("outbox_relay_refilled_rows_total").await,
        3.0,
        "rows 4, 5 and 6, by this process"
    );
    let topic = site.topic();
    let known = late.clone();
    let log = Log::of_table(site.database.url(), "outbox", |kind| {
        if kind == known { late_topic.clone() } else { topic.clone() }
    });
    let log = log.await.unwrap();
    let records = testbed::records::read_all(&site.bootstrap, &[&topic, &late_topic]).await.unwrap();
    assert_correct(&testbed::checker::check(&log, &records));
}

/// A graceful stop during the snapshot stores the progress; no row is sent twice or scanned for again.
#[tokio::test]
async fn a_stop_during_the_snapshot_stores_its_progress() {
    let _permit = heavy_permit().await;
    let site = Site::shared().await;
    backlog(&site, 60_000).await;
    let relay = site.launch(|text| text);
    until_events(&relay, 500.0).await;
    let (code, log) = relay.stop().await;
    assert_eq!(code, Some(0), "{log}");
    assert_eq!(
        progress(&site, "start_phase").await.as_deref(),
        Some("copying"),
        "it stopped during the snapshot"
    );
    let there = site.records().await.len();
    assert_eq!(
        progress(&site, "start_cursor").await,
        Some(there.to_string()),
        "all that is in Kafka is stored"
    );
    let relay = site.launch(|text| text);
    relay.until("/readyz", 200, "streaming").await;
    assert_eq!(relay.metric("outbox_relay_duplicates_suppressed_total").await, 0.0);
    site.judge_table(&relay).await;
}

/// Two processes start at the same time: one creates the slot, the other stands by.
#[tokio::test]
async fn two_simultaneous_first_starts_create_one_slot() {
    let site = Site::shared().await;
    site.insert([("k", 1), ("k", 2)]).await;
    let relays = [site.launch(|text| text), site.launch(|text| text)];
    for relay in &relays {
        relay.until_ready().await;
    }
    site.insert([("k", 3)]).await;
    site.judge_table(&relays[0]).await;
    assert_eq!(site.records().await.len(), 3);
}

#[tokio::test]
async fn start_now_skips_existing_rows() {
    let site = Site::shared().await;
    site.insert([("k", 1)]).await;
    let relay = site.launch(|text| text.replace("user: postgres,", "user: postgres, start: Now,"));
    relay.until_ready().await;
    site.insert([("k", 2)]).await;
    site.until_records(1).await;
    site.until_confirmed(&relay).await;
    let records = site.records().await;
    assert_eq!(records.len(), 1);
    assert_eq!(records[0].value.as_deref(), Some(&b"{\"n\": 2}"[..]));
}

/// A snapshot that would not be exact is refused with a remedy, and leaves nothing behind. Once the cause is corrected,
/// the relay starts.
#[tokio::test]
async fn a_cause_that_prevents_the_snapshot_is_reported() {
    let site = Site::shared().await;
    let slots = format!("SELECT count(*) FROM pg_replication_slots WHERE slot_name = '{}'", site.slot);
    site.insert([("k", 1)]).await;
    site.execute("ALTER TABLE outbox ALTER xid DROP NOT NULL").await;
    let relay = site.launch(|text| text);
    let text = relay.until("/readyz", 503, "StartRefused").await;
    assert!(text.contains("source.start to Now"), "{text}");
    assert_eq!(site.value(&slots).await.as_deref(), Some("0"));
    // As after a dump and restore: a transaction id that this cluster has not used.
    site.execute("ALTER TABLE outbox ALTER xid SET NOT NULL; UPDATE outbox SET xid = '99999999999'").await;
    relay.until("/readyz", 503, "comes from another cluster").await;
    assert_eq!(site.value(&slots).await.as_deref(), Some("0"));
    let cure =
        relay.status().await["problem"]["message"].as_str().unwrap().split(": ").last().unwrap().to_owned();
    site.execute(&format!("SELECT pg_create_logical_replication_slot('{}', 'pgoutput')", site.slot)).await;
    relay.until("/readyz", 503, "already exists").await;
    site.execute(&format!("SELECT pg_drop_replication_slot('{}')", site.slot)).await;
    site.execute(&cure).await;
    relay.until_ready().await;
    site.judge_table(&relay).await;
}

#[tokio::test]
async fn a_five_column_table_is_refused_with_the_setting_that_helps() {
    let site = Site::shared().await;
    site.execute(
        "CREATE TABLE five (id uuid PRIMARY KEY, aggregatetype varchar(255) NOT NULL,
         aggregateid varchar(255) NOT NULL, type varchar(255) NOT NULL, payload jsonb)",
    )
    .await;
    let relay = site.launch(|text| text.replace("user: postgres,", "user: postgres, table: public.five,"));
    let text = relay.until("/readyz", 503, "StartRefused").await;
    assert!(text.contains("no columns seq (bigint, not null) and xid (xid8, not null)"), "{text}");
    let status = relay.status().await;
    assert!(status["problem"]["remedy"].as_str().unwrap().contains("set source.start to Now"), "{status}");
    assert!(progress(&site, "count(*)").await.as_deref() == Some("0"), "nothing was registered");
}

/// Row-level security hides rows from a role without BYPASSRLS: a snapshot of the visible rows would silently lose the
/// others.
#[tokio::test]
async fn a_role_that_may_not_see_every_row_is_refused() {
    let site = Site::shared().await;
    let role = unique("reader");
    site.execute(&format!(
        "CREATE ROLE {role} LOGIN REPLICATION;
         CREATE PUBLICATION outbox FOR TABLE outbox WITH (publish = 'insert', publish_via_partition_root = true);
         GRANT SELECT, INSERT, UPDATE ON outbox_checkpoint TO {role};
         GRANT EXECUTE ON FUNCTION outbox_maintain(interval, interval) TO {role}"
    ))
    .await;
    site.insert([("k", 1)]).await;
    let relay = site.launch(|text| text.replace("user: postgres", &format!("user: {role}")));
    let text = relay.until("/readyz", 503, "PermissionDenied").await;
    let grant = format!("GRANT SELECT ON \"public\".\"outbox\" TO \"{role}\"");
    assert!(text.contains(&grant), "{text}");
    site.execute(&format!("ALTER TABLE outbox ENABLE ROW LEVEL SECURITY; {grant}")).await;
    relay.until("/readyz", 503, "BYPASSRLS").await;
    site.execute(&format!("ALTER ROLE {role} BYPASSRLS")).await;
    relay.until_ready().await;
    site.judge_table(&relay).await;
}

/// R24: the commit time of an existing row is unknown, so the row needs its own time.
#[tokio::test]
async fn r24_rows_without_a_time_are_refused_at_the_first_start() {
    for (change, remedy) in [
        ("", "UPDATE outbox SET occurred_at = now()"),
        (
            "CREATE TABLE plain AS TABLE outbox; DROP TABLE outbox CASCADE; ALTER TABLE plain RENAME TO outbox;
             ALTER TABLE outbox ALTER seq SET NOT NULL, ALTER xid SET NOT NULL",
            "ALTER TABLE outbox ALTER occurred_at TYPE timestamptz USING now(), ALTER occurred_at SET NOT NULL",
        ),
    ] {
        let site = Site::shared().await;
        site.execute(&format!(
            "INSERT INTO outbox (id, aggregatetype, aggregateid, type, payload, occurred_at)
             VALUES (gen_random_uuid(), '{}', 'k', 't.v1', '1', 'infinity')",
            site.aggregate
        ))
        .await;
        site.execute(change).await;
        let relay = site.launch(|text| text);
        let said = relay.until("/readyz", 503, "StartRefused").await;
        assert!(said.contains("occurred_at"), "{said}");
        assert_eq!(
            site.value("SELECT count(*) FROM pg_replication_slots WHERE database = current_database()")
                .await
                .as_deref(),
            Some("0")
        );
        site.execute(remedy).await;
        relay.until_ready().await;
        assert_eq!(site.until_records(1).await.len(), 1);
    }
}
