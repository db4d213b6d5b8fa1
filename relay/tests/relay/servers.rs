//! PostgreSQL restarts, refuses connections, or has none left: the relay reports it, waits, and recovers automatically.

use pg_replication::{Client, ConnectOptions, Host, TlsOptions};
use sqlx::{Connection, PgConnection};
use testbed::postgres::{PgVersion, Shutdown};
use testbed::wait;

use crate::fixture::{OwnServers, TIMEOUT, assert_correct, heavy_permit};
use crate::proxied::until_more;

/// Rows per second.
const RATE: f64 = 500.0;

/// A smart shutdown waits for open sessions, which include the relay's, so the relay continues to deliver. The fast
/// shutdown that administrators issue next ends it.
#[tokio::test]
async fn postgres_restarts_in_every_way_under_load() {
    let _permit = heavy_permit().await;
    survives_restarts(PgVersion::V18).await;
}

pub async fn survives_restarts(version: PgVersion) {
    let mut servers = OwnServers::start(version, &[]).await;
    let site = servers.site().await;
    let relay = site.relay().await;
    let load = site.start_load(RATE).await;
    for how in [Shutdown::Fast, Shutdown::Immediate, Shutdown::Fast, Shutdown::Smart] {
        until_more(&relay, 50.0).await;
        if how == Shutdown::Smart {
            servers.postgres.ask_to_stop(Shutdown::Smart).unwrap();
            until_more(&relay, 50.0).await;
        }
        let how = if how == Shutdown::Smart { Shutdown::Fast } else { how };
        servers.postgres.stop(how).await.unwrap();
        relay.until("/readyz", 503, "DatabaseUnreachable").await;
        servers.postgres.start_again().await.unwrap();
        relay.until_ready().await;
    }
    assert_correct(&site.verdict(load, &relay).await);
}

/// Another client uses the only walsender.
#[tokio::test]
async fn no_walsender_is_left() {
    let _permit = heavy_permit().await;
    let servers = OwnServers::start(PgVersion::V18, &[("max_wal_senders", "1")]).await;
    let site = servers.site().await;
    site.relay().await.stop().await;
    let load = site.start_load(RATE).await;
    let host = Host::Tcp { host: "127.0.0.1".into(), port: servers.postgres.port() };
    let mut taken = ConnectOptions::new(host, "postgres", site.database.name());
    taken.tls = TlsOptions::disabled();
    let taken =
        wait::until("the only walsender", TIMEOUT, async || Client::connect(&taken).await).await.unwrap();
    let relay = site.launch(|text| text);
    relay.until("/readyz", 503, "DatabaseUnreachable").await;
    assert!(relay.status_text().await.contains("53300"), "{}", relay.status_text().await);
    drop(taken);
    relay.until_ready().await;
    assert_correct(&site.verdict(load, &relay).await);
}

/// All connections are in use, and the relay's are terminated, so that it cannot reconnect.
#[tokio::test]
async fn no_connection_is_left() {
    let _permit = heavy_permit().await;
    let servers = OwnServers::start(PgVersion::V18, &[("max_connections", "20")]).await;
    let site = servers.site().await;
    let relay = site.relay().await;
    let load = site.start_load(RATE).await;
    until_more(&relay, 50.0).await;
    // Without the load, which would have to reconnect, too.
    let mut log = load.stop().await.unwrap();
    let mut admin = site.sql().await;
    let mut taken = Vec::new();
    let take_all = async |taken: &mut Vec<PgConnection>| {
        while let Ok(connection) = PgConnection::connect(site.database.url()).await {
            taken.push(connection);
        }
    };
    take_all(&mut taken).await;
    let end =
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name LIKE 'outbox-relay%'";
    wait::until("a relay that cannot connect", TIMEOUT, async || {
        sqlx::raw_sql(end).execute(&mut admin).await.unwrap();
        take_all(&mut taken).await;
        match relay.ask("/readyz").await {
            Some((503, text)) if text.contains("too many clients") => Ok(()),
            seen => Err(format!("{seen:?}")),
        }
    })
    .await
    .unwrap();
    drop(taken);
    relay.until_ready().await;
    let load = site.start_load(RATE).await;
    until_more(&relay, 50.0).await;
    log.append(load.stop().await.unwrap());
    log.settle(site.database.url(), "outbox").await.unwrap();
    assert_correct(&site.judge(log, &relay).await);
}
