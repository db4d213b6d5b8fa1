//! `/readyz`, `/status` and metrics show a fault while it lasts, and clear when it is gone. How soon is measured
//! elsewhere; these tests check the sequence.

use serde_json::Value;
use testbed::postgres::{PgVersion, Shutdown};
use testbed::wait;

use crate::fixture::{OwnServers, Relay, Site, TIMEOUT, heavy_permit};

/// Waits until `/status` fulfils the condition.
async fn shows(relay: &Relay, what: &str, mut look: impl FnMut(&Value) -> bool) {
    wait::until(what, TIMEOUT, async || {
        let status = relay.status().await;
        if look(&status) { Ok(()) } else { Err(format!("{status:#}\n{}", relay.program.log_tail())) }
    })
    .await
    .unwrap();
}

/// Waits until each metric has the expected value.
async fn wait_for_metrics(relay: &Relay, metrics: &[(&str, f64)]) {
    for (name, value) in metrics {
        let name = format!("outbox_relay_{name}");
        wait::until(format!("{name} to be {value}"), TIMEOUT, async || {
            let seen = relay.metric(&name).await;
            if seen == *value { Ok(()) } else { Err(seen) }
        })
        .await
        .unwrap();
    }
}

/// An LSN in text form, as a number.
fn lsn(text: &str) -> u64 {
    let (high, low) = text.split_once('/').unwrap();
    u64::from_str_radix(high, 16).unwrap() << 32 | u64::from_str_radix(low, 16).unwrap()
}

const KAFKA: &str = "connected{side=\"kafka\"}";
const POSTGRES: &str = "connected{side=\"postgres\"}";

/// Idle, then three events, then a cluster that is busy with other tables: read, sent, acknowledged and confirmed are
/// four numbers, heartbeats arrive, and there is no lag.
#[tokio::test]
async fn on_a_good_day() {
    let mut site = Site::shared().await;
    site.extra = "heartbeat: {intervalSeconds: 1}\n".to_owned();
    let relay = site.relay().await;
    shows(&relay, "a relay that streams", |status| {
        status["role"] == "active"
            && status["ready"] == true
            && status["problem"].is_null()
            && status["notReadingBecause"].is_null()
            && status["source"]["connected"] == true
            && status["sink"]["connected"] == true
            && status["slot"]["name"] == site.slot.as_str()
            && status["slot"]["activePid"].is_number()
            && status["checkpoint"]["ageSeconds"].is_number()
    })
    .await;
    wait_for_metrics(&relay, &[(KAFKA, 1.0), (POSTGRES, 1.0), ("streaming", 1.0), ("slot_active", 1.0)])
        .await;
    wait_for_metrics(
        &relay,
        &[("slot_inactive_seconds", 0.0), ("slot_wal_status{status=\"reserved\"}", 1.0)],
    )
    .await;
    site.insert([("a", 1), ("b", 2), ("c", 3)]).await;
    shows(&relay, "three events, delivered", |status| {
        status["receivedEvents"] == 3
            && status["sentEvents"] == 3
            && status["acknowledgedEvents"] == 3
            && status["inFlightEvents"] == 0
            && status["lagSeconds"] == 0.0
            && status["sink"]["lastAcknowledgementAt"].is_string()
    })
    .await;
    site.until_confirmed(&relay).await;
    // Other logical messages are not events and block nothing, inside or outside of transactions.
    site.execute(
        "CREATE TABLE busy (filler text); SELECT pg_logical_emit_message(false, 'outbox-relay:other', '1/1');
         BEGIN; SELECT pg_logical_emit_message(true, 'theirs', 'x'); INSERT INTO busy VALUES ('x'); COMMIT",
    )
    .await;
    for _ in 0..3 {
        let before = relay.metric("outbox_relay_received_lsn").await;
        site.execute("INSERT INTO busy SELECT repeat(md5(n::text), 100) FROM generate_series(1, 1000) n")
            .await;
        wait::until("a stream that passes them", TIMEOUT, async || {
            let now = relay.metric("outbox_relay_received_lsn").await;
            if now > before { Ok(()) } else { Err(now) }
        })
        .await
        .unwrap();
        wait_for_metrics(&relay, &[("lag_seconds", 0.0), ("events_total", 3.0)]).await;
    }
    site.until_confirmed(&relay).await;
    // The age decreases only when a heartbeat arrives.
    let mut age = relay.metric("outbox_relay_heartbeat_age_seconds").await;
    wait::until("a heartbeat that comes back", TIMEOUT, async || {
        let before = std::mem::replace(&mut age, relay.metric("outbox_relay_heartbeat_age_seconds").await);
        if age < before && age >= 0.0 { Ok(()) } else { Err(age) }
    })
    .await
    .unwrap();
    assert!(relay.status().await["lastProblem"].is_null(), "{}", relay.status_text().await);
    assert_eq!(relay.metric("outbox_relay_reconnects_total").await, 0.0);
}

