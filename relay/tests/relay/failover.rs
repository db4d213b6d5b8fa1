//! Failover readiness: what `/status`, the metric and `doctor` say of the copies of the slot on standbys.

use serde_json::Value;
use sqlx::{AssertSqlSafe, Connection, PgConnection};
use testbed::postgres::{PgVersion, Postgres, Shutdown};
use testbed::wait;

use crate::fixture::{OwnServers, Relay, TIMEOUT, heavy_permit};

/// A change of the configuration that names these servers.
pub fn hosts(servers: &[&Postgres]) -> impl FnOnce(String) -> String + Clone + use<> {
    let servers: Vec<String> = servers.iter().map(|server| format!("127.0.0.1:{}", server.port())).collect();
    let hosts = format!("host: '{}'", servers.join(", "));
    move |text: String| text.replace("host: 127.0.0.1", &hosts)
}

pub async fn execute(server: &Postgres, statement: &str) {
    let mut sql = PgConnection::connect(&server.url("postgres")).await.unwrap();
    sqlx::raw_sql(AssertSqlSafe(statement)).execute(&mut sql).await.unwrap();
}

/// Sets a parameter without a restart.
pub async fn set(server: &Postgres, parameter: &str, value: &str) {
    execute(server, &format!("ALTER SYSTEM SET {parameter} = '{value}'")).await;
    execute(server, "SELECT pg_reload_conf()").await;
}

/// Waits until the relay shows this reason, and the metric that belongs to it. A new copy of a slot is complete once the
/// slot of the primary has advanced, so WAL is written each time.
async fn until(primary: &Postgres, relay: &Relay, reason: &str) -> Value {
    let failover = wait::until(format!("failover readiness {reason}"), TIMEOUT, async || {
        execute(primary, "SELECT pg_logical_emit_message(true, 'test', ''), pg_log_standby_snapshot()").await;
        let failover = relay.status().await["failover"].clone();
        if failover["reason"] == reason { Ok(failover) } else { Err(failover.to_string()) }
    })
    .await
    .unwrap();
    let expected = failover["ready"].as_bool().map(|is_ready| if is_ready { "1" } else { "0" });
    wait::until(format!("the metric to be {expected:?}"), TIMEOUT, async || {
        let (_, text) = relay.ask("/metrics").await.unwrap();
        let series = text.lines().find_map(|line| line.strip_prefix("outbox_relay_failover_ready "));
        if series == expected { Ok(()) } else { Err(format!("{series:?}")) }
    })
    .await
    .unwrap();
    failover
}

fn says(failover: &Value, ready: Option<bool>, text: &str) {
    assert_eq!(failover["ready"].as_bool(), ready, "{failover}");
    assert!(failover["message"].as_str().unwrap().contains(text), "{text}: {failover}");
}

#[tokio::test]
async fn readiness_is_what_the_standbys_show() {
    let _permit = heavy_permit().await;
    for version in [PgVersion::V18, PgVersion::V17] {
        let mut servers = OwnServers::start(version, &[]).await;
        let mut standby = servers.postgres.start_streaming_standby("standby_1").await.unwrap();
        set(&standby, "sync_replication_slots", "off").await;
        let (site, primary) = (servers.site().await, &servers.postgres);
        let relay = site.launch(hosts(&[primary, &standby]));
        relay.until_ready().await;
        says(
            &until(primary, &relay, "SlotNotSynchronized").await,
            Some(false),
            "sync_replication_slots is off",
        );

        set(&standby, "sync_replication_slots", "on").await;
        let failover = until(primary, &relay, "SlotSynchronized").await;
        says(&failover, Some(true), &standby.port().to_string());
        let shown = &failover["standbys"][0];
        assert_eq!((&shown["copy"], &shown["primarySlot"]), (&"usable".into(), &"standby_1".into()));
        assert!(shown["behindBytes"].is_u64() && failover["failoverSlot"] == true, "{failover}");
        // Nothing of this needs privileges.
        execute(primary, "CREATE ROLE plain LOGIN").await;
        let as_plain =
            |text: String| hosts(&[primary, &standby])(text).replace("user: postgres", "user: plain");
        wait::until("doctor to agree", TIMEOUT, async || {
            let doctor = site.command(relay.admin, as_plain, &["doctor"]).await;
            let line = doctor.out.lines().find(|line| line.contains("usable copy"));
            if line.is_some_and(|line| line.starts_with("ok       failover")) {
                Ok(())
            } else {
                Err(doctor.out)
            }
        })
        .await
        .unwrap();

        set(primary, "synchronized_standby_slots", "gone").await;
        says(
            &until(primary, &relay, "StandbySlotUnread").await,
            Some(false),
            "slot gone, which does not exist",
        );
        set(primary, "synchronized_standby_slots", "").await;
        standby.stop(Shutdown::Fast).await.unwrap();
        says(&until(primary, &relay, "StandbyUnknown").await, None, "cannot be queried");
        relay.stop().await;

        let alone = site.relay().await;
        until(primary, &alone, "NoStandbyKnown").await;
        standby.start_again().await.unwrap();
        says(&until(primary, &alone, "StandbyUnknown").await, None, "standby_1");
    }
}

/// A former primary keeps its own slot, which PostgreSQL does not replace.
#[tokio::test]
async fn a_slot_that_blocks_synchronisation_after_a_switchover_is_named() {
    let _permit = heavy_permit().await;
    let mut servers = OwnServers::start(PgVersion::V18, &[]).await;
    let second = servers.postgres.start_streaming_standby("second").await.unwrap();
    let site = servers.site().await;
    let relay = site.launch(hosts(&[&servers.postgres, &second]));
    relay.until_ready().await;
    until(&servers.postgres, &relay, "SlotSynchronized").await;

    let first = &mut servers.postgres;
    first.stop(Shutdown::Fast).await.unwrap();
    execute(&second, "SELECT pg_promote()").await;
    first.follow(&second, "first").await.unwrap();
    relay.until_ready().await;
    let failover = until(&second, &relay, "SlotSyncBlocked").await;
    says(&failover, Some(false), &first.port().to_string());
    assert_eq!(failover["standbys"][0]["copy"], "notSynchronized");
    assert!(failover["remedy"].as_str().unwrap().contains("pg_drop_replication_slot"), "{failover}");

    execute(first, &format!("SELECT pg_drop_replication_slot('{}')", site.slot)).await;
    until(&second, &relay, "SlotSynchronized").await;
}
