//! Whose it is: nothing is changed or deleted because of its name alone.

use serde_json::{Value, json};
use testbed::guard::Folder;
use testbed::kafka::{Kafka, KafkaOptions, create_topic};
use testbed::{Database, wait};

use crate::cluster::apply;
use crate::drift::access;
use crate::lifecycle::until_gone;
use crate::stage::{SOON, Stage, operator};

async fn delete(stage: &Stage) {
    stage.namespace.kubectl(&["delete", "obr", "shop", "--wait=false"]).await.unwrap();
    until_gone(stage).await;
}

pub async fn has_slot(stage: &Stage, slot: &str) -> bool {
    let slots = format!("SELECT count(*) FROM pg_replication_slots WHERE slot_name = '{slot}'");
    stage.value(&slots).await.as_deref() == Some("1")
}

/// As if the resource's relay had had the slot.
pub async fn register(stage: &Stage, slot: &str) {
    let name = format!("{}/shop", stage.namespace.name());
    let register = format!(
        "INSERT INTO outbox_checkpoint (relay, slot, system_identifier, timeline)
         SELECT '{name}', '{slot}', system_identifier, 1 FROM pg_control_system()"
    );
    stage.database.execute(&register).await.unwrap();
}

pub fn make_slot(slot: &str) -> String {
    format!("SELECT pg_create_logical_replication_slot('{slot}', 'pgoutput')")
}

/// Applies the resource where its relay has created the slot.
async fn apply_with_slot(stage: &Stage, slot: &str) {
    stage.database.execute(&make_slot(slot)).await.unwrap();
    register(stage, slot).await;
    stage.make_secret().await;
    stage.apply().await;
    stage.until(&[("SlotReady", "True", "Present")]).await;
}

/// Slots are the server's: a name that this resource's relay had once may be another database's by now.
#[tokio::test]
async fn a_slot_of_another_database_is_not_used_and_not_dropped() {
    let stage = Stage::shared("elsewhere").await;
    let slot = stage.database.name().to_owned();
    let server = testbed::shared().await.unwrap().postgres_url("postgres");
    let other = Database::on(&server, "other").await.unwrap();
    other.execute(&make_slot(&slot)).await.unwrap();
    register(&stage, &slot).await;
    stage.make_secret().await;
    stage.apply().await;
    stage.until(&[("SlotReady", "False", "SlotUnsuitable")]).await;
    delete(&stage).await;
    assert!(has_slot(&stage, &slot).await, "another database's relay needs it");
    assert_eq!(stage.value("SELECT count(*) FROM outbox_checkpoint").await.as_deref(), Some("0"));
    other.execute(&format!("SELECT pg_drop_replication_slot('{slot}')")).await.unwrap();
}

#[tokio::test]
async fn a_slot_that_another_client_creates_is_not_dropped() {
    let mut stage = Stage::shared("never").await;
    let slot = stage.database.name().to_owned();
    stage.spec["source"]["postgres"]["slot"]["creationPolicy"] = json!("Never");
    apply_with_slot(&stage, &slot).await;
    delete(&stage).await;
    assert!(has_slot(&stage, &slot).await);
    stage.database.execute(&format!("SELECT pg_drop_replication_slot('{slot}')")).await.unwrap();
}

/// The same resource in two Kubernetes clusters, or declared again after it was deleted: the slot is of the one whose relay held it last.
#[tokio::test]
async fn a_slot_that_the_relay_of_another_resource_has_held_since_is_not_dropped() {
    let stage = Stage::shared("uid").await;
    let slot = stage.database.name().to_owned();
    apply_with_slot(&stage, &slot).await;
    // A relay that no resource declares has an empty owner.
    for owner in ["b7c1d1c0-another-resource", ""] {
        stage.database.execute(&format!("UPDATE outbox_checkpoint SET owner = '{owner}'")).await.unwrap();
        delete(&stage).await;
        assert!(has_slot(&stage, &slot).await, "the other relay needs it: {owner}");
        assert_eq!(stage.value("SELECT count(*) FROM outbox_checkpoint").await.as_deref(), Some("1"));
        stage.apply().await;
        stage.until(&[("SlotReady", "True", "Present")]).await;
    }
    let uid = ["get", "obr", "shop", "-o", "jsonpath={.metadata.uid}"];
    let uid = stage.namespace.kubectl(&uid).await.unwrap();
    stage.database.execute(&format!("UPDATE outbox_checkpoint SET owner = '{uid}'")).await.unwrap();
    delete(&stage).await;
    assert!(!has_slot(&stage, &slot).await, "its own");
}

