//! What becomes of relays, and of the operator, while Kubernetes itself does not do its part.

use std::time::{Duration, Instant};

use serde_json::json;
use testbed::guard::Folder;
use testbed::kubernetes::Kubernetes;
use testbed::records::read_all;
use testbed::wait;

use crate::stage::{SOON, Stage, operator};

/// Longer than the Lease lasts, and than any connection waits for an answer.
const AWAY: Duration = Duration::from_secs(60);

/// Relays do not need it. The operator, which can no longer be sure that it is the only active one, ends; its replacement waits, and
/// then continues.
#[tokio::test]
async fn an_api_server_that_is_down_for_a_minute() {
    if !testbed::long_matrix() {
        return;
    }
    let cluster = Kubernetes::start().await.unwrap();
    let mut stage = Stage::in_cluster("away", &cluster).await;
    stage.operator.kill().await.unwrap();
    let (namespace, kubeconfig) = (stage.namespace.name().to_owned(), cluster.kubeconfig());
    let lease = format!("--lease-namespace={namespace}");
    stage.operator = operator(&namespace, kubeconfig).arg(&lease).start().unwrap();
    let folder = Folder::new("relay").unwrap();
    let _relay = stage.until_streaming(&folder).await;

    let since = Instant::now();
    cluster.kill_api_server().await.unwrap();
    assert_eq!(stage.operator.wait(SOON).await.unwrap().code(), Some(69), "{}", stage.operator.log_tail());
    stage.operator = operator(&namespace, kubeconfig).arg(&lease).start().unwrap();
    let mut committed = 0;
    while since.elapsed() < AWAY {
        stage.insert(stage.database.name()).await;
        committed += 1;
        wait::until(format!("event {committed} in Kafka"), SOON, async || {
            match read_all(&stage.bootstrap, &[&stage.topic]).await {
                Ok(records) if records.len() == committed => Ok(()),
                other => Err(format!("{:?}", other.map(|records| records.len()))),
            }
        })
        .await
        .unwrap();
    }
    assert!(stage.operator.exit_status().is_none(), "{}", stage.operator.log_tail());
    cluster.start_api_server().await.unwrap();
    stage.spec["topics"][0]["partitions"] = json!(5);
    stage.apply().await;
    wait::until("five partitions", SOON, async || match stage.observed().await {
        Some(topic) if topic.partitions == 5 => Ok(()),
        other => Err(format!("{other:?}\n{}", stage.operator.log_tail())),
    })
    .await
    .unwrap();
    stage.until(&[("Ready", "True", "Streaming")]).await;
}

/// A pod that no node takes is told of in the scheduler's words, and no longer when one does.
#[tokio::test]
async fn a_pod_that_no_node_takes() {
    let mut cluster = Kubernetes::start().await.unwrap();
    cluster.simulate_node("127.201.0.1/16").await.unwrap();
    let mut stage = Stage::in_cluster("unschedulable", &cluster).await;
    stage.spec["relay"] = json!({"nodeSelector": {"disk": "fast"}});
    stage.make_secret().await;
    stage.apply().await;
    stage.until(&[("WorkloadAvailable", "False", "Unschedulable")]).await;
    let said = [
        "get",
        "obr",
        "shop",
        "-o",
        "jsonpath={.status.conditions[?(@.type==\"WorkloadAvailable\")].message}",
    ];
    let said = stage.namespace.kubectl(&said).await.unwrap();
    assert!(said.contains("didn't match Pod's node affinity/selector"), "{said}");
    cluster.kubectl(&["label", "node", "simulated", "disk=fast"]).await.unwrap();
    stage
        .until(&[("WorkloadAvailable", "True", "Available"), ("Streaming", "Unknown", "RelayUnreachable")])
        .await;
}
