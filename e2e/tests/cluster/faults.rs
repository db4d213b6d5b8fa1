//! Faults of a cluster, each under load, each with the same judgement. One cluster for all of them, one after the other.

use lab::cluster::Site;
use serde_json::json;

use crate::traffic::Traffic;
use crate::{installed, scale, until};

#[tokio::test(flavor = "multi_thread")]
async fn faults_of_the_cluster_lose_and_double_nothing() {
    let Some((_turn, site)) = installed().await else { return };
    evicted(&site).await;
    killed_for_its_memory(&site).await;
    secret_rotated(&site).await;
    operator_away(&site).await;
    broker_killed(&site).await;
    database_killed(&site).await;
    drained_in_an_outage(&site).await;
    user_of_the_cluster(&site).await;
    namespace_deleted(&site).await;
    node_drained(&site).await;
}

async fn evicted(site: &Site) {
    let traffic = Traffic::start(site, "evicted").await;
    let pod = traffic.pod(".items[0].metadata.name").await;
    traffic.evict(&pod).await;
    traffic.end().await;
}

/// With less than it needs it is killed again and again, until its limit is raised.
async fn killed_for_its_memory(site: &Site) {
    let traffic = Traffic::start(site, "killed").await;
    let limit = async |memory: &str| {
        let patch = format!(
            r#"{{"spec": {{"relay": {{"resources": {{"requests": {{"memory": "{memory}"}}, "limits": {{"memory": "{memory}"}}}}}}}}}}"#
        );
        let change =
            ["patch", "obr", traffic.name, "--namespace", traffic.name, "--type=merge", "--patch", &patch];
        site.cluster.kubectl(&change).await.unwrap();
    };
    limit("5Mi").await;
    let why = "jsonpath={.items[*].status.containerStatuses[*].lastState.terminated.reason}";
    until(&site.cluster, &["get", "pods", "--namespace", traffic.name, "-o", why], |why| {
        why.contains("OOMKilled")
    })
    .await;
    limit("128Mi").await;
    traffic.end().await;
}

/// The pod that runs takes the new password from its file when it has to connect again.
async fn secret_rotated(site: &Site) {
    let traffic = Traffic::start(site, "rotated").await;
    let before = traffic.pod(".items[*].metadata.uid").await;
    traffic.password_in_the_database("second-password").await;
    traffic.password("second-password").await;
    traffic.disconnect_the_relay().await;
    traffic.goes_on().await;
    traffic.until_delivered().await;
    assert_eq!(traffic.pod(".items[*].metadata.uid").await, before, "the pod was replaced");
    traffic.end().await;
}

async fn operator_away(site: &Site) {
    let traffic = Traffic::start(site, "unattended").await;
    let operator = "deployment/outbox-outbox-operator";
    scale(site, operator, "outbox-system", 0).await;
    let pods = ["get", "pods", "--namespace=outbox-system", "-o", "name"];
    until(&site.cluster, &pods, str::is_empty).await;
    traffic.goes_on().await;
    traffic.until_delivered().await;
    scale(site, operator, "outbox-system", 2).await;
    traffic.end().await;
}

async fn broker_killed(site: &Site) {
    let traffic = Traffic::start(site, "brokerless").await;
    kill(site, "kafka-0").await;
    traffic.end().await;
}

async fn database_killed(site: &Site) {
    let traffic = Traffic::start(site, "baseless").await;
    kill(site, "postgres-0").await;
    traffic.end().await;
}

/// A node is drained while the database is down, and neither relay is ready: the disruption budget must not keep it from that.
async fn drained_in_an_outage(site: &Site) {
    let traffic = Traffic::start_with(site, "outage", json!({"replicas": 2})).await;
    let database = ["get", "pods", "--namespace=servers", "-o", "name"];
    scale(site, "statefulset/postgres", "servers", 0).await;
    until(&site.cluster, &database, |pods| !pods.contains("postgres")).await;
    let pods = traffic.pod(".items[*].metadata.name").await;
    assert_eq!(pods.split(' ').count(), 2, "{pods}");
    for pod in pods.split(' ') {
        traffic.evict(pod).await;
    }
    scale(site, "statefulset/postgres", "servers", 1).await;
    traffic.end().await;
}

/// A number that the image does not know, and group 0: as OpenShift chooses them.
async fn user_of_the_cluster(site: &Site) {
    let user = json!({"runAsUser": 1_000_650_000, "runAsGroup": 0, "fsGroup": 1_000_650_000});
    let template = json!({"spec": {"securityContext": user}});
    let traffic = Traffic::start_with(site, "user", json!({"podTemplate": template})).await;
    assert_eq!(traffic.pod(".items[0].spec.securityContext.runAsUser").await, "1000650000");
    traffic.end().await;
}

async fn namespace_deleted(site: &Site) {
    let traffic = Traffic::start(site, "unspaced").await;
    traffic.delete_namespace().await;
}

/// With a second to stop in, which is none for a database with sessions. Not by force: the new pod would start beside the old one,
/// and two servers would write to one volume, which the relay takes for another history, and rightly.
async fn kill(site: &Site, pod: &str) {
    let kill = ["delete", "pod", pod, "--namespace=servers", "--now"];
    site.cluster.kubectl(&kill).await.unwrap();
    let (pod, condition) = (format!("pod/{pod}"), "jsonpath={.status.conditions[?(@.type=='Ready')].status}");
    until(&site.cluster, &["get", &pod, "--namespace=servers", "-o", condition], |ready| ready == "True")
        .await;
}

/// Everything on the only node goes, servers included, and comes back when it takes pods again.
async fn node_drained(site: &Site) {
    let traffic = Traffic::start(site, "drained").await;
    let drain =
        ["drain", "node", "--force", "--ignore-daemonsets", "--delete-emptydir-data", "--disable-eviction"];
    site.cluster.kubectl(&drain).await.unwrap();
    site.cluster.kubectl(&["uncordon", "node"]).await.unwrap();
    traffic.end().await;
}