/// The operator is newer than the table.
#[tokio::test]
async fn a_slot_is_dropped_where_the_checkpoint_has_no_owner_column() {
    let stage = Stage::shared("older").await;
    let slot = stage.database.name().to_owned();
    stage.database.execute("ALTER TABLE outbox_checkpoint DROP COLUMN owner").await.unwrap();
    apply_with_slot(&stage, &slot).await;
    delete(&stage).await;
    assert!(!has_slot(&stage, &slot).await);
}

/// Objects of the same names with another owner: none is changed, none is deleted with the resource, and the condition names
/// the first.
#[tokio::test]
async fn objects_of_another_owner_are_left_alone() {
    let mut stage = Stage::shared("taken").await;
    stage.spec["relay"] = json!({"networkPolicy": access()});
    stage.make_secret().await;
    let metadata = json!({"name": "shop-relay", "labels": {"mine": "yes"}});
    let pod = json!({"metadata": {"labels": {"app": "mine"}}, "spec": {"containers": [{"name": "c", "image": "c"}]}});
    let foreign: [(&str, &str, &str, Value); 6] = [
        ("networkpolicy", "networking.k8s.io/v1", "NetworkPolicy", json!({"podSelector": {}})),
        ("poddisruptionbudget", "policy/v1", "PodDisruptionBudget", json!({"maxUnavailable": 0})),
        ("service", "v1", "Service", json!({"ports": [{"port": 80}]})),
        (
            "deployment",
            "apps/v1",
            "Deployment",
            json!({"selector": {"matchLabels": {"app": "mine"}}, "template": pod}),
        ),
        ("configmap", "v1", "ConfigMap", Value::Null),
        ("serviceaccount", "v1", "ServiceAccount", Value::Null),
    ];
    for (_, version, kind, spec) in &foreign {
        let mut object = json!({"apiVersion": version, "kind": kind, "metadata": metadata});
        if !spec.is_null() {
            object["spec"] = spec.clone();
        }
        apply(&stage.namespace, &object).await.unwrap();
    }
    stage.apply().await;
    stage.until(&[("WorkloadAvailable", "False", "NameTaken")]).await;
    delete(&stage).await;
    // One after the other is taken out of the way: whichever is left is in it.
    for (name, _, kind, _) in &foreign {
        let mine =
            ["get", name, "shop-relay", "-o", "jsonpath={.metadata.labels.mine}{.metadata.ownerReferences}"];
        assert_eq!(stage.namespace.kubectl(&mine).await.unwrap(), "yes", "{kind}");
        stage.apply().await;
        stage.until(&[("WorkloadAvailable", "False", "NameTaken")]).await;
        delete(&stage).await;
        assert_eq!(stage.namespace.kubectl(&mine).await.unwrap(), "yes", "{kind}");
        stage.namespace.kubectl(&["delete", name, "shop-relay"]).await.unwrap();
    }
    stage.apply().await;
    stage.until(&[("WorkloadAvailable", "False", "Unschedulable")]).await;
}

/// A pod's address may be another relay's by now, which delivers, and says nothing of this one.
#[tokio::test]
async fn another_relay_does_not_vouch_for_this_one() {
    let stage = Stage::shared("vouch").await;
    let folder = Folder::new("relay").unwrap();
    let mut relay = stage.until_streaming(&folder).await;
    relay.kill().await.unwrap();
    stage.until(&[("Streaming", "Unknown", "RelayUnreachable")]).await;
    let file = folder.path().join("relay.yaml");
    let name = format!("{}/shop", stage.namespace.name());
    let another = std::fs::read_to_string(&file).unwrap().replace(&name, "elsewhere/baskets");
    let another = another.replace(stage.database.name(), &format!("{}_x", stage.database.name()));
    let another = another.replace(
        &format!("database: {}_x", stage.database.name()),
        &format!("database: {}", stage.database.name()),
    );
    std::fs::write(&file, another).unwrap();
    let _another = stage.start_relay_from(&file);
    wait::until("the operator to say who answers", SOON, async || {
        let said = "jsonpath={.status.conditions[?(@.type==\"Streaming\")].message}";
        let said = stage.namespace.kubectl(&["get", "obr", "shop", "-o", said]).await.unwrap();
        if said.contains("relay elsewhere/baskets answers there") { Ok(()) } else { Err(said) }
    })
    .await
    .unwrap();
    stage.until(&[("Streaming", "Unknown", "RelayUnreachable")]).await;
}

