//! Manual changes are reverted; what is no longer declared is deleted.

use serde_json::{Value, json};
use testbed::kafka::{alter_topic, create_topic};
use testbed::wait;

use crate::stage::{SOON, Stage, operator};

/// One that another client recreates looks like the one before.
#[tokio::test]
async fn a_topic_that_is_another_is_told_of() {
    let mut stage = Stage::shared("replaced").await;
    stage.make_secret().await;
    stage.apply().await;
    let id = ["get", "obr", "shop", "-o", "jsonpath={.status.topics[0].id}"];
    let until_other = async |stage: &Stage, before: &str| {
        wait::until(format!("another id than {before:?}"), SOON, async || {
            let found = stage.namespace.kubectl(&id).await.unwrap();
            if found.len() == 22 && found != before { Ok(found) } else { Err(found) }
        })
        .await
        .unwrap()
    };
    let first = until_other(&stage, "").await;
    stage.operator.kill().await.unwrap();
    stage.cluster().delete(&stage.topic).await.unwrap();
    wait::until("the same topic again", SOON, async || {
        create_topic(&stage.bootstrap, &stage.topic, 3, 1, &[]).await
    })
    .await
    .unwrap();
    stage.operator =
        operator(stage.namespace.name(), stage.namespace.cluster().kubeconfig()).start().unwrap();
    until_other(&stage, &first).await;
    wait::until("an Event", SOON, async || {
        let events = stage.namespace.kubectl(&["get", "events"]).await.unwrap();
        if events.contains("TopicReplaced") { Ok(()) } else { Err(events) }
    })
    .await
    .unwrap();
}

/// Everything that the operator applies of a resource.
const KINDS: &str = "serviceaccount,configmap,service,poddisruptionbudget,networkpolicy,deployment";

/// What is declared of the objects of the resource, without what the API server adds.
async fn objects(stage: &Stage) -> Vec<Value> {
    let select = "app.kubernetes.io/managed-by=outbox-operator,app.kubernetes.io/instance=shop";
    let listed = stage.namespace.kubectl(&["get", KINDS, "-l", select, "-o", "json"]).await.unwrap();
    let listed: Value = serde_json::from_str(&listed).unwrap();
    let declared = |object: &Value| {
        let metadata = &object["metadata"];
        json!([object["kind"], metadata["labels"], object["spec"], object["data"]])
    };
    listed["items"].as_array().unwrap().iter().map(declared).collect()
}

async fn until_objects(stage: &Stage, expected: &[Value]) {
    wait::until("the objects as they were", SOON, async || {
        let found = objects(stage).await;
        if found == expected { Ok(()) } else { Err(format!("{found:?}\n{}", stage.operator.log_tail())) }
    })
    .await
    .unwrap();
}

pub fn access() -> Value {
    json!({"egress": [{"to": [{"ipBlock": {"cidr": "10.0.0.0/8"}}]}],
           "ingressFrom": [{"namespaceSelector": {}}]})
}

#[tokio::test]
async fn every_object_is_put_right_when_it_is_changed_or_deleted() {
    let mut stage = Stage::shared("drift").await;
    stage.spec["relay"] = json!({"networkPolicy": access()});
    stage.make_secret().await;
    stage.apply().await;
    stage.until(&[("WorkloadAvailable", "False", "Unschedulable")]).await;
    let before = objects(&stage).await;
    assert_eq!(before.len(), 6, "{before:?}");
    for (kind, spoil) in [
        ("serviceaccount", json!({"metadata": {"labels": {"app.kubernetes.io/managed-by": null}}})),
        ("configmap", json!({"data": {"relay.yaml": "spoilt"}})),
        ("service", json!({"spec": {"publishNotReadyAddresses": false}})),
        ("poddisruptionbudget", json!({"spec": {"maxUnavailable": 0}})),
        ("networkpolicy", json!({"spec": {"policyTypes": ["Ingress"], "egress": null}})),
        ("deployment", json!({"spec": {"template": {"spec": {"terminationGracePeriodSeconds": 1}}}})),
    ] {
        let spoil = spoil.to_string();
        stage.namespace.kubectl(&["patch", kind, "shop-relay", "--type=merge", "-p", &spoil]).await.unwrap();
        until_objects(&stage, &before).await;
        stage.namespace.kubectl(&["delete", kind, "shop-relay"]).await.unwrap();
        until_objects(&stage, &before).await;
    }
}

