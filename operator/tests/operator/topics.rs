//! Topics on a real Kafka: made, grown, configured, and otherwise left alone.

use std::collections::BTreeSet;
use std::time::Duration;

use outbox_operator::resource::Topic;
use outbox_operator::topics::{Cluster, Observed, Plan, Step, plan};
use rdkafka::error::RDKafkaErrorCode;
use serde_json::{Value, json};
use testbed::kafka::{Kafka, KafkaOptions, alter_topic, grow_topic};
use testbed::{shared, unique, wait};

use crate::stage::Stage;

const SOON: Duration = Duration::from_secs(60);

fn cluster(bootstrap: &str) -> Cluster {
    let sink = json!({"bootstrapServers": bootstrap, "tls": {"mode": "disable"}});
    Cluster::new(&serde_json::from_value(sink).unwrap()).unwrap()
}

fn topic(name: &str, partitions: i32, config: &Value) -> Topic {
    let declared = json!({"name": name, "partitions": partitions, "replicationFactor": 1, "config": config});
    serde_json::from_value(declared).unwrap()
}

/// Waits until a topic is seen, whichever broker and cache is asked.
async fn seen(cluster: &Cluster, name: &str, is: impl Fn(&Observed) -> bool) -> Observed {
    wait::until(format!("topic {name} as it should be"), SOON, async || {
        let mut topics = cluster.observe(&[name.to_owned()]).await.map_err(|error| error.to_string())?;
        let found = topics.remove(name);
        found.clone().filter(|topic| is(topic)).ok_or_else(|| format!("{found:?}"))
    })
    .await
    .unwrap()
}

async fn carry_out(cluster: &Cluster, topic: &Topic, owned: &[&str], observed: Option<&Observed>) -> Plan {
    let owned: BTreeSet<String> = owned.iter().map(|key| (*key).to_owned()).collect();
    let plan = plan(topic, &owned, observed);
    for step in &plan.steps {
        cluster.apply_step(&topic.name, step).await.unwrap();
    }
    plan
}

#[tokio::test]
async fn a_topic_becomes_what_is_declared_and_what_others_set_stays() {
    let bootstrap = shared().await.unwrap().kafka_bootstrap().to_owned();
    let (cluster, name) = (cluster(&bootstrap), unique("topics"));
    assert_eq!(cluster.observe(std::slice::from_ref(&name)).await.unwrap().len(), 0);
    assert!(cluster.topics(std::slice::from_ref(&name)).await.unwrap().is_empty());

    let declared = topic(&name, 2, &json!({"retention.ms": "60000", "segment.ms": "30000"}));
    carry_out(&cluster, &declared, &[], None).await;
    // Once more, as by one who may not see it.
    let again = plan(&declared, &BTreeSet::new(), None);
    let refused = cluster.apply_step(&name, &again.steps[0]).await.unwrap_err();
    assert_eq!(refused.code, Some(RDKafkaErrorCode::TopicAlreadyExists), "{refused}");
    let made = seen(&cluster, &name, |topic| topic.partitions == 2).await;
    assert_eq!(made.overrides["message.timestamp.type"], "LogAppendTime");
    assert_eq!(carry_out(&cluster, &declared, &[], Some(&made)).await, Plan::default());

    // A key that the operator does not own, and one that it owns, both changed by another client.
    let foreign = [("max.message.bytes", "2000000"), ("retention.ms", "1"), ("segment.ms", "30000")];
    alter_topic(&bootstrap, &name, &foreign).await.unwrap();
    let drifted = seen(&cluster, &name, |topic| topic.overrides["retention.ms"] == "1").await;
    let topics = cluster.topics(std::slice::from_ref(&name)).await.unwrap();
    assert_eq!(topics[&name].id.as_ref().unwrap().len(), 22);
    // At the moment between the look and what is done about it.
    let at_last = [&foreign[..], &[("flush.ms", "9000")]].concat();
    alter_topic(&bootstrap, &name, &at_last).await.unwrap();
    seen(&cluster, &name, |topic| topic.overrides.contains_key("flush.ms")).await;
    let declared = topic(&name, 4, &json!({"retention.ms": "60000"}));
    let plan = carry_out(&cluster, &declared, &["retention.ms", "segment.ms"], Some(&drifted)).await;
    assert!(matches!(plan.steps[..], [Step::Grow { partitions: 4 }, Step::Configure { .. }]), "{plan:?}");
    let repaired = seen(&cluster, &name, |topic| {
        topic.partitions == 4 && topic.overrides.get("retention.ms").is_some_and(|value| value == "60000")
    })
    .await;
    assert_eq!(repaired.overrides["max.message.bytes"], "2000000");
    assert_eq!(repaired.overrides["flush.ms"], "9000");
    assert!(!repaired.overrides.contains_key("segment.ms"), "given back to the broker");
    assert_eq!(carry_out(&cluster, &declared, &["retention.ms"], Some(&repaired)).await, Plan::default());

    cluster.delete(&name).await.unwrap();
    wait::until("the end of the topic", SOON, async || {
        let left = cluster.observe(std::slice::from_ref(&name)).await.map_err(|error| error.to_string())?;
        if left.is_empty() { Ok(()) } else { Err(format!("{left:?}")) }
    })
    .await
    .unwrap();
    cluster.delete(&name).await.unwrap();
}

