//! `FailoverReady`: what the relay reports of the standbys of its database, beside `Ready`.

use serde_json::json;
use sqlx::{AssertSqlSafe, Connection, PgConnection};
use testbed::guard::Folder;
use testbed::postgres::{Postgres, PostgresOptions};
use testbed::{shared, wait};

use crate::stage::{SOON, Stage};

async fn execute(server: &Postgres, statement: &str) {
    let mut sql = PgConnection::connect(&server.url("postgres")).await.unwrap();
    sqlx::raw_sql(AssertSqlSafe(statement)).execute(&mut sql).await.unwrap();
}

#[tokio::test]
async fn a_standby_without_the_slot_shows_and_does_not_change_ready() {
    let mut primary = Postgres::start(PostgresOptions::default()).await.unwrap();
    let standby = primary.start_streaming_standby("standby_1").await.unwrap();
    execute(&standby, "ALTER SYSTEM SET sync_replication_slots = off").await;
    execute(&standby, "SELECT pg_reload_conf()").await;
    let bootstrap = shared().await.unwrap().kafka_bootstrap().to_owned();
    let mut stage = Stage::on("failover", &primary.url("postgres"), &bootstrap).await;
    let hosts = format!("127.0.0.1:{},127.0.0.1:{}", primary.port(), standby.port());
    stage.spec["source"]["postgres"]["host"] = json!(hosts);
    let folder = Folder::new("relay").unwrap();
    let relay = stage.until_streaming(&folder).await;
    stage.until(&[("FailoverReady", "False", "SlotNotSynchronized"), ("Ready", "True", "Streaming")]).await;

    // In the steady state, too.
    execute(&standby, "ALTER SYSTEM SET sync_replication_slots = on").await;
    execute(&standby, "SELECT pg_reload_conf()").await;
    wait::until("the copy to be complete", SOON, async || {
        execute(&primary, "SELECT pg_logical_emit_message(true, 'test', ''), pg_log_standby_snapshot()")
            .await;
        let usable = "SELECT coalesce(bool_or(synced AND NOT temporary), false) FROM pg_replication_slots";
        let mut sql = PgConnection::connect(&standby.url("postgres")).await.unwrap();
        let is_usable: bool = sqlx::query_scalar(usable).fetch_one(&mut sql).await.unwrap();
        if is_usable { Ok(()) } else { Err("no copy") }
    })
    .await
    .unwrap();
    stage.until(&[("FailoverReady", "True", "SlotSynchronized"), ("Ready", "True", "Streaming")]).await;
    drop(relay);
    stage.until(&[("FailoverReady", "Unknown", "NotReported")]).await;
}