#[tokio::test]
async fn a_network_policy_goes_when_it_is_not_asked_for_any_more() {
    let mut stage = Stage::shared("policy").await;
    stage.make_secret().await;
    stage.spec["relay"] = json!({"networkPolicy": access()});
    stage.apply().await;
    let policies = ["get", "networkpolicy", "-o", "jsonpath={.items[*].spec.policyTypes}"];
    let until = async |stage: &Stage, expected: &str| {
        wait::until(format!("policies {expected:?}"), SOON, async || {
            let found = stage.namespace.kubectl(&policies).await.unwrap();
            if found == expected { Ok(()) } else { Err(format!("{found}\n{}", stage.operator.log_tail())) }
        })
        .await
        .unwrap();
    };
    until(&stage, r#"["Ingress","Egress"]"#).await;
    stage.spec["relay"] = json!({});
    stage.apply().await;
    until(&stage, "").await;
}

async fn until_retention(stage: &Stage, expected: &str) {
    wait::until(format!("retention.ms {expected}"), SOON, async || match stage.observed().await {
        Some(topic) if topic.overrides["retention.ms"] == expected => Ok(()),
        other => Err(format!("{other:?}\n{}", stage.operator.log_tail())),
    })
    .await
    .unwrap();
}

async fn events(stage: &Stage, reason: &str) -> usize {
    let select = format!("--field-selector=reason={reason}");
    stage.namespace.kubectl(&["get", "events", &select, "-o", "name"]).await.unwrap().lines().count()
}

/// As Strimzi's Topic Operator does that has the topic, too.
#[tokio::test]
async fn a_setting_that_something_else_sets_back_each_time_is_said_once() {
    let mut stage = Stage::shared("contest").await;
    stage.spec["topics"][0]["config"] = json!({"retention.ms": "600000"});
    stage.make_secret().await;
    stage.apply().await;
    stage.until(&[("TopicsReady", "True", "AsDeclared")]).await;
    for _ in 0..3 {
        alter_topic(&stage.bootstrap, &stage.topic, &[("retention.ms", "1")]).await.unwrap();
        until_retention(&stage, "600000").await;
    }
    stage.until(&[("TopicsReady", "False", "TopicContested"), ("Ready", "False", "TopicContested")]).await;
    // Made, and set twice; the third time is what the condition says.
    assert_eq!((events(&stage, "TopicChanged").await, events(&stage, "TopicContested").await), (3, 1));
    alter_topic(&stage.bootstrap, &stage.topic, &[("retention.ms", "1")]).await.unwrap();
    until_retention(&stage, "600000").await;
    stage.until(&[("TopicsReady", "False", "TopicContested")]).await;
    assert_eq!((events(&stage, "TopicChanged").await, events(&stage, "TopicContested").await), (3, 1));
    // Another value is another declaration.
    stage.spec["topics"][0]["config"] = json!({"retention.ms": "700000"});
    stage.apply().await;
    stage.until(&[("TopicsReady", "True", "AsDeclared")]).await;
    until_retention(&stage, "700000").await;
}

#[tokio::test]
async fn topics_are_put_right_and_suspension_stops_the_pods_only() {
    let mut stage = Stage::shared("topics").await;
    stage.spec["topics"][0]["config"] = json!({"retention.ms": "600000"});
    stage.make_secret().await;
    stage.apply().await;
    stage
        .until(&[("TopicsReady", "True", "AsDeclared"), ("WorkloadAvailable", "False", "Unschedulable")])
        .await;
    alter_topic(&stage.bootstrap, &stage.topic, &[("retention.ms", "1")]).await.unwrap();
    wait::until("the topic as it was", SOON, async || match stage.observed().await {
        Some(topic) if topic.overrides["retention.ms"] == "600000" => Ok(()),
        other => Err(format!("{other:?}\n{}", stage.operator.log_tail())),
    })
    .await
    .unwrap();
    // Known by a mark that the new one does not have.
    let marked = [("retention.ms", "600000"), ("max.message.bytes", "2000000")];
    alter_topic(&stage.bootstrap, &stage.topic, &marked).await.unwrap();
    stage.cluster().delete(&stage.topic).await.unwrap();
    wait::until("another topic of that name", SOON, async || match stage.observed().await {
        Some(topic) if !topic.overrides.contains_key("max.message.bytes") => Ok(()),
        other => Err(format!("{other:?}")),
    })
    .await
    .unwrap();
    stage.spec["suspend"] = json!(true);
    stage.apply().await;
    stage
        .until(&[
            ("Suspended", "True", "Suspended"),
            ("Ready", "True", "Suspended"),
            ("TopicsReady", "True", "AsDeclared"),
        ])
        .await;
    let replicas = ["get", "deployment", "shop-relay", "-o", "jsonpath={.spec.replicas}"];
    wait::until("no pods", SOON, async || {
        let replicas = stage.namespace.kubectl(&replicas).await.unwrap();
        if replicas == "0" { Ok(()) } else { Err(replicas) }
    })
    .await
    .unwrap();
}
