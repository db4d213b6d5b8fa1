//! From a resource to events in Kafka.

use std::collections::BTreeSet;

use testbed::guard::Folder;

use crate::stage::{SOON, Stage};

#[tokio::test]
async fn from_a_resource_to_events_in_kafka() {
    let mut stage = Stage::shared("happy").await;
    stage.apply().await;
    // What needs the Secret waits for it, and the condition names it. Kafka asks for no credentials here.
    stage
        .until(&[
            ("ReferencesResolved", "False", "SecretUnusable"),
            ("Ready", "False", "SecretUnusable"),
            ("DatabaseReachable", "Unknown", "NotReached"),
            ("SlotReady", "Unknown", "NotReached"),
            ("TopicsReady", "True", "AsDeclared"),
        ])
        .await;
    stage.make_secret().await;
    stage
        .until(&[
            ("ReferencesResolved", "True", "Resolved"),
            ("DatabaseReachable", "True", "Connected"),
            ("KafkaReachable", "True", "Connected"),
            ("PublicationReady", "True", "Present"),
            ("TopicsReady", "True", "AsDeclared"),
            ("SlotReady", "False", "WaitingForRelay"),
            ("WorkloadAvailable", "False", "Unschedulable"),
            ("Streaming", "False", "NoPod"),
            ("Suspended", "False", "Running"),
        ])
        .await;
    let folder = Folder::new("relay").unwrap();
    let _relay = stage.start_relay(&folder).await;
    stage.say_that_pods_are_ready().await;
    stage.until(&[("SlotReady", "True", "Present"), ("Ready", "True", "Streaming")]).await;
    let of_resource = "--field-selector=type=Warning,involvedObject.kind=OutboxRelay";
    let warnings = ["get", "events", of_resource, "-o", "jsonpath={.items[*].reason}"];
    let warnings = stage.namespace.kubectl(&warnings).await.unwrap();
    let warnings: BTreeSet<&str> = warnings.split_whitespace().collect();
    let expected = BTreeSet::from(["SecretUnusable", "Unschedulable"]);
    assert_eq!(warnings, expected, "what needs no action is no warning");
    stage.insert(stage.database.name()).await;
    stage.until_records(1).await;
    stage.operator.terminate().unwrap();
    assert_eq!(stage.operator.wait(SOON).await.unwrap().code(), Some(0), "{}", stage.operator.log_tail());
}
