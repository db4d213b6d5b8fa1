//! Holders of the slot, and transactions that its creation waits for: a live relay is left alone, the processes of a
//! dead relay are terminated, another client is named.

use std::time::Duration;

use pg_replication::{Client, ConnectOptions, EndLsn, Host, PgOutput, TlsOptions};
use sqlx::{Connection, PgConnection};
use testbed::postgres::{PgVersion, Postgres, PostgresOptions};
use testbed::proxy::Proxy;
use testbed::{shared, wait};

use crate::fixture::{Relay, Site, TIMEOUT, heavy_permit};

/// A dedicated server, because a transaction that stays open blocks every slot creation on its server.
struct Server {
    postgres: Postgres,
    site: Site,
    to_postgres: Proxy,
}

impl Server {
    async fn start(version: PgVersion, settings: &[(&str, &str)]) -> Server {
        let settings =
            settings.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        let options = PostgresOptions { version, settings, ..PostgresOptions::default() };
        let postgres = Postgres::start(options).await.unwrap();
        let site = Site::on(&postgres.url("postgres"), shared().await.unwrap().kafka_bootstrap()).await;
        let to_postgres = Proxy::before(postgres.port()).await.unwrap();
        Server { postgres, site, to_postgres }
    }

    /// Through the proxy.
    fn proxied(&self, text: String) -> String {
        let direct = format!("port: {}", self.postgres.port());
        text.replace(&direct, &format!("port: {}", self.to_postgres.port()))
    }

    /// An open transaction in another database of the server, with its pid.
    async fn open_elsewhere(&self) -> (PgConnection, String) {
        let url = format!("{}?application_name=nightly-report", self.postgres.url("postgres"));
        let mut sql = PgConnection::connect(&url).await.unwrap();
        sqlx::raw_sql("BEGIN; SELECT pg_current_xact_id()").execute(&mut sql).await.unwrap();
        let pid: i32 = sqlx::query_scalar("SELECT pg_backend_pid()").fetch_one(&mut sql).await.unwrap();
        (sql, pid.to_string())
    }

    /// Walsenders of relays, and slots.
    async fn until_left(&self, walsenders: u32, slots: u32) {
        let walsenders_now = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'outbox-relay'";
        self.site.until_value(walsenders_now, &walsenders.to_string()).await;
        self.site.until_value("SELECT count(*) FROM pg_replication_slots", &slots.to_string()).await;
    }

    async fn walsender(&self) -> String {
        let pid =
            format!("SELECT active_pid FROM pg_replication_slots WHERE slot_name = '{}'", self.site.slot);
        self.site.value(&pid).await.unwrap()
    }

    /// Terminates the session of a relay, as after a restart of its host, but not its walsender.
    async fn end_session(&self) {
        self.site
            .execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity
                 WHERE application_name = 'outbox-relay session' AND datname = current_database()",
            )
            .await;
    }

    async fn delivers(&self, relay: &Relay) {
        relay.until("/readyz", 200, "streaming").await;
        self.site.insert([("k", 1)]).await;
        self.site.judge_table(relay).await;
    }
}

#[tokio::test]
async fn the_creation_of_the_slot_names_the_transaction_it_waits_for() {
    let _permit = heavy_permit().await;
    let server = Server::start(PgVersion::V18, &[]).await;
    let (mut open, pid) = server.open_elsewhere().await;
    let site = &server.site;
    site.insert([("k", 0)]).await;
    let relay = site.launch(|text| text);
    let text = relay.until("/readyz", 503, "SlotCreationWaits").await;
    let who = format!("pid {pid}, application nightly-report (database postgres, role postgres, open for ");
    assert!(text.contains(&who), "{text}");
    assert_eq!(relay.status().await["phase"], "starting");
    let doctor = site.command(relay.admin, |text| text, &["doctor"]).await;
    assert_eq!(doctor.code, Some(69), "{doctor:?}");
    let problems: Vec<&str> = doctor.out.lines().filter(|line| line.starts_with("problem")).collect();
    assert_eq!(problems.len(), 1, "{doctor:?}");
    assert!(problems[0].contains(&who) && problems[0].contains("pg_terminate_backend"), "{problems:?}");
    // Another relay stands by while the first one creates the slot.
    let standby = site.launch(|text| text);
    standby.until("/readyz", 200, "standby").await;
    assert!(standby.status_text().await.contains("another relay is creating slot"));
    sqlx::raw_sql("COMMIT").execute(&mut open).await.unwrap();
    server.delivers(&relay).await;
}

