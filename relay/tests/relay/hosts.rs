//! A list of hosts: those that are down or read-only are skipped.

use outbox_relay::error::ErrorKind;
use outbox_relay::postgres::checkpoint::ClusterTimeline;
use outbox_relay::postgres::preconditions::check_same_server;
use testbed::postgres::{Postgres, PostgresOptions, Shutdown};
use testbed::{net, shared};

use crate::fixture::{Site, heavy_permit};
use crate::misconfiguration::shows;

#[tokio::test]
async fn a_dead_first_host_is_passed_over() {
    let site = Site::shared().await;
    let dead = net::free_port().unwrap();
    let hosts = format!("host: 'no-such-host.invalid, 127.0.0.1:{dead}, 127.0.0.1'");
    let relay = site.launch(|text| text.replace("host: 127.0.0.1", &hosts));
    relay.until_ready().await;
    site.insert([("k", 1)]).await;
    site.until_records(1).await;
    site.until_confirmed(&relay).await;
}

#[tokio::test]
async fn a_standby_is_refused_until_it_is_promoted() {
    let _permit = heavy_permit().await;
    let mut postgres = Postgres::start(PostgresOptions::default()).await.unwrap();
    let site = Site::on(&postgres.url("postgres"), shared().await.unwrap().kafka_bootstrap()).await;
    postgres.stop(Shutdown::Fast).await.unwrap();
    postgres.start_as_standby().await.unwrap();

    let dead = net::free_port().unwrap();
    let hosts = format!("host: '127.0.0.1:{dead}, 127.0.0.1'");
    let relay = site.launch(|text| text.replace("host: 127.0.0.1", &hosts));
    shows(&relay, "NoWritableHost", "add the primary to source.host").await;
    let text = relay.status_text().await;
    assert!(
        text.contains(&format!("127.0.0.1:{dead}")) && text.contains("is a standby"),
        "each is named: {text}"
    );

    site.execute("SELECT pg_promote()").await;
    relay.until_ready().await;
    site.insert([("k", 1), ("k", 2)]).await;
    site.judge_table(&relay).await;
}

#[tokio::test]
async fn two_connections_that_lead_to_different_servers_are_noticed() {
    let site = Site::shared().await;
    let system = site.value("SELECT system_identifier FROM pg_control_system()").await.unwrap();
    let here = ClusterTimeline { system_identifier: system.parse().unwrap(), timeline: 1 };
    let mut sql = site.sql().await;
    check_same_server(&mut sql, here).await.unwrap();
    let elsewhere = [
        ClusterTimeline { system_identifier: here.system_identifier + 1, ..here },
        // The old primary, which is still running.
        ClusterTimeline { timeline: 2, ..here },
    ];
    for history in elsewhere {
        let error = check_same_server(&mut sql, history).await.unwrap_err();
        assert_eq!(error.kind, ErrorKind::DifferentServers, "{error}");
    }
}
