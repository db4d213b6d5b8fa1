//! `replay --topic`: events go to a topic that the routing does not give, and the stream does not notice.

use testbed::kafka::create_topic;
use testbed::records::{Record, read_all};
use testbed::unique;

use super::{replay, replayed};
use crate::audit::{audit, differences, until_all_confirmed};
use crate::fixture::{Answer, PARTITIONS, Relay, Site};

const ALL: [&str; 2] = ["--since", "2020-01-01T00:00:00Z"];

async fn replay_to(site: &Site, relay: &Relay, topic: &str) -> Answer {
    replay(site, Some(relay.admin), &[ALL[0], ALL[1], "--topic", topic]).await
}

async fn records_of(site: &Site, topic: &str) -> Vec<Record> {
    read_all(&site.bootstrap, &[topic]).await.unwrap()
}

/// The stream delivers `count` records in total, and finds nothing wrong.
async fn assert_stream_continues(site: &Site, relay: &Relay, count: usize) {
    site.insert([("a", 0)]).await;
    site.until_records(count).await;
    until_all_confirmed(site).await;
    relay.until_ready().await;
    let (found, _) = audit(site, &[]).await;
    assert_eq!(differences(&found), [0; 5], "{found}");
}

#[tokio::test]
async fn events_go_to_another_topic_and_to_no_other() {
    let site = Site::shared().await;
    let relay = site.relay().await;
    let topic = unique("consumer");
    create_topic(&site.bootstrap, &topic, PARTITIONS + 2, 1, &[]).await.unwrap();
    site.insert([("a", 1), ("b", 2), ("a", 3)]).await;
    let originals = site.until_records(3).await;
    until_all_confirmed(&site).await;

    let answer = replay_to(&site, &relay, &topic).await;
    assert_eq!(answer.code, Some(0), "{answer:?}");
    assert!(answer.out.ends_with("3 sent, 0 refused\n"), "{answer:?}");
    assert!(answer.out.contains(&format!(" to {topic}/")), "{answer:?}");
    let records = records_of(&site, &topic).await;
    let sent = replayed(&records);
    assert_eq!((records.len(), sent.len()), (3, 3));
    for again in &sent {
        let is_same = |record: &&Record| record.header("ce_id") == again.header("ce_id");
        let original = originals.iter().find(is_same).unwrap();
        assert_eq!((&again.key, &again.value), (&original.key, &original.value));
        for name in ["ce_time", "ce_type", "ce_source", "content-type"] {
            assert_eq!(again.header(name), original.header(name), "{name}");
        }
        assert_eq!(again.header("ce_sequence"), None);
    }
    let of_a: Vec<&&Record> = sent.iter().filter(|record| record.key.as_deref() == Some(b"a")).collect();
    assert_eq!(of_a.len(), 2);
    assert_eq!(of_a[0].partition, of_a[1].partition, "the partition is that of the key");

    assert_stream_continues(&site, &relay, 4).await;
    let known = format!("SELECT to_jsonb(c)::text LIKE '%{topic}%' FROM outbox_checkpoint c");
    assert_eq!(site.value(&known).await.as_deref(), Some("false"), "the checkpoint does not have the topic");
}

#[tokio::test]
async fn a_topic_that_does_not_exist_or_is_the_relays_gets_nothing() {
    let site = Site::shared().await;
    let relay = site.relay().await;
    site.insert([("a", 1)]).await;
    site.until_records(1).await;
    until_all_confirmed(&site).await;
    let absent = unique("absent");
    for (topic, expected) in [
        (&absent, format!("topic {absent} does not exist")),
        (&site.topic(), format!("the relay itself delivers to topic {}", site.topic())),
    ] {
        let answer = replay_to(&site, &relay, topic).await;
        assert_eq!(answer.code, Some(69), "{answer:?}");
        assert!(answer.err.contains(&expected), "{answer:?}");
        assert!(answer.out.ends_with("0 sent, 0 refused\n"), "{answer:?}");
    }
    assert_eq!(site.records().await.len(), 1);
}

/// A topic that refuses a record refuses it to the replay, and neither to the stream nor to the events behind it.
#[tokio::test]
async fn a_record_that_the_other_topic_refuses_disturbs_nothing() {
    let site = Site::shared().await;
    let relay = site.relay().await;
    let topic = unique("narrow");
    create_topic(&site.bootstrap, &topic, 1, 1, &[("max.message.bytes", "2000")]).await.unwrap();
    site.execute(&format!(
        "INSERT INTO outbox (id, aggregatetype, aggregateid, type, payload)
         SELECT gen_random_uuid(), '{}', 'a', 'n.v1', to_jsonb(string_agg(md5(random()::text), ''))
         FROM generate_series(1, 500)",
        site.aggregate
    ))
    .await;
    site.insert([("a", 2)]).await;
    site.until_records(2).await;
    until_all_confirmed(&site).await;
    let answer = replay_to(&site, &relay, &topic).await;
    assert_eq!(answer.code, Some(69), "{answer:?}");
    assert!(answer.out.ends_with("1 sent, 1 refused\n") && answer.out.contains("refused  "), "{answer:?}");
    let records = records_of(&site, &topic).await;
    assert_eq!(records.len(), 1);
    assert_eq!(records[0].value.as_deref(), Some(&b"{\"n\": 2}"[..]));
    assert_stream_continues(&site, &relay, 3).await;
}