/// A role that may not see details of other sessions still gets their pids, and the grant that shows more.
#[tokio::test]
async fn a_role_without_pg_read_all_stats_learns_what_the_creation_waits_for() {
    let _permit = heavy_permit().await;
    let server = Server::start(PgVersion::V15, &[]).await;
    let site = &server.site;
    site.execute(
        "CREATE ROLE narrow LOGIN REPLICATION;
         CREATE PUBLICATION outbox FOR TABLE outbox WITH (publish = 'insert', publish_via_partition_root = true);
         GRANT SELECT ON outbox TO narrow;
         GRANT SELECT, INSERT, UPDATE ON outbox_checkpoint TO narrow;
         GRANT EXECUTE ON FUNCTION outbox_maintain(interval, interval) TO narrow",
    )
    .await;
    let (mut open, pid) = server.open_elsewhere().await;
    let relay = site.launch(|text| text.replace("user: postgres", "user: narrow"));
    let text = relay.until("/readyz", 503, "SlotCreationWaits").await;
    let who = format!(
        "pid {pid}, application nightly-report (database postgres, role postgres, GRANT pg_read_all_stats TO \"narrow\" shows \
         since when)"
    );
    assert!(text.contains(&who), "{text}");
    sqlx::raw_sql("COMMIT").execute(&mut open).await.unwrap();
    server.delivers(&relay).await;
}

#[tokio::test]
async fn a_stop_while_the_slot_is_created_leaves_nothing_behind() {
    let _permit = heavy_permit().await;
    let server = Server::start(PgVersion::V18, &[("max_prepared_transactions", "5")]).await;
    let site = &server.site;
    site.execute("BEGIN; SELECT pg_current_xact_id(); PREPARE TRANSACTION 'nightly'").await;
    let relay = site.launch(|text| text);
    let text = relay.until("/readyz", 503, "SlotCreationWaits").await;
    let name = site.database.name();
    assert!(
        text.contains(&format!("prepared transaction 'nightly' (database {name}, role postgres")),
        "{text}"
    );
    let (code, log) = relay.stop().await;
    assert_eq!(code, Some(0), "{log}");
    assert!(log.contains("stopped while no stream was open"), "{log}");
    let left = "SELECT (SELECT count(*) FROM pg_replication_slots)
                || '/' || (SELECT count(*) FROM pg_stat_activity WHERE application_name = 'outbox-relay')";
    assert_eq!(site.value(left).await.as_deref(), Some("0/0"), "{log}");
    let relay = site.launch(|text| text);
    relay.until("/readyz", 503, "prepared transaction 'nightly'").await;
    site.execute("ROLLBACK PREPARED 'nightly'").await;
    server.delivers(&relay).await;
}

/// PostgreSQL checks during a slot creation whether its client is connected, because the relay has enabled that.
#[tokio::test]
async fn a_relay_that_is_killed_while_it_creates_the_slot_leaves_nothing_behind() {
    let _permit = heavy_permit().await;
    for version in [PgVersion::V18, PgVersion::V15] {
        let server = Server::start(version, &[]).await;
        let (_open, _) = server.open_elsewhere().await;
        let relay = server.site.launch(|text| text);
        relay.until("/readyz", 503, "SlotCreationWaits").await;
        server.until_left(1, 1).await;
        relay.kill().await;
        server.until_left(0, 0).await;
    }
}

/// The server does not notice the end of the relay: its walsender continues to wait, and the next relay terminates it.
#[tokio::test]
async fn a_creation_whose_relay_is_gone_is_terminated_by_the_next() {
    let _permit = heavy_permit().await;
    let server = Server::start(PgVersion::V18, &[]).await;
    let (mut open, pid) = server.open_elsewhere().await;
    server.site.insert([("k", 0)]).await;
    let relay = server.site.launch(|text| server.proxied(text));
    relay.until("/readyz", 503, "SlotCreationWaits").await;
    server.to_postgres.silence_open();
    relay.kill().await;
    server.end_session().await;
    let orphan = server.walsender().await;
    let relay = server.site.launch(|text| text);
    let text = relay.until("/readyz", 503, "SlotCreationWaits").await;
    assert!(text.contains(&format!("pid {pid}, ")), "{text}");
    assert!(!relay.program.log().contains("standing by"), "{}", relay.program.log());
    let ended =
        format!("walsender whose relay is gone: pid {orphan} (application outbox-relay, role postgres");
    assert!(relay.program.log().contains(&ended), "{}", relay.program.log());
    assert_ne!(server.walsender().await, orphan);
    sqlx::raw_sql("COMMIT").execute(&mut open).await.unwrap();
    server.delivers(&relay).await;
}

/// The open connections to PostgreSQL fall silent, but new ones work. The server never ends the old stream.
#[tokio::test]
async fn a_relay_terminates_its_own_old_stream() {
    let _permit = heavy_permit().await;
    let server = Server::start(PgVersion::V18, &[("wal_sender_timeout", "0")]).await;
    let relay = server.site.launch(|text| server.proxied(text));
    server.delivers(&relay).await;
    let orphan = server.walsender().await;
    server.to_postgres.silence_open();
    server.site.insert([("k", 2)]).await;
    server.site.until_records(2).await;
    server.delivers(&relay).await;
    assert_ne!(server.walsender().await, orphan);
    let log = relay.program.log();
    assert!(!log.contains("standing by") && log.contains("terminated it"), "{log}");
    let doctor = server.site.command(relay.admin, |text| text, &["doctor"]).await;
    assert!(doctor.out.contains("wal_sender_timeout is 0"), "{doctor:?}");
}