/// Idle, then with rows in flight, then with a used-up budget.
#[tokio::test]
async fn while_kafka_is_down() {
    let _permit = heavy_permit().await;
    let mut servers = OwnServers::start(PgVersion::V18, &[]).await;
    let mut site = servers.site().await;
    site.extra = "delivery: {maxInFlightEvents: 1}\n".to_owned();
    let relay = site.relay().await;
    servers.kafka.stop().await.unwrap();
    relay.until("/readyz", 503, "KafkaUnreachable").await;
    wait_for_metrics(&relay, &[(KAFKA, 0.0), (POSTGRES, 1.0), ("streaming", 1.0), ("lag_seconds", 0.0)])
        .await;
    assert_eq!(relay.status().await["sink"]["connected"], false);
    servers.kafka.start_again().await.unwrap();
    relay.until_ready().await;
    wait_for_metrics(&relay, &[(KAFKA, 1.0)]).await;
    shows(&relay, "what was wrong, and that it is over", |status| {
        status["lastProblem"]["reason"] == "KafkaUnreachable" && status["lastProblem"]["until"].is_string()
    })
    .await;
    site.insert([("k", 1)]).await;
    site.until_records(1).await;

    let broker = &servers.kafka.brokers()[0];
    broker.pause().unwrap();
    site.insert([("k", 2), ("k", 3)]).await;
    relay.until("/readyz", 503, "").await;
    shows(&relay, "a budget that is used up", |status| {
        status["budgetFull"] == true
            && status["notReadingBecause"].as_str().unwrap().contains("in-flight limit")
            && status["inFlightEvents"] == 1
            && status["lagSeconds"].as_f64().unwrap() > 1.0
            && status["sentEvents"].as_u64() > status["acknowledgedEvents"].as_u64()
            && status["sink"]["connected"] == false
    })
    .await;
    assert!(relay.metric("outbox_relay_lag_seconds").await > 0.0);
    assert_eq!(relay.metric("outbox_relay_in_flight_events").await, 1.0);
    let bytes = relay.metric("outbox_relay_in_flight_bytes").await;
    assert!(bytes > 100.0, "a key and a value of a few bytes, and {bytes} with all headers");
    assert!(relay.metric("outbox_relay_unconfirmed_wal_bytes").await > 0.0);
    broker.resume().unwrap();
    relay.until_ready().await;
    site.until_records(3).await;
    shows(&relay, "nothing left to do", |status| {
        // Counted since the stream was opened, which may have happened again.
        status["lagSeconds"] == 0.0
            && status["budgetFull"] == false
            && status["acknowledgedEvents"] == status["sentEvents"]
    })
    .await;
    wait_for_metrics(&relay, &[("in_flight_events", 0.0), (KAFKA, 1.0), ("lag_seconds", 0.0)]).await;
}

/// A stopped server, then one that hangs: its connections stay open and silent.
#[tokio::test]
async fn while_postgres_is_down() {
    let _permit = heavy_permit().await;
    let mut servers = OwnServers::start(PgVersion::V18, &[]).await;
    let site = servers.site().await;
    let relay = site.relay().await;
    servers.postgres.stop(Shutdown::Fast).await.unwrap();
    relay.until("/readyz", 503, "DatabaseUnreachable").await;
    wait_for_metrics(&relay, &[(POSTGRES, 0.0), ("streaming", 0.0), (KAFKA, 0.0)]).await;
    shows(&relay, "no connection to the source", |status| {
        status["source"]["connected"] == false && status["role"] == "none" && status["ready"] == false
    })
    .await;
    servers.postgres.start_again().await.unwrap();
    relay.until_ready().await;
    wait_for_metrics(&relay, &[(POSTGRES, 1.0), ("streaming", 1.0)]).await;
    let reconnects = relay.metric("outbox_relay_reconnects_total").await;
    assert!((1.0..=2.0).contains(&reconnects), "each attempt was counted: {reconnects}");

    servers.postgres.pause().unwrap();
    relay.until("/readyz", 503, "DatabaseUnreachable").await;
    wait_for_metrics(&relay, &[(POSTGRES, 0.0)]).await;
    servers.postgres.resume().unwrap();
    relay.until_ready().await;
    wait_for_metrics(&relay, &[(POSTGRES, 1.0)]).await;
    site.insert([("k", 1)]).await;
    site.until_records(1).await;
}

