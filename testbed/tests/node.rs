//! The real node: what runs on it runs, and nothing of it stays.

use std::path::Path;
use std::time::Duration;

use testbed::images::PAUSE;
use testbed::kubernetes::{Kubernetes, can_be_a_node};
use testbed::wait;

const SOON: Duration = Duration::from_secs(60);

fn pod() -> String {
    format!(
        r#"{{"apiVersion": "v1", "kind": "Pod", "metadata": {{"name": "asks"}}, "spec": {{
            "restartPolicy": "OnFailure",
            "securityContext": {{"runAsNonRoot": true, "runAsUser": 65532, "seccompProfile": {{"type": "RuntimeDefault"}}}},
            "containers": [{{"name": "asks", "image": "{PAUSE}", "imagePullPolicy": "Never",
                "command": ["/busybox", "nslookup", "kubernetes.default.svc.cluster.local"],
                "securityContext": {{"allowPrivilegeEscalation": false, "capabilities": {{"drop": ["ALL"]}}}}}}]}}}}"#
    )
}

#[tokio::test]
async fn a_pod_runs_and_nothing_of_its_node_stays() {
    if let Err(why) = can_be_a_node() {
        eprintln!("skipped: this machine cannot be a node: {why}");
        return;
    }
    let links = || std::fs::read_dir("/sys/class/net").unwrap().count();
    let before = links();
    let cluster = Kubernetes::with_node().await.unwrap();
    assert_eq!(links(), before + 1);
    let overcommit = std::fs::read_to_string("/proc/sys/vm/overcommit_memory").unwrap();
    cluster.restrict("default").await.unwrap();
    cluster.apply(&pod()).await.unwrap();
    let phase = ["get", "pod", "asks", "-o", "jsonpath={.status.phase}"];
    wait::until("the end of the pod", SOON, async || match cluster.kubectl(&phase).await {
        Ok(phase) if phase == "Succeeded" => Ok(()),
        _ => Err(cluster.kubectl(&["logs", "asks"]).await.unwrap_or_else(|error| error.to_string())),
    })
    .await
    .unwrap();
    let said = cluster.kubectl(&["logs", "asks"]).await.unwrap();
    assert!(said.contains("Address: 10.203."), "{said}");
    drop(cluster);
    assert_eq!(links(), before);
    assert_eq!(std::fs::read_to_string("/proc/sys/vm/overcommit_memory").unwrap(), overcommit);
    let left = Path::new("/sys/fs/cgroup").read_dir().unwrap().flatten();
    let left: Vec<_> = left.filter(|entry| entry.path().join("outbox-node-0").exists()).collect();
    assert!(left.is_empty(), "{left:?}");
}
