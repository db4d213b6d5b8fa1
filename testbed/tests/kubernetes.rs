//! The control plane is a real one: it checks, it acts, it remembers, and it is gone afterwards.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test that meets the unexpected should fail there and then"
)]

use std::path::Path;
use std::time::Duration;

use testbed::kubernetes::{Cluster, Kubernetes, shared_cluster};
use testbed::wait;

const SOON: Duration = Duration::from_secs(120);

const GREETING: &str = r#"
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: greetings.example.dev}
spec:
  group: example.dev
  scope: Namespaced
  names: {kind: Greeting, plural: greetings}
  versions:
  - name: v1
    served: true
    storage: true
    schema:
      openAPIV3Schema:
        type: object
        properties:
          text:
            type: string
            maxLength: 20
            x-kubernetes-validations: [{rule: "self == oldSelf", message: "what is said is said"}]
"#;

const SERVICE: &str = r#"
apiVersion: apps/v1
kind: Deployment
metadata: {name: sleeper}
spec:
  replicas: 2
  selector: {matchLabels: {app: sleeper}}
  template:
    metadata: {labels: {app: sleeper}}
    spec: {containers: [{name: sleeper, image: "sleeper:1"}]}
"#;

#[tokio::test]
async fn objects_are_checked_by_their_rules() {
    let cluster = shared_cluster().await.unwrap();
    let namespace = cluster.namespace("rules").await.unwrap();
    cluster.apply(GREETING).await.unwrap();
    cluster.until_established(&["greetings.example.dev"]).await.unwrap();
    let say = |text: &str| {
        format!("{{apiVersion: example.dev/v1, kind: Greeting, metadata: {{name: one}}, text: {text}}}")
    };
    let apply = ["apply", "-f", "-"];
    namespace.kubectl_with(&apply, &say("hello")).await.unwrap();
    let refused = namespace.kubectl_with(&apply, &say("goodbye")).await.unwrap_err().to_string();
    assert!(refused.contains("what is said is said"), "{refused}");
}

#[tokio::test]
async fn controllers_act_and_pods_wait_for_a_node() {
    let namespace = shared_cluster().await.unwrap().namespace("pods").await.unwrap();
    namespace.kubectl_with(&["apply", "-f", "-"], SERVICE).await.unwrap();
    wait::until("two pods without a node", SOON, async || {
        let pods =
            namespace.kubectl(&["get", "pods", "-o", "jsonpath={.items[*].status.conditions[0].reason}"]);
        let reasons = pods.await.map_err(|error| error.to_string())?;
        if reasons == "Unschedulable Unschedulable" { Ok(()) } else { Err(reasons) }
    })
    .await
    .unwrap();
}

#[tokio::test]
async fn an_api_server_that_was_away_knows_what_it_knew_and_nothing_is_left_behind() {
    let cluster = Kubernetes::start().await.unwrap();
    cluster.kubectl(&["create", "namespace", "kept"]).await.unwrap();
    cluster.kill_api_server().await.unwrap();
    assert!(cluster.kubectl(&["get", "namespace", "kept"]).await.is_err());
    cluster.start_api_server().await.unwrap();
    cluster.kubectl(&["get", "namespace", "kept"]).await.unwrap();
    let (pids, kubeconfig) = (cluster.pids(), cluster.kubeconfig().to_owned());
    assert_eq!(pids.len(), 4);
    drop(cluster);
    assert!(!kubeconfig.exists());
    assert!(pids.iter().all(|pid| !Path::new(&format!("/proc/{pid}")).exists()), "{pids:?}");
}

/// What OUTBOX_TEST_KUBECONFIG leads to is used as a cluster of one's own is.
#[tokio::test]
async fn an_existing_cluster_is_used_by_its_kubeconfig() {
    let theirs = shared_cluster().await.unwrap();
    let cluster = Cluster::existing(theirs.kubeconfig(), &[]).await.unwrap();
    let namespace = cluster.namespace("existing").await.unwrap();
    theirs.kubectl(&["get", "namespace", namespace.name()]).await.unwrap();
    namespace.kubectl(&["create", "serviceaccount", "reader"]).await.unwrap();
    let reader = cluster.kubeconfig_of(namespace.name(), "reader").await.unwrap();
    let reader = Cluster::existing(&reader, &[]).await.unwrap();
    let who =
        reader.kubectl(&["auth", "whoami", "-o", "jsonpath={.status.userInfo.username}"]).await.unwrap();
    assert_eq!(who, format!("system:serviceaccount:{}:reader", namespace.name()));
    let nowhere = Cluster::existing(Path::new("nowhere"), &[]).await.err().unwrap().to_string();
    assert!(nowhere.contains("nowhere"), "{nowhere}");
}
