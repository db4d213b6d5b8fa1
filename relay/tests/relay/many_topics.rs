//! A thousand topics of one relay.

use std::time::{Duration, Instant};

use rdkafka::ClientConfig;
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use testbed::checker;
use testbed::load::Log;
use testbed::postgres::PgVersion;
use testbed::records::read_all;
use testbed::wait;

use crate::fixture::{OwnServers, Relay, Site, assert_correct, heavy_permit, long_matrix};

const TOPICS: usize = 1000;
/// Every topic is queried before its first record.
const ALL_OF_THEM: Duration = Duration::from_secs(600);

async fn make_topics(site: &Site) {
    let names: Vec<String> = (1..=TOPICS).map(|n| format!("{}-{n}", site.topic())).collect();
    let topics: Vec<NewTopic<'_>> =
        names.iter().map(|name| NewTopic::new(name, 1, TopicReplication::Fixed(1))).collect();
    let admin: AdminClient<DefaultClientContext> =
        ClientConfig::new().set("bootstrap.servers", &site.bootstrap).create().unwrap();
    let options = AdminOptions::new().request_timeout(Some(ALL_OF_THEM));
    for made in admin.create_topics(&topics, &options).await.unwrap() {
        made.unwrap();
    }
}

/// One row for each topic.
async fn insert(site: &Site) {
    site.execute(&format!(
        "INSERT INTO outbox (id, aggregatetype, aggregateid, type, payload)
         SELECT gen_random_uuid(), '{}-' || n, 'k', 'n.v1', to_jsonb(n) FROM generate_series(1, {TOPICS}) n",
        site.aggregate
    ))
    .await;
}

async fn until_acknowledged(relay: &Relay, events: usize) {
    wait::until(format!("{events} events"), ALL_OF_THEM, async || {
        let seen = relay.metric("outbox_relay_events_total").await;
        if seen >= events as f64 { Ok(()) } else { Err(format!("{seen}\n{}", relay.status_text().await)) }
    })
    .await
    .unwrap();
}

/// Rows for a thousand topics. The relay dies while it discovers them, and again when it knows them all.
#[tokio::test]
async fn a_thousand_topics_and_a_kill_9() {
    if !long_matrix() {
        return;
    }
    let _permit = heavy_permit().await;
    let servers = OwnServers::start(PgVersion::V18, &[]).await;
    let site = servers.site().await;
    make_topics(&site).await;
    let relay = site.relay().await;
    let began = Instant::now();
    insert(&site).await;
    until_acknowledged(&relay, TOPICS / 2).await;
    println!("half of {TOPICS} topics found in {:?}", began.elapsed());
    relay.kill().await;
    let relay = site.relay().await;
    insert(&site).await;
    let all = "SELECT count(*) FROM outbox_checkpoint, jsonb_object_keys(mapping #> '{current,topics}')";
    wait::until("all topics in the checkpoint", ALL_OF_THEM, async || match site.value(all).await {
        Some(count) if count.parse::<usize>().unwrap() >= TOPICS => Ok(()),
        seen => Err(format!("{seen:?}\n{}", relay.status_text().await)),
    })
    .await
    .unwrap();
    println!("all of them, with a kill -9, in {:?}", began.elapsed());
    site.until_confirmed(&relay).await;
    relay.kill().await;
    let began = Instant::now();
    let relay = site.relay().await;
    println!("ready again, knowing them all, in {:?}", began.elapsed());
    insert(&site).await;
    site.until_confirmed(&relay).await;
    println!("a row for each confirmed after {:?}", began.elapsed());

    let topic = |kind: &str| format!("outbox.event.{kind}");
    let log = Log::of_table(site.database.url(), "outbox", topic).await.unwrap();
    let names: Vec<String> = (1..=TOPICS).map(|n| format!("{}-{n}", site.topic())).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let records = read_all(&site.bootstrap, &names).await.unwrap();
    assert_eq!(records.len(), 3 * TOPICS);
    assert_correct(&checker::check(&log, &records));
}
