//! One connection that is silent, or cannot be opened, does not affect the connections that work.

use std::time::Duration;

use testbed::proxy::{Fault, Proxy};
use testbed::{shared, unique, wait};
use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};

use crate::fixture::{Relay, Site, TIMEOUT, heavy_permit};
use crate::grants::grants;
use crate::proxied::{Proxied, until_more};

/// The limit for a silent server is half of it.
const WAL_SENDER_TIMEOUT: &str = "3s";
/// Longer than that limit plus the time of a query.
const LONG: Duration = Duration::from_secs(8);

/// Asserts that the relay has not ended a session.
async fn no_session_ended(relay: &Relay) {
    assert_eq!(relay.metric("outbox_relay_reconnects_total").await, 0.0, "{}", relay.program.log());
}

/// Slot, lag and partitions are shown although the first host of the list accepts connections and never responds, and a
/// delivery that is blocked for longer than the limit ends no session.
#[tokio::test]
async fn a_silent_first_host_is_passed_over_by_every_connection() {
    let _permit = heavy_permit().await;
    let mut proxied = Proxied::start().await;
    proxied.to_postgres.set(Fault::Silence);
    proxied.site.extra = "delivery: {maxInFlightEvents: 1}\nheartbeat: {intervalSeconds: 1}\n".to_owned();
    let hosts = format!("host: '127.0.0.1:{}, 127.0.0.1'", proxied.to_postgres.port());
    let relay = proxied.site.launch(|text| {
        text.replace("host: 127.0.0.1", &hosts)
            .replace(&proxied.site.bootstrap, &proxied.kafka.proxied_bootstrap())
    });
    relay.until_ready().await;
    tokio::time::sleep(LONG).await;
    assert_eq!(relay.ask("/readyz").await.unwrap().0, 200, "{}", relay.status_text().await);
    relay.until("/status", 200, "\"observerError\":null").await;
    relay.until("/metrics", 200, "outbox_relay_default_partition_rows 0").await;

    // Each record waits for the previous one, so the stream is rarely read.
    proxied.to_kafka(Fault::Delay { by: Duration::from_millis(20), jitter: Duration::ZERO });
    let load = proxied.start_load(20.0).await;
    until_more(&relay, 50.0).await;
    no_session_ended(&relay).await;
    let end = "SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots WHERE active";
    proxied.site.execute(end).await;
    until_more(&relay, 200.0).await;
    proxied.to_kafka(Fault::None);
    proxied.judge(load, &relay).await;
    assert_eq!(relay.metric("outbox_relay_reconnects_total").await, 1.0, "{}", relay.program.log());
}

