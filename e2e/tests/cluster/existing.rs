//! An existing cluster: the tour runs there as on a separate node, touches nothing that existed, and leaves nothing behind.

use std::process::Output;

use lab::build::{self, Profile};
use testbed::kubernetes::{Cluster, Kubernetes};

use crate::turn;

async fn tour(cluster: &Cluster) -> Output {
    let program = build::lab(Profile::Dev).unwrap().join("lab");
    let mut tour = tokio::process::Command::new(program);
    tour.args(["cluster", "--dev", "--kubeconfig"]).arg(cluster.kubeconfig());
    tour.args(["--import", &cluster.import_command().join(" ")]);
    tour.kill_on_drop(true).output().await.unwrap()
}

/// The cluster's objects, without those that its controllers write.
async fn inventory(cluster: &Cluster) -> String {
    let kinds = "namespaces,crd,clusterroles,clusterrolebindings,persistentvolumes,priorityclasses";
    cluster.kubectl(&["get", kinds, "-o", "name"]).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tour_of_somebodys_cluster_leaves_it_as_it_was() {
    if !testbed::long_matrix() {
        return;
    }
    let Some(_turn) = turn().await else { return };
    let theirs = Kubernetes::with_node().await.unwrap();
    theirs.kubectl(&["create", "namespace", "shop"]).await.unwrap();
    let before = inventory(&theirs).await;
    let refused = tour(&theirs).await;
    let said = String::from_utf8_lossy(&refused.stderr);
    assert!(!refused.status.success() && said.contains("namespace/shop already"), "{said}");
    assert_eq!(inventory(&theirs).await, before);

    theirs.kubectl(&["delete", "namespace", "shop"]).await.unwrap();
    let before = inventory(&theirs).await;
    let toured = tour(&theirs).await;
    let said = String::from_utf8_lossy(&toured.stdout);
    assert!(toured.status.success(), "{said}{}", String::from_utf8_lossy(&toured.stderr));
    assert!(said.contains("outbox_relay_lag_seconds in Prometheus: "), "{said}");
    assert_eq!(inventory(&theirs).await, before);
}