async fn setting(stage: &Stage, topic: &str) -> Option<String> {
    let mut topics = stage.cluster().observe(&[topic.to_owned()]).await.unwrap();
    topics.remove(topic)?.overrides.remove("retention.ms")
}

/// What is known of topics is known of those in one cluster: in another, topics of the same names belong to others.
#[tokio::test]
async fn what_was_made_in_one_kafka_says_nothing_of_another() {
    let other = Kafka::start(KafkaOptions::default()).await.unwrap();
    let mut stage = Stage::shared("moved").await;
    let gone = format!("{}.gone", stage.topic);
    let first = json!({"name": stage.topic, "partitions": 1, "replicationFactor": 1, "config": {"retention.ms": "600000"}});
    let second = json!({"name": gone, "partitions": 1, "replicationFactor": 1, "deletionPolicy": "Delete"});
    stage.spec["topics"] = json!([first, second]);
    stage.make_secret().await;
    stage.apply().await;
    stage.until(&[("TopicsReady", "True", "AsDeclared")]).await;
    for topic in [&stage.topic, &gone] {
        create_topic(&other.bootstrap(), topic, 1, 1, &[("retention.ms", "700000")]).await.unwrap();
    }
    let before = stage
        .namespace
        .kubectl(&["get", "obr", "shop", "-o", "jsonpath={.status.kafkaIdentity}"])
        .await
        .unwrap();
    stage.spec["sink"]["kafka"]["bootstrapServers"] = json!(other.bootstrap());
    stage.spec["topics"] = json!([{"name": stage.topic, "partitions": 1, "replicationFactor": 1}]);
    stage.apply().await;
    wait::until("the other cluster, and its topics looked at", SOON, async || {
        let seen = "jsonpath={.status.kafkaIdentity} {.status.topics[*].name} {.status.conditions[?(@.type==\"TopicsReady\")].reason}";
        let seen = stage.namespace.kubectl(&["get", "obr", "shop", "-o", seen]).await.unwrap();
        let expected = format!("{} AsDeclared", stage.topic);
        if !seen.starts_with(&before) && seen.ends_with(&expected) { Ok(()) } else { Err(seen) }
    })
    .await
    .unwrap();
    assert!(stage.has_topic(&gone).await, "in the cluster that is left");
    stage.bootstrap = other.bootstrap();
    for topic in [&stage.topic, &gone] {
        assert_eq!(setting(&stage, topic).await.as_deref(), Some("700000"), "{topic}");
    }
    let events = ["get", "events", "-o", "jsonpath={.items[*].reason}"];
    let events = stage.namespace.kubectl(&events).await.unwrap();
    assert!(events.contains("KafkaClusterChanged") && !events.contains("TopicReplaced"), "{events}");
}

/// The policy that is declared last counts, also where the operator did not see it while the topic was declared.
#[tokio::test]
async fn a_topic_is_not_deleted_by_a_policy_that_was_withdrawn() {
    let mut stage = Stage::shared("withdrawn").await;
    let kept = format!("{}.kept", stage.topic);
    let topic = |policy: &str| json!({"name": kept, "partitions": 1, "replicationFactor": 1, "deletionPolicy": policy});
    let first = stage.spec["topics"][0].clone();
    stage.spec["topics"] = json!([first, topic("Delete")]);
    stage.make_secret().await;
    stage.apply().await;
    stage.until(&[("TopicsReady", "True", "AsDeclared")]).await;
    stage.operator.kill().await.unwrap();
    stage.spec["topics"] = json!([first, topic("Retain")]);
    stage.apply().await;
    stage.spec["topics"] = json!([first]);
    stage.apply().await;
    let launch = operator(stage.namespace.name(), stage.namespace.cluster().kubeconfig());
    stage.operator = launch.start().unwrap();
    wait::until("the topic to have no owner", SOON, async || {
        let events = ["get", "events", "-o", "jsonpath={.items[*].reason}"];
        let events = stage.namespace.kubectl(&events).await.unwrap();
        if events.contains("TopicRetained") { Ok(()) } else { Err(events) }
    })
    .await
    .unwrap();
    stage.until(&[("TopicsReady", "True", "AsDeclared")]).await;
    assert!(stage.has_topic(&kept).await);
}