/// The same with the creation of the slot, whose lock is held by the old session.
#[tokio::test]
async fn a_relay_terminates_its_own_old_creation() {
    let _permit = heavy_permit().await;
    let server = Server::start(PgVersion::V18, &[]).await;
    let (mut open, _) = server.open_elsewhere().await;
    let relay = server.site.launch(|text| server.proxied(text));
    relay.until("/readyz", 503, "SlotCreationWaits").await;
    let orphan = server.walsender().await;
    server.to_postgres.silence_open();
    relay.until("/readyz", 503, "DatabaseUnreachable").await;
    relay.until("/readyz", 503, "SlotCreationWaits").await;
    assert_ne!(server.walsender().await, orphan);
    assert!(!relay.program.log().contains("standing by"), "{}", relay.program.log());
    sqlx::raw_sql("COMMIT").execute(&mut open).await.unwrap();
    server.delivers(&relay).await;
}

/// A relay died unnoticed by PostgreSQL. Its successor is not ready, reports why, and terminates the old walsender.
#[tokio::test]
async fn a_stream_whose_relay_is_gone_is_named_and_terminated() {
    let _permit = heavy_permit().await;
    let server = Server::start(PgVersion::V18, &[("wal_sender_timeout", "0")]).await;
    let relay = server.site.launch(|text| server.proxied(text));
    server.delivers(&relay).await;
    let orphan = server.walsender().await;
    server.to_postgres.silence_open();
    relay.kill().await;
    let relay = server.site.launch(|text| text);
    // The old session exists, and is silent.
    let text = relay.until("/readyz", 503, "SlotOrphaned").await;
    let who = format!(": pid {orphan} (application outbox-relay, role postgres");
    assert!(text.contains("whose relay has been silent since") && text.contains(&who), "{text}");
    assert_eq!(server.walsender().await, orphan, "a disconnected relay may return for a while");
    server.end_session().await;
    server.delivers(&relay).await;
    assert_ne!(server.walsender().await, orphan);
}

#[tokio::test]
async fn a_client_that_is_not_a_relay_is_named_and_left_alone() {
    let site = Site::shared().await;
    site.relay().await.stop().await;
    let port = site.value("current_setting('port')").await.unwrap().parse().unwrap();
    let mut options =
        ConnectOptions::new(Host::Tcp { host: "127.0.0.1".into(), port }, "postgres", site.database.name());
    options.tls = TlsOptions::disabled();
    options.application_name = "pg_recvlogical".into();
    let client = Client::connect(&options).await.unwrap();
    let pid = client.process_id();
    let output = PgOutput { publications: vec!["outbox".into()], binary: false, messages: false };
    let mut stream = client.start_replication(&site.slot, EndLsn::ZERO, &output).await.unwrap();
    let relay = site.launch(|text| text);
    let text = relay.until("/readyz", 503, "SlotInUse").await;
    assert!(
        text.contains(&format!(
            "pid {pid} (application pg_recvlogical, role postgres, client 127.0.0.1, since "
        )),
        "{text}"
    );
    let doctor = site.command(relay.admin, |text| text, &["doctor"]).await;
    assert!(doctor.code == Some(69) && doctor.out.contains("a client that is not a relay"), "{doctor:?}");
    // It is never terminated.
    assert!(tokio::time::timeout(Duration::from_secs(3), stream.idle()).await.is_err());
    drop(stream);
    relay.until_ready().await;
    site.insert([("k", 1)]).await;
    site.judge_table(&relay).await;
}

/// A standby relay never terminates a live relay, whichever of the live relay's connections is lost.
#[tokio::test]
async fn a_live_relay_that_loses_its_session_is_left_alone() {
    let _permit = heavy_permit().await;
    let server = Server::start(PgVersion::V18, &[]).await;
    let relays = [server.site.relay().await, server.site.launch(|text| text)];
    relays[1].until("/readyz", 200, "standby").await;
    let load = server.site.start_load(100.0).await;
    for _ in 0..3 {
        let before = server.walsender().await;
        server.end_session().await;
        wait::until("another stream", TIMEOUT, async || {
            let now = server
                .site
                .value(&format!(
                    "SELECT active_pid FROM pg_replication_slots WHERE slot_name = '{}'",
                    server.site.slot
                ))
                .await;
            if now.as_ref().is_some_and(|now| *now != before) { Ok(()) } else { Err(format!("{now:?}")) }
        })
        .await
        .unwrap();
    }
    crate::fixture::assert_correct(&server.site.verdict(load, &relays[0]).await);
    for relay in &relays {
        relay.until_ready().await;
        assert!(!relay.program.log().contains("terminated it"), "{}", relay.program.log());
    }
}