/// Kafka is down, so the stream is not read and seems open: the slot state from the server is enough.
#[tokio::test]
async fn a_slot_that_is_about_to_be_lost() {
    let _permit = heavy_permit().await;
    let settings = [
        ("max_slot_wal_keep_size", "96MB"),
        ("max_wal_size", "32MB"),
        ("min_wal_size", "32MB"),
        ("checkpoint_timeout", "1h"),
    ];
    let servers = &mut OwnServers::start(PgVersion::V18, &settings).await;
    let mut site = servers.site().await;
    site.extra = "delivery: {maxInFlightEvents: 1}\n".to_owned();
    let relay = site.relay().await;
    site.insert([("k", 1)]).await;
    site.until_records(1).await;
    site.until_confirmed(&relay).await;
    let safe_before = relay.metric("outbox_relay_slot_safe_wal_bytes").await;
    assert!(safe_before > 0.0);
    servers.kafka.brokers()[0].pause().unwrap();
    site.insert([("k", 2), ("k", 3)]).await;
    shows(&relay, "a budget that is used up", |status| status["budgetFull"] == true).await;
    let mut ways = vec!["reserved".to_owned()];
    while ways.last().is_some_and(|way| way != "lost") {
        site.execute("SELECT pg_logical_emit_message(false, 'filler', 'x'), pg_switch_wal()").await;
        let now = lsn(&site.value("pg_current_wal_lsn()").await.unwrap());
        shows(&relay, "what the server shows", |status| {
            lsn(status["slot"]["serverLsn"].as_str().unwrap()) >= now
        })
        .await;
        for way in ["reserved", "extended", "unreserved", "lost"] {
            let name = format!("outbox_relay_slot_wal_status{{status=\"{way}\"}}");
            if relay.metric(&name).await == 1.0 && !ways.iter().any(|seen| seen == way) {
                ways.push(way.to_owned());
            }
        }
        if ways.len() == 2 {
            assert!(relay.metric("outbox_relay_slot_safe_wal_bytes").await < safe_before);
            assert!(relay.metric("outbox_relay_retained_wal_bytes").await > 16.0 * 1024.0 * 1024.0);
        }
    }
    // How long the slot is unreserved depends on the server's next checkpoint.
    ways.retain(|way| way != "unreserved");
    assert_eq!(ways, ["reserved", "extended", "lost"]);
    relay.until("/readyz", 503, "SlotLost").await;
    wait_for_metrics(&relay, &[("streaming", 0.0), ("slot_active", 0.0)]).await;
    shows(&relay, "a slot that is lost", |status| {
        status["slot"]["walStatus"] == "lost" && status["problem"]["reason"] == "SlotLost"
    })
    .await;
    let inactive = relay.metric("outbox_relay_slot_inactive_seconds").await;
    wait::until("a slot that is not active", TIMEOUT, async || {
        let now = relay.metric("outbox_relay_slot_inactive_seconds").await;
        if now > inactive { Ok(()) } else { Err(now) }
    })
    .await
    .unwrap();
}

/// The slot is dropped while the relay streams: it is reported, and not recreated.
#[tokio::test]
async fn a_slot_dropped_while_it_is_in_use() {
    let site = Site::shared().await;
    let relay = site.relay().await;
    let drop_it = format!(
        "SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots WHERE slot_name = '{0}';
         SELECT pg_drop_replication_slot('{0}')",
        site.slot
    );
    wait::until("a slot that can be dropped", TIMEOUT, async || {
        let dropped = sqlx::raw_sql(sqlx::AssertSqlSafe(&*drop_it)).execute(&mut site.sql().await).await;
        dropped.map(drop).map_err(|error| error.to_string())
    })
    .await
    .unwrap();
    relay.until("/readyz", 503, "SlotLost").await;
    shows(&relay, "no slot", |status| {
        status["slot"]["exists"] == false && status["slot"]["activePid"].is_null()
    })
    .await;
    wait_for_metrics(&relay, &[("slot_active", 0.0), ("streaming", 0.0), ("slot_wal_status", 0.0)]).await;
}

