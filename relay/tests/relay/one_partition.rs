//! One partition makes no progress: it is shown with its cause while the others are delivered. This also applies to a
//! relay that starts in this state and cannot scan the partition, or cannot send its probe.

use testbed::kafka::{Kafka, KafkaOptions, create_topic};
use testbed::{Database, unique, wait};

use crate::fixture::{PARTITIONS, Relay, Site, TIMEOUT, assert_correct, heavy_permit};
use crate::proxied::until_more;

/// Three brokers, and a site on the shared PostgreSQL whose topic has one replica of each partition, or three.
async fn three_brokers(replicas: i32) -> (Kafka, Site) {
    let options = KafkaOptions { brokers: 3, ..KafkaOptions::default() };
    let kafka = Kafka::start(options).await.unwrap();
    let servers = testbed::shared().await.unwrap();
    let database = Database::on(&servers.postgres_url("postgres"), "relay").await.unwrap();
    let site = Site::without_topic(database, &kafka.bootstrap());
    create_topic(&site.bootstrap, &site.topic(), PARTITIONS, replicas, &[]).await.unwrap();
    (kafka, site)
}

/// Asserts that the relay stays not ready for this reason while other partitions acknowledge.
async fn stays_shown_while_others_deliver(relay: &Relay, text: &str) {
    for _ in 0..10 {
        until_more(relay, 20.0).await;
        let (status, seen) = relay.ask("/readyz").await.unwrap();
        assert!(
            status == 503 && seen.contains("NoAcknowledgement") && seen.contains(text),
            "{status} {seen}"
        );
    }
}

/// Too few replicas are in sync for one topic, and enough for the other: diagnosis and recovery.
#[tokio::test]
async fn r23_a_topic_below_its_min_insync_replicas_is_shown_while_others_are_delivered() {
    let _permit = heavy_permit().await;
    let (mut kafka, site) = three_brokers(3).await;
    let needy = unique("needy");
    let topic = format!("outbox.event.{needy}");
    create_topic(&site.bootstrap, &topic, 1, 3, &[("min.insync.replicas", "3")]).await.unwrap();
    let relay = site.relay().await;
    let row = format!(
        "INSERT INTO outbox (id, aggregatetype, aggregateid, type, payload) VALUES (gen_random_uuid(), '{needy}', 'k', 'n.v1', '{{}}')"
    );
    site.execute(&row).await;
    let load = site.start_load(50.0).await;
    until_more(&relay, 50.0).await;
    kafka.brokers()[2].kill().await.unwrap();
    until_more(&relay, 50.0).await;
    site.execute(&row).await;
    let shown = format!("partition {topic}/0 does not acknowledge: 1 records wait");
    relay.until("/readyz", 503, &shown).await;
    let cause = "2 of its 3 replicas in sync, but min.insync.replicas is 3";
    relay.until("/readyz", 503, cause).await;
    stays_shown_while_others_deliver(&relay, &format!("{topic}/0")).await;
    let silent = &relay.status().await["sink"]["silentPartitions"][0];
    assert_eq!((silent["topic"].as_str(), silent["partition"].as_i64()), (Some(&*topic), Some(0)));
    kafka.start_again().await.unwrap();
    relay.until_ready().await;
    let mut log = load.stop().await.unwrap();
    log.settle(site.database.url(), "outbox").await.unwrap();
    assert_correct(&site.judge(log, &relay).await);
    assert_eq!(relay.status().await["sink"]["silentPartitions"].as_array().unwrap().len(), 0);
}

/// A suspended broker: its partitions wait and are named, those of other leaders are delivered.
#[tokio::test]
async fn r23_partitions_of_a_suspended_broker_are_named_while_others_are_delivered() {
    let _permit = heavy_permit().await;
    let (mut kafka, site) = three_brokers(1).await;
    let relay = site.relay().await;
    let load = site.start_load(50.0).await;
    until_more(&relay, 100.0).await;
    kafka.brokers()[2].pause().unwrap();
    let text = relay.until("/readyz", 503, "NoAcknowledgement").await;
    assert!(text.contains(&format!("{}/", site.topic())), "{text}");
    wait::until("the broker to be named", TIMEOUT, async || match relay.ask("/readyz").await {
        Some((503, text)) if text.contains("broker 3") || text.contains("no leader") => Ok(()),
        seen => Err(format!("{seen:?}")),
    })
    .await
    .unwrap();
    stays_shown_while_others_deliver(&relay, &site.topic()).await;
    kafka.brokers()[2].resume().unwrap();
    relay.until_ready().await;
    assert_correct(&site.verdict(load, &relay).await);
}

/// A relay that starts while a broker is dead can neither scan that broker's partitions nor send to them.
#[tokio::test]
async fn a_relay_that_starts_without_one_broker_delivers_to_the_others() {
    let _permit = heavy_permit().await;
    let (mut kafka, site) = three_brokers(1).await;
    let relay = site.relay().await;
    let load = site.start_load(50.0).await;
    until_more(&relay, 100.0).await;
    // Every partition has unconfirmed rows, so all of them have to be scanned.
    relay.kill().await;
    kafka.brokers()[2].kill().await.unwrap();
    kafka.until_brokers(2).await.unwrap();
    let relay = site.launch(|text| text);
    relay.until("/livez", 200, "").await;
    until_more(&relay, 100.0).await;
    let text = relay.until("/readyz", 503, "NoAcknowledgement").await;
    assert!(text.contains(&format!("{}/", site.topic())), "{text}");
    stays_shown_while_others_deliver(&relay, &site.topic()).await;
    let silent = relay.status().await["sink"]["silentPartitions"].clone();
    let waits_for = |silent: &serde_json::Value| silent["waitsFor"].as_str() == Some("search");
    assert!(silent.as_array().unwrap().iter().any(waits_for), "{silent}");
    kafka.start_again().await.unwrap();
    relay.until_ready().await;
    assert_correct(&site.verdict(load, &relay).await);
}

/// The probe is temporarily refused: only the rows after it wait.
#[tokio::test]
async fn a_partition_that_does_not_accept_its_first_record_blocks_no_other() {
    let _permit = heavy_permit().await;
    let (mut kafka, site) = three_brokers(3).await;
    let needy = unique("needy");
    let topic = format!("outbox.event.{needy}");
    create_topic(&site.bootstrap, &topic, 1, 3, &[("min.insync.replicas", "3")]).await.unwrap();
    kafka.brokers()[2].kill().await.unwrap();
    kafka.until_brokers(2).await.unwrap();
    let relay = site.relay().await;
    let load = site.start_load(50.0).await;
    until_more(&relay, 50.0).await;
    for _ in 0..20 {
        let row = format!(
            "INSERT INTO outbox (id, aggregatetype, aggregateid, type, payload) VALUES (gen_random_uuid(), '{needy}', 'k', 'n.v1', '{{}}')"
        );
        site.execute(&row).await;
    }
    relay.until("/readyz", 503, &format!("partition {topic}/0 does not acknowledge: 20 records wait")).await;
    stays_shown_while_others_deliver(&relay, &format!("{topic}/0")).await;
    kafka.start_again().await.unwrap();
    relay.until_ready().await;
    let mut log = load.stop().await.unwrap();
    log.settle(site.database.url(), "outbox").await.unwrap();
    assert_correct(&site.judge(log, &relay).await);
}
