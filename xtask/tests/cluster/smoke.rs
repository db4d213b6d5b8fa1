//! Installed as the guide says; one event; a relay that is deleted under load; uninstalled. And what must not run as root does not.

use serde_json::Value;
use xtask::build::Profile;
use xtask::cluster::Site;

use crate::traffic::Traffic;
use crate::{no_node, until};

#[tokio::test(flavor = "multi_thread")]
async fn from_nothing_to_an_event_and_back() {
    if no_node() {
        return;
    }
    let quiet = |_: &str| {};
    let site = Site::start(Profile::Dev, quiet).await.unwrap();
    let cluster = &site.cluster;
    let record = site.install(quiet).await.unwrap();
    assert_eq!(record.header("ce_type"), Some("basket.created.v1"));

    let traffic = Traffic::start(&site, "deleted").await;
    let before = traffic.pod(".items[*].metadata.uid").await;
    cluster.kubectl(&["delete", "pods", "--all", "--namespace", traffic.name]).await.unwrap();
    assert_ne!(traffic.pod(".items[*].metadata.uid").await, before);
    traffic.end().await;

    // Namespaces of pods that were never asked to be restricted: they would all have been admitted.
    let pods = cluster.kubectl(&["get", "pods", "--all-namespaces", "-o", "json"]).await.unwrap();
    let pods: Value = serde_json::from_str(&pods).unwrap();
    let ours =
        pods["items"].as_array().unwrap().iter().filter(|pod| pod["metadata"]["namespace"] != "servers");
    for pod in ours.clone() {
        let container = &pod["spec"]["containers"][0]["securityContext"];
        assert_eq!(container["readOnlyRootFilesystem"], true, "{pod}");
    }
    assert!(ours.count() >= 4);

    for (release, namespace) in [("shop", "shop"), ("outbox", "outbox-system")] {
        cluster.helm(&["uninstall", release, "--namespace", namespace, "--wait"]).await.unwrap();
    }
    let left = cluster.kubectl(&["get", "obr", "--all-namespaces", "-o", "name"]).await.unwrap();
    assert_eq!(left.lines().collect::<Vec<_>>(), ["outboxrelay.outbox.dev/shop-basket-api"]);
    let gone = ["get", "deployments", "--namespace", "outbox-system", "-o", "name"];
    until(cluster, &gone, str::is_empty).await;
    // The relay runs on without operator and service.
    let relay = ["get", "pods", "--namespace", "shop", "-o", "jsonpath={.items[*].status.phase}"];
    until(cluster, &relay, |phases| phases == "Running").await;
}