/// The role may open no more connections than it has, so only the observer cannot connect.
#[tokio::test]
async fn a_session_outlives_an_observer_that_cannot_connect() {
    let mut site = Site::shared().await;
    site.extra = "heartbeat: {intervalSeconds: 1}\n".to_owned();
    let role = unique("relay_role");
    site.execute(&format!(
        "CREATE ROLE {role} LOGIN REPLICATION; ALTER ROLE {role} SET wal_sender_timeout = '{WAL_SENDER_TIMEOUT}';
         CREATE PUBLICATION outbox FOR TABLE outbox WITH (publish = 'insert', publish_via_partition_root = true); {}",
        grants(&role)
    ))
    .await;
    let relay = site.launch(|text| {
        text.replace("user: postgres", &format!("user: {role}"))
            .replace("{name: outbox}", "{name: outbox, creationPolicy: Never}")
    });
    relay.until_ready().await;
    relay.until("/metrics", 200, "outbox_relay_default_partition_rows 0").await;
    site.execute(&format!(
        "ALTER ROLE {role} CONNECTION LIMIT 1;
         SELECT pg_terminate_backend(pid) FROM pg_stat_activity
         WHERE datname = current_database() AND application_name = 'outbox-relay observer'"
    ))
    .await;
    relay.until("/status", 200, "too many connections for role").await;
    // The stream is not read while the row waits for its topic, and only the session observes the slot.
    let insert = "INSERT INTO outbox (id, aggregatetype, aggregateid, type, payload)";
    let late = unique("late");
    site.execute(&format!("{insert} VALUES (gen_random_uuid(), '{late}', 'k', 't', '1')")).await;
    relay.until("/readyz", 503, "TopicMissing").await;
    tokio::time::sleep(LONG).await;
    relay.until("/readyz", 503, "TopicMissing").await;
    let status = relay.status().await;
    assert!(
        status["source"]["observerError"].is_string() && status["source"]["connected"] == true,
        "{status:#}"
    );
    assert!(
        status["slot"]["activePid"].is_number() && status["lagSeconds"].as_f64() > Some(5.0),
        "{status:#}"
    );
    assert_eq!(relay.metric("outbox_relay_slot_active").await, 1.0);
    let metrics = relay.ask("/metrics").await.unwrap().1;
    assert!(!metrics.contains("\noutbox_relay_default_partition_rows"), "it is not known: {metrics}");
    no_session_ended(&relay).await;
    testbed::kafka::create_topic(&site.bootstrap, &format!("outbox.event.{late}"), 1, 1, &[]).await.unwrap();
    relay.until_ready().await;
    site.insert([("k", 1)]).await;
    site.until_records(1).await;
    site.until_confirmed(&relay).await;
    // Heartbeats do not depend on the observer: a young one arrives although nothing else observes the slot.
    wait::until("a heartbeat", TIMEOUT, async || {
        let age = relay.metric("outbox_relay_heartbeat_age_seconds").await;
        if (0.0..5.0).contains(&age) {
            Ok(())
        } else {
            Err(format!("{age} s old\n{}", relay.status_text().await))
        }
    })
    .await
    .unwrap();
    site.execute(&format!("ALTER ROLE {role} CONNECTION LIMIT -1")).await;
    relay.until("/status", 200, "\"observerError\":null").await;
    no_session_ended(&relay).await;
    assert!(relay.program.log().contains("delivery continues"), "{}", relay.program.log());
}

/// A start that waits for a lock reports it.
#[tokio::test]
async fn a_start_that_waits_for_a_lock_on_the_checkpoint_says_so() {
    let site = Site::shared().await;
    let mut sql = site.sql().await;
    sqlx::raw_sql("BEGIN; LOCK TABLE outbox_checkpoint").execute(&mut sql).await.unwrap();
    let relay = site.launch(|text| text);
    let text = relay.until("/readyz", 503, "CheckpointStalled").await;
    assert!(text.contains("lock on outbox_checkpoint"), "{text}");
    sqlx::raw_sql("COMMIT").execute(&mut sql).await.unwrap();
    relay.until_ready().await;
}

/// Two addresses of one name. The system lists 127.0.0.1 first, which accepts connections and never responds.
#[tokio::test]
async fn a_silent_first_address_is_passed_over_by_every_connection() {
    let silent = Proxy::before(shared_port().await).await.unwrap();
    silent.set(Fault::Silence);
    let port = silent.port();
    let listener = TcpListener::bind(("127.0.0.2", port)).await.unwrap();
    let server = shared_port().await;
    tokio::spawn(async move {
        while let Ok((mut client, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut server = TcpStream::connect(("127.0.0.1", server)).await.unwrap();
                let _ = copy_bidirectional(&mut client, &mut server).await;
            });
        }
    });
    let site = Site::shared().await;
    let hosts = "127.0.0.1 localhost\n127.0.0.1 two.test\n127.0.0.2 two.test\n";
    let relay = site.launch_with_hosts(hosts, |text| {
        let text = text.replace("host: 127.0.0.1", "host: two.test");
        text.replace(&format!("port: {server}"), &format!("port: {port}"))
    });
    relay.until_ready().await;
    relay.until("/status", 200, "\"observerError\":null").await;
    relay.until("/metrics", 200, "outbox_relay_default_partition_rows 0").await;
    site.insert([("k", 1)]).await;
    site.until_records(1).await;
    site.until_confirmed(&relay).await;
}

async fn shared_port() -> u16 {
    let url = shared().await.unwrap().postgres_url("postgres");
    url.parse::<sqlx::postgres::PgConnectOptions>().unwrap().get_port()
}
