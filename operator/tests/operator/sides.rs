//! What is checked, or deleted, of one side needs nothing of the other.

use serde_json::json;
use testbed::kafka::{Kafka, KafkaOptions, Login, Security};
use testbed::{shared, wait};

use crate::lifecycle::until_gone;
use crate::ownership::{has_slot, make_slot, register};
use crate::stage::{SOON, Stage, operator};

/// A resource with Kafka credentials, whose deletion takes slot, publication and topic with it, as far as its relay would have made them.
async fn doomed(purpose: &str, kafka: &Kafka) -> Stage {
    let servers = shared().await.unwrap();
    let mut stage = Stage::on(purpose, &servers.postgres_url("postgres"), &kafka.bootstrap()).await;
    stage.make_secret().await;
    stage.secret_named("shipper", "shipper", "shipper-secret").await;
    let sink = &mut stage.spec["sink"]["kafka"];
    sink["bootstrapServers"] = json!(kafka.secure_bootstrap());
    sink["sasl"] = json!({"mechanism": "SCRAM-SHA-512", "credentialsSecretRef": {"name": "shipper"}});
    stage.spec["topics"][0]["deletionPolicy"] = json!("Delete");
    stage.spec["source"]["postgres"]["publication"]["deletionPolicy"] = json!("Delete");
    stage.apply().await;
    stage.until(&[("TopicsReady", "True", "AsDeclared"), ("PublicationReady", "True", "Present")]).await;
    let slot = stage.database.name().to_owned();
    stage.database.execute(&make_slot(&slot)).await.unwrap();
    register(&stage, &slot).await;
    stage
}

async fn kafka() -> Kafka {
    let login = Login { user: "shipper".to_owned(), password: "shipper-secret".to_owned() };
    let security = Security { logins: vec![login], ..Security::default() };
    Kafka::start(KafkaOptions { security: Some(security), ..KafkaOptions::default() }).await.unwrap()
}

/// Deletes the resource and a Secret of it while no operator runs: the next one has never read it.
async fn delete_without(stage: &mut Stage, secret: &str) {
    stage.operator.kill().await.unwrap();
    stage.namespace.kubectl(&["delete", "secret", secret]).await.unwrap();
    stage.namespace.kubectl(&["delete", "obr", "shop", "--wait=false"]).await.unwrap();
    let launch = operator(stage.namespace.name(), stage.namespace.cluster().kubeconfig());
    stage.operator = launch.start().unwrap();
}

/// Deletion waits, and says for which Secret.
async fn until_waits_for(stage: &Stage, secret: &str) {
    let said = ["get", "obr", "shop", "-o", "jsonpath={.status.conditions[?(@.type==\"Ready\")].message}"];
    wait::until(format!("deletion to wait for {secret}"), SOON, async || {
        let said = stage.namespace.kubectl(&said).await.unwrap();
        if said.contains(&format!("Secret {secret} does not exist")) { Ok(()) } else { Err(said) }
    })
    .await
    .unwrap();
}

async fn publications(stage: &Stage) -> Option<String> {
    stage.value("SELECT count(*) FROM pg_publication").await
}

/// Nor what has no meaning any more elsewhere in the specification.
#[tokio::test]
async fn slot_and_publication_go_without_the_secret_of_kafka() {
    let kafka = kafka().await;
    let mut stage = doomed("side-db", &kafka).await;
    stage.spec["routing"] = json!({"regex": "("});
    stage.spec["relay"] = json!({"podTemplate": {"spec": {"contaners": [{"name": "relay"}]}}});
    stage.apply().await;
    stage.until(&[("ReferencesResolved", "False", "SpecificationInvalid")]).await;
    delete_without(&mut stage, "shipper").await;
    until_waits_for(&stage, "shipper").await;
    assert!(!has_slot(&stage, stage.database.name()).await, "{}", stage.operator.log_tail());
    assert_eq!(publications(&stage).await.as_deref(), Some("0"));
    stage.namespace.kubectl(&["annotate", "obr", "shop", "outbox.dev/force-delete=true"]).await.unwrap();
    until_gone(&stage).await;
    assert!(stage.has_topic(&stage.topic).await);
}

/// And the slot when the Secret is there again.
#[tokio::test]
async fn topics_go_without_the_secret_of_the_database() {
    let kafka = kafka().await;
    let mut stage = doomed("side-kafka", &kafka).await;
    delete_without(&mut stage, "credentials").await;
    until_waits_for(&stage, "credentials").await;
    assert!(!stage.has_topic(&stage.topic).await, "{}", stage.operator.log_tail());
    assert!(has_slot(&stage, stage.database.name()).await);
    stage.make_secret().await;
    until_gone(&stage).await;
    assert!(!has_slot(&stage, stage.database.name()).await);
    assert_eq!(publications(&stage).await.as_deref(), Some("0"));
}

/// A Secret that is missing, on one side and then on the other.
#[tokio::test]
async fn each_side_is_checked_without_the_secret_of_the_other() {
    let mut stage = Stage::shared("sides").await;
    stage.apply().await;
    let unusable = ("ReferencesResolved", "False", "SecretUnusable");
    let kafka = [("KafkaReachable", "True", "Connected"), ("TopicsReady", "True", "AsDeclared")];
    stage.until(&[unusable, kafka[0], kafka[1], ("DatabaseReachable", "Unknown", "NotReached")]).await;
    stage.make_secret().await;
    stage.spec["sink"]["kafka"]["sasl"] =
        json!({"mechanism": "SCRAM-SHA-512", "credentialsSecretRef": {"name": "shipper"}});
    stage.apply().await;
    let database = [("DatabaseReachable", "True", "Connected"), ("PublicationReady", "True", "Present")];
    stage.until(&[unusable, database[0], database[1], ("KafkaReachable", "Unknown", "NotReached")]).await;
}
