//! A clean stop leaves nothing to repeat. A stop that cannot be clean ends in time and reports it.

use testbed::postgres::PgVersion;

use crate::fixture::{OwnServers, Site, TIMEOUT, assert_correct, heavy_permit};

#[tokio::test]
async fn a_clean_stop_confirms_all_it_published() {
    let _permit = heavy_permit().await;
    let site = Site::shared().await;
    let relay = site.relay().await;
    let load = site.start_load(400.0).await;
    site.until_records(200).await;
    let (code, log) = relay.stop().await;
    assert_eq!(code, Some(0), "{log}");
    let records = site.records().await;
    // Every row in Kafka is before the slot's confirmed position, because a commit begins before its end.
    let last = records.iter().map(|record| record.header("ce_sequence").unwrap()).max().unwrap();
    let (high, low) = (&last[9..17], &last[17..25]);
    let confirmed = format!(
        "SELECT confirmed_flush_lsn > '{high}/{low}'::pg_lsn FROM pg_replication_slots WHERE slot_name = '{}'",
        site.slot
    );
    assert_eq!(site.value(&confirmed).await.as_deref(), Some("true"), "the slot would send {last} again");
    let relay = site.relay().await;
    let verdict = site.verdict(load, &relay).await;
    assert_correct(&verdict);
    assert_eq!(relay.metric("outbox_relay_duplicates_suppressed_total").await, 0.0, "a row was read twice");
    assert_eq!(relay.metric("outbox_relay_events_total").await as usize, verdict.records - records.len());
}

#[tokio::test]
async fn a_stop_while_starting_is_prompt() {
    let site = Site::shared().await;
    let relay = site.launch(|text| text.replace("host: 127.0.0.1", "host: 127.0.0.2"));
    relay.until("/readyz", 503, "DatabaseUnreachable").await;
    let (code, log) = relay.stop().await;
    assert_eq!(code, Some(0));
    assert!(log.contains("stopped while no stream was open"), "{log}");
}

#[tokio::test]
async fn a_standby_relay_and_one_that_waits_for_a_topic_stop_promptly_and_report_it() {
    let site = Site::shared().await;
    let active = site.relay().await;
    let standby = site.launch(|text| text);
    standby.until("/readyz", 200, "standby").await;
    site.execute("INSERT INTO outbox (id, aggregatetype, aggregateid, type, payload) VALUES (gen_random_uuid(), 'nowhere.of.this.stop', 'k', 't', '1')")
        .await;
    active.until("/readyz", 503, "TopicMissing").await;
    let says = ["stopped as a standby", "stopped at a row that cannot be delivered yet"];
    for (relay, line) in [standby, active].into_iter().zip(says) {
        let (code, log) = relay.stop().await;
        assert_eq!(code, Some(0), "{log}");
        assert!(log.contains(line), "{log}");
    }
}

/// Rows were read, Kafka never acknowledged them, and the stream was terminated. In no state does the relay then report
/// a clean stop after SIGTERM: the procedure for skipping a row relies on that line.
#[tokio::test]
async fn a_stop_after_an_interrupted_stream_never_claims_a_clean_stop() {
    let site = Site::shared().await;
    let relay = site.relay().await;
    relay.until("/readyz", 200, "streaming").await;
    assert!(relay.stop().await.1.contains("stopped cleanly"));
    let nowhere = format!("127.0.0.1:{}", testbed::net::free_port().unwrap());
    let relay = site.launch(|text| text.replace(&site.bootstrap, &nowhere));
    site.insert([("k", 1), ("k", 2), ("k", 3)]).await;
    relay.until("/status", 200, "\"notReadingBecause\":\"a row waits").await;
    let terminate = format!(
        "SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots WHERE slot_name = '{}'",
        site.slot
    );
    site.execute(&terminate).await;
    relay.until("/readyz", 503, "DatabaseUnreachable").await;
    let (code, log) = relay.stop().await;
    assert_eq!(code, Some(0), "{log}");
    assert!(!log.contains("stopped cleanly") && log.contains("the next start"), "{log}");
    let relay = site.relay().await;
    site.judge_table(&relay).await;
}

/// Kafka does not respond: with rows in flight, and at the next start before its topic is known.
#[tokio::test]
async fn a_stop_without_kafka_gives_up_at_the_deadline_or_at_a_second_signal() {
    /// The topic's settings are not known, so nothing is sent.
    const BLOCKED: &str =
        "\"notReadingBecause\":\"a row waits for its partition and blocks the stream: the topic's settings";
    let _permit = heavy_permit().await;
    let mut servers = OwnServers::start(PgVersion::V18, &[]).await;
    let mut site = servers.site().await;
    site.extra = "shutdown: {graceSeconds: 2}\n".to_owned();
    let relay = site.relay().await;
    site.insert([("k", 1)]).await;
    site.until_records(1).await;
    servers.kafka.brokers()[0].pause().unwrap();
    site.insert([("k", 2)]).await;
    relay.until("/status", 200, "\"inFlightEvents\":1").await;
    let (code, log) = relay.stop().await;
    assert_eq!(code, Some(0), "{log}");
    assert!(log.contains("stopped at the deadline"), "{log}");

    let relay = site.launch(|text| text);
    relay.until("/status", 200, BLOCKED).await;
    let (code, log) = relay.stop().await;
    assert_eq!(code, Some(0), "{log}");
    assert!(log.contains("stopped at the deadline"), "{log}");

    site.extra = "shutdown: {graceSeconds: 3600}\n".to_owned();
    let mut relay = site.launch(|text| text);
    relay.until("/status", 200, BLOCKED).await;
    relay.program.terminate().unwrap();
    relay.until("/readyz", 503, "").await;
    relay.until("/status", 200, "\"phase\":\"draining\"").await;
    relay.program.terminate().unwrap();
    let code = relay.program.wait(TIMEOUT).await.unwrap().code();
    let log = relay.program.log();
    assert_eq!(code, Some(0), "{log}");
    assert!(log.contains("second signal"), "{log}");

    servers.kafka.brokers()[0].resume().unwrap();
    let relay = site.relay().await;
    site.judge_table(&relay).await;
}

/// A server that hangs in the middle of streaming cannot confirm.
#[tokio::test]
async fn a_stop_while_postgres_hangs_ends_within_the_grace_period() {
    let _permit = heavy_permit().await;
    let servers = OwnServers::start(PgVersion::V18, &[]).await;
    let mut site = servers.site().await;
    site.extra = "shutdown: {graceSeconds: 2}\n".to_owned();
    let relay = site.relay().await;
    site.insert([("k", 1)]).await;
    site.until_records(1).await;
    servers.postgres.pause().unwrap();
    let (code, log) = relay.stop().await;
    servers.postgres.resume().unwrap();
    assert_eq!(code, Some(0), "{log}");
    assert!(log.contains("stopped"), "{log}");
    let relay = site.relay().await;
    site.judge_table(&relay).await;
}
