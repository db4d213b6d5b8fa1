//! The versions of the resource: the way from a cluster that knows v1alpha1 alone, as docs/UPGRADE.md describes it.

use serde_json::{Value, json};
use testbed::guard::Folder;
use testbed::kubernetes::{Cluster, Kubernetes, Namespace};
use testbed::wait;

use crate::cluster::{DEFINITION, define, least, relay};
use crate::stage::{SOON, Stage};

const PAGE: &str = include_str!("../../../docs/UPGRADE.md");
const CRD: &str = "outboxrelays.outbox.dev";

/// The definition before v1beta1.
fn with_v1alpha1_alone() -> String {
    let mut definition: Value = serde_saphyr::from_str(DEFINITION).unwrap();
    let versions = definition["spec"]["versions"].as_array_mut().unwrap();
    versions.retain(|version| version["name"] == "v1alpha1");
    assert_eq!(versions.len(), 1);
    versions[0]["storage"] = json!(true);
    definition.to_string()
}

/// The resource in a version, without what the API server notes about its writers.
async fn read(namespace: &Namespace, version: &str) -> Value {
    let kind = format!("outboxrelays.{version}.outbox.dev");
    let stored = namespace.kubectl(&["get", &kind, "shop", "-o", "json"]).await.unwrap();
    let mut stored: Value = serde_json::from_str(&stored).unwrap();
    assert_eq!(stored["apiVersion"], format!("outbox.dev/{version}"));
    stored.as_object_mut().unwrap().remove("apiVersion");
    stored
}

async fn stored_versions(cluster: &Cluster) -> String {
    cluster.kubectl(&["get", "crd", CRD, "-o", "jsonpath={.status.storedVersions}"]).await.unwrap()
}

/// Runs a command of the page.
async fn as_on_the_page(cluster: &Cluster, command: &str, input: &str) -> String {
    assert!(PAGE.contains(command), "the page does not say {command}");
    let words: Vec<&str> = command.split(' ').skip(1).map(|word| word.trim_matches('\'')).collect();
    cluster.kubectl_with(&words, input).await.unwrap()
}

#[tokio::test]
async fn a_cluster_with_v1alpha1_alone_is_upgraded_and_keeps_its_resources() {
    let cluster = Kubernetes::start().await.unwrap();
    cluster.apply(&with_v1alpha1_alone()).await.unwrap();
    cluster.until_established(&[CRD]).await.unwrap();
    let namespace = cluster.namespace("versions").await.unwrap();
    let mut older = relay(&least());
    older["apiVersion"] = json!("outbox.dev/v1alpha1");
    older["spec"]["suspend"] = json!(true);
    namespace.kubectl_with(&["create", "-f", "-"], &older.to_string()).await.unwrap();
    let before = read(&namespace, "v1alpha1").await;

    define(&cluster).await;
    assert_eq!(read(&namespace, "v1beta1").await, before);
    assert_eq!(stored_versions(&cluster).await, r#"["v1alpha1","v1beta1"]"#);

    // The older definition would lose what is stored.
    let refusal = cluster.apply(&with_v1alpha1_alone()).await.unwrap_err().to_string();
    assert!(refusal.contains("status.storedVersions"), "{refusal}");

    let resources = as_on_the_page(&cluster, "kubectl get obr -A -o json", "").await;
    as_on_the_page(&cluster, "kubectl replace -f -", &resources).await;
    let patch = r#"kubectl patch crd outboxrelays.outbox.dev --subresource=status --type=merge -p '{"status":{"storedVersions":["v1beta1"]}}'"#;
    as_on_the_page(&cluster, patch, "").await;
    assert_eq!(stored_versions(&cluster).await, r#"["v1beta1"]"#);
    assert_eq!(read(&namespace, "v1alpha1").await["spec"], before["spec"]);
}

#[tokio::test]
async fn a_resource_of_the_older_version_is_operated_and_read_in_both() {
    let stage = Stage::shared("versions").await;
    stage.make_secret().await;
    let mut older = relay(&stage.spec);
    older["apiVersion"] = json!("outbox.dev/v1alpha1");
    // The warning is on stderr, the object is made.
    stage.namespace.kubectl_with(&["create", "-f", "-"], &older.to_string()).await.unwrap();
    let folder = Folder::new("relay").unwrap();
    let _relay = stage.until_streaming(&folder).await;
    stage.insert(stage.database.name()).await;
    stage.until_records(1).await;
    let (alpha, beta) = (read(&stage.namespace, "v1alpha1").await, read(&stage.namespace, "v1beta1").await);
    assert_eq!(alpha["spec"], beta["spec"]);
    assert_eq!(alpha["metadata"]["generation"], beta["metadata"]["generation"]);
    assert_eq!(
        alpha["status"]["conditions"].as_array().map(Vec::len),
        beta["status"]["conditions"].as_array().map(Vec::len)
    );

    // Written in the older version, carried out, and seen in the newer one.
    let patch = json!([{"op": "replace", "path": "/spec/topics/0/partitions", "value": 4}]).to_string();
    let kind = "outboxrelays.v1alpha1.outbox.dev";
    stage.namespace.kubectl(&["patch", kind, "shop", "--type=json", "-p", &patch]).await.unwrap();
    wait::until("four partitions", SOON, async || {
        let observed = stage.observed().await;
        match &observed {
            Some(topic) if topic.partitions == 4 => Ok(()),
            _ => Err(format!("{observed:?}")),
        }
    })
    .await
    .unwrap();
    assert_eq!(read(&stage.namespace, "v1beta1").await["spec"]["topics"][0]["partitions"], 4);
}
