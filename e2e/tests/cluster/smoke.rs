//! Installed as the guide says; one event; a relay that is deleted under load; images without a shell; uninstalled.

use lab::build::Profile;
use lab::cluster::Site;
use lab::cluster::guide::{CHECK, Guide};
use serde_json::Value;

use crate::traffic::Traffic;
use crate::{quiet, turn, until};

#[tokio::test(flavor = "multi_thread")]
async fn from_nothing_to_an_event_and_back() {
    let Some(_turn) = turn().await else { return };
    let site = Site::start(Profile::Dev, quiet).await.unwrap();
    let cluster = &site.cluster;
    let record = site.install(quiet).await.unwrap();
    assert_eq!(record.header("ce_type"), Some("basket.created.v1"));

    for commands in Guide::read(CHECK).unwrap().commands {
        let said = site.shell(&commands).await.unwrap();
        assert_eq!(said.matches("Succeeded").count(), 2, "{said}");
    }

    let traffic = Traffic::start(&site, "deleted").await;
    let before = traffic.pod(".items[*].metadata.uid").await;
    cluster.kubectl(&["delete", "pods", "--all", "--namespace", traffic.name]).await.unwrap();
    assert_ne!(traffic.pod(".items[*].metadata.uid").await, before);
    traffic.end().await;

    for (namespace, pod, program) in [
        ("shop", "deployment/shop-basket-api", "basket-api"),
        ("shop", "deployment/shop-basket-api-relay", "outbox-relay"),
        ("outbox-system", "deployment/outbox-outbox-operator", "outbox-operator"),
    ] {
        let inside = ["exec", pod, "--namespace", namespace, "--"];
        let asked = [program, "--version"];
        let version = cluster.kubectl(&[&inside[..], &asked].concat()).await.unwrap();
        assert!(version.starts_with(&format!("{program} {}", env!("CARGO_PKG_VERSION"))), "{version}");
        let shell = cluster.kubectl(&[&inside[..], &["sh"]].concat()).await.unwrap_err().to_string();
        assert!(shell.contains("executable file not found"), "{shell}");
    }
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