/// A standby relay is always ready, has no lag, and counts standing by once, not at every attempt.
#[tokio::test]
async fn a_standby_relay_is_ready_and_reports_it() {
    let site = Site::shared().await;
    let active = site.relay().await;
    let standby = site.launch(|text| text);
    standby.until("/readyz", 200, "standby").await;
    let mut sql = site.sql().await;
    let mut tries = 0;
    // Its attempts are visible on the server: each is a new session.
    let mut last = None;
    while tries < 3 {
        let (code, text) = standby.ask("/readyz").await.unwrap();
        assert_eq!((code, text.trim()), (200, "standby"));
        let session: Option<i32> = sqlx::query_scalar(
            "SELECT pid FROM pg_stat_activity
             WHERE application_name = 'outbox-relay session' AND datname = current_database()
             ORDER BY backend_start DESC LIMIT 1",
        )
        .fetch_optional(&mut sql)
        .await
        .unwrap();
        tries += u32::from(session.is_some() && session != last);
        last = session.or(last);
    }
    let status = standby.status().await;
    assert_eq!(
        (&status["role"], &status["ready"]),
        (&Value::from("standby"), &Value::from(true)),
        "{status:#}"
    );
    assert_eq!(status["problem"]["reason"], "SlotActive");
    let pid = format!("SELECT active_pid FROM pg_replication_slots WHERE slot_name = '{}'", site.slot);
    let pid: i64 = site.value(&pid).await.unwrap().parse().unwrap();
    for relay in [&active, &standby] {
        shows(relay, "who holds the slot", |status| status["slot"]["activePid"].as_i64() == Some(pid)).await;
    }
    wait_for_metrics(&standby, &[("reconnects_total", 1.0), ("streaming", 0.0)]).await;
    let (_, metrics) = standby.ask("/metrics").await.unwrap();
    // A metric without a value has no series: neither a heartbeat on a standby relay nor a limit that is not set.
    for name in ["outbox_relay_heartbeat_age_seconds", "outbox_relay_slot_safe_wal_bytes"] {
        assert!(!metrics.contains(name), "{metrics}");
    }
    wait_for_metrics(&standby, &[("slot_active", 1.0), (POSTGRES, 1.0), (KAFKA, 0.0)]).await;
    site.insert([("k", 1)]).await;
    site.until_records(1).await;
    site.until_confirmed(&active).await;
    wait_for_metrics(&standby, &[("lag_seconds", 0.0)]).await;
    active.kill().await;
    standby.until("/readyz", 200, "streaming").await;
    wait_for_metrics(&standby, &[("streaming", 1.0), (KAFKA, 1.0)]).await;
}

/// A blocked row is shown, separately from the reason why the stream is not read.
#[tokio::test]
async fn a_row_without_a_topic() {
    let site = Site::shared().await;
    let relay = site.relay().await;
    site.execute("INSERT INTO outbox (id, aggregatetype, aggregateid, type, payload) VALUES (gen_random_uuid(), 'nowhere.of.this.test', 'k', 't', '1')")
        .await;
    relay.until("/readyz", 503, "TopicMissing").await;
    shows(&relay, "a row that waits", |status| {
        status["notReadingBecause"].as_str().is_some_and(|why| why.contains("topic"))
            && status["lagSeconds"].as_f64().unwrap() > 0.0
            && status["receivedEvents"] == 0
    })
    .await;
}

/// R10: a relay that was paused until another had acquired the slot sends none of its queued records, and stands by.
#[tokio::test]
async fn r10_a_process_that_was_paused_gives_the_slot_up() {
    let _permit = heavy_permit().await;
    let servers = OwnServers::start(PgVersion::V18, &[("wal_sender_timeout", "2s")]).await;
    let site = servers.site().await;
    let paused = site.relay().await;
    site.insert([("k", 1)]).await;
    site.until_records(1).await;
    let successor = site.relay().await;
    successor.until("/readyz", 200, "standby").await;
    paused.program.pause().unwrap();
    successor.until("/readyz", 200, "streaming").await;
    site.insert([("k", 2)]).await;
    site.until_records(2).await;
    paused.program.resume().unwrap();
    paused.until("/readyz", 200, "standby").await;
    let log = paused.program.log();
    // If it was paused within a turn of the event loop, it learns this from the server first.
    assert!(log.contains("ProcessPaused") || log.contains("another client holds the slot now"), "{log}");
    site.insert([("k", 3)]).await;
    site.judge_table(&successor).await;
}