/// Kafka answers with what it has parsed: that is no drift.
#[tokio::test]
async fn values_are_compared_as_kafka_means_them() {
    let (cluster, name) = (cluster(shared().await.unwrap().kafka_bootstrap()), unique("values"));
    let config = json!({
        "cleanup.policy": "delete, compact", "min.cleanable.dirty.ratio": "0.50", "retention.ms": " +0600000 ",
        "unclean.leader.election.enable": "True",
    });
    let declared = topic(&name, 1, &config);
    carry_out(&cluster, &declared, &[], None).await;
    let made = seen(&cluster, &name, |topic| topic.overrides.len() == 5).await;
    let is_another = |(key, value): (&String, &String)| made.overrides[key] != *value;
    assert!(declared.config.iter().any(is_another), "{made:?}");
    assert_eq!(carry_out(&cluster, &declared, &[], Some(&made)).await, Plan::default());
    // What means something else is set.
    let declared = topic(&name, 1, &json!({"cleanup.policy": "delete", "min.cleanable.dirty.ratio": "0.51"}));
    carry_out(&cluster, &declared, &[], Some(&made)).await;
    let is_set = |topic: &Observed| topic.overrides["min.cleanable.dirty.ratio"] == "0.51";
    assert_eq!(seen(&cluster, &name, is_set).await.overrides["cleanup.policy"], "delete");
    cluster.delete(&name).await.unwrap();
}

/// As while replicas are moved: the new ones are not in sync yet.
#[tokio::test]
async fn replicas_that_are_not_in_sync_are_not_counted() {
    let mut kafka = Kafka::start(KafkaOptions { brokers: 3, ..KafkaOptions::default() }).await.unwrap();
    let (name, cluster) = (unique("moved"), cluster(&kafka.bootstrap()));
    kafka.create_topic(&name, 1, 3, &[]).await.unwrap();
    seen(&cluster, &name, |topic| topic.replication_factor == Some(3)).await;
    kafka.brokers()[2].stop().await.unwrap();
    seen(&cluster, &name, |topic| topic.replication_factor.is_none()).await;
    kafka.start_again().await.unwrap();
    seen(&cluster, &name, |topic| topic.replication_factor == Some(3)).await;
}

#[tokio::test]
async fn what_kafka_refuses_is_said_with_its_code() {
    let cluster = cluster(shared().await.unwrap().kafka_bootstrap());
    let name = unique("refused");
    let step = |replication_factor, config: &Value| Step::Create {
        partitions: Some(1),
        replication_factor: Some(replication_factor),
        config: serde_json::from_value(config.clone()).unwrap(),
    };
    let error = cluster.apply_step(&name, &step(3, &json!({}))).await.unwrap_err();
    assert_eq!(error.code, Some(RDKafkaErrorCode::InvalidReplicationFactor));
    assert!(error.to_string().starts_with(&format!("Kafka: creating topic {name}: ")), "{error}");
    let error = cluster.apply_step(&name, &step(1, &json!({"no.such.key": "1"}))).await.unwrap_err();
    assert_eq!(error.code, Some(RDKafkaErrorCode::InvalidConfig));
}

#[tokio::test]
async fn a_kafka_that_is_not_there_is_said_soon() {
    let error = cluster("127.0.0.1:1").observe(&["t".to_owned()]).await.unwrap_err();
    assert!(error.to_string().starts_with("Kafka: looking at topics: "), "{error}");
}

/// What the resource leaves out is the broker's default when the topic is created, and another number later is no deviation.
#[tokio::test]
async fn partitions_and_replicas_that_are_left_out_are_the_brokers() {
    let settings = vec![("num.partitions".to_owned(), "4".to_owned())];
    let kafka = Kafka::start(KafkaOptions { settings, ..KafkaOptions::default() }).await.unwrap();
    let servers = shared().await.unwrap();
    let mut stage = Stage::on("defaults", &servers.postgres_url("postgres"), &kafka.bootstrap()).await;
    stage.spec["topics"] = json!([{"name": stage.topic}]);
    stage.make_secret().await;
    stage.apply().await;
    let status = [
        "get",
        "obr",
        "shop",
        "-o",
        "jsonpath={.status.topics[*].partitions} {.status.topics[*].replicationFactor}",
    ];
    let until = async |expected: &str| {
        wait::until(format!("{expected} in the status"), SOON, async || {
            let seen = stage.namespace.kubectl(&status).await.unwrap();
            if seen == expected { Ok(()) } else { Err(format!("{seen}\n{}", stage.operator.log_tail())) }
        })
        .await
        .unwrap();
    };
    until("4 1").await;
    grow_topic(&stage.bootstrap, &stage.topic, 6).await.unwrap();
    until("6 1").await;
    stage.until(&[("TopicsReady", "True", "AsDeclared")]).await;
}
