//! What docs/MONITORING.md has people copy.

use std::fs;
use std::io::Write;
use std::process::{Command, Stdio};

use serde_json::{Value, json};
use testbed::guard::Folder;
use testbed::kubernetes::{Namespace, shared_cluster};
use testbed::prometheus::{check_expressions, promtool};
use testbed::{metrics, wait};

use crate::alerts;
use crate::chart::REGISTRY;
use crate::cluster::{apply, namespace};
use crate::stage::SOON;

const DOCUMENT: &str = include_str!("../../../docs/MONITORING.md");
const RELAY: &str = include_str!("../../../docs/samples/relay-without-operator.yaml");
const CHARTS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../charts");

/// The settings of the document, for pods of one namespace.
fn settings(discovery: &str) -> String {
    let block = DOCUMENT.split("```yaml\n").nth(1).unwrap().split("```").next().unwrap();
    assert!(block.contains("  - role: pod\n"), "{block}");
    block.replace("  - role: pod\n", &format!("  - {discovery}\n"))
}

/// Metrics stand in text between back quotes; what is a selector or an expression can be asked.
#[tokio::test]
async fn it_names_metrics_that_there_are_in_expressions_that_prometheus_reads() {
    let text: String = DOCUMENT.split("```").step_by(2).collect();
    let expressions: Vec<String> = text
        .split('`')
        .skip(1)
        .step_by(2)
        .filter(|quoted| quoted.contains("outbox_"))
        .map(|quoted| quoted.replace("\\|", "|"))
        .collect();
    assert!(expressions.len() > 10, "{expressions:?}");
    for expression in &expressions {
        assert_eq!(metrics::unknown(expression), [""; 0], "{expression}");
    }
    check_expressions(&expressions).await.unwrap();
}

/// The chart's, cut out as the document does it.
#[tokio::test]
async fn its_file_of_rules_has_every_alert() {
    let cut = DOCUMENT.split("sed '").nth(1).unwrap().split('\'').next().unwrap();
    let cluster = shared_cluster().await.unwrap();
    let chart = format!("{CHARTS}/outbox-operator");
    let template = ["template", "outbox", &chart, "--set", REGISTRY, "--set", "alerts.enabled=true"];
    let shown = ["--show-only", "templates/prometheusrule.yaml"];
    let rendered = cluster.helm(&[&template[..], &shown].concat()).await.unwrap();
    let mut sed = Command::new("sed").arg(cut).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    sed.stdin.take().unwrap().write_all(rendered.as_bytes()).unwrap();
    let folder = Folder::new("rules").unwrap();
    let file = sed.wait_with_output().unwrap().stdout;
    let read: Value = serde_saphyr::from_str(std::str::from_utf8(&file).unwrap()).unwrap();
    assert_eq!(read, *alerts::alerts(&[]).await.file());
    fs::write(folder.path().join("outbox.rules.yaml"), file).unwrap();
    promtool(folder.path(), &["check", "rules", "outbox.rules.yaml"]).await.unwrap();
}

/// Pods of the charts, and of the sample.
async fn pods(namespace: &Namespace) {
    let name = namespace.name();
    let apply_all = ["apply", "--filename=-"];
    namespace.kubectl_with(&apply_all, RELAY).await.unwrap();
    let account = "serviceAccount.create=false,serviceAccount.name=default";
    let required = format!("{account},database.secret=s,auth.mode=static-token,auth.staticToken.secret=s");
    for (chart, values) in [("outbox-operator", account), ("basket-api", &required)] {
        let chart = format!("{CHARTS}/{chart}");
        let template =
            ["template", "outbox", &chart, "--namespace", name, "--set", REGISTRY, "--set", values];
        let shown = ["--set", "replicas=1", "--show-only", "templates/deployment.yaml"];
        let deployment = namespace.cluster().helm(&[&template[..], &shown].concat()).await.unwrap();
        namespace.kubectl_with(&apply_all, &deployment).await.unwrap();
    }
    let container =
        json!({"name": "relay", "image": "i", "ports": [{"name": "admin", "containerPort": 9100}]});
    let labels = json!({"app.kubernetes.io/name": "outbox-relay", "app.kubernetes.io/instance": "evicted"});
    let evicted = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "evicted", "labels": labels},
        "spec": {"containers": [container]}});
    apply(namespace, &evicted).await.unwrap();
    let list = ["get", "pods", "-o", "name"];
    let pods = wait::until("pods", SOON, async || match namespace.kubectl(&list).await {
        Ok(pods) if pods.lines().count() == 4 => Ok(pods),
        other => Err(format!("{other:?}")),
    })
    .await
    .unwrap();
    // What a node would say.
    for (number, pod) in (1..).zip(pods.lines()) {
        let phase = if pod == "pod/evicted" { "Failed" } else { "Running" };
        let ip = format!("192.0.2.{number}");
        let status = json!({"status": {"phase": phase, "podIP": ip, "podIPs": [{"ip": ip}]}}).to_string();
        let patch = ["patch", pod, "--subresource=status", "--type=merge", "-p", &status];
        namespace.kubectl(&patch).await.unwrap();
    }
}

/// By an account that may do what the document says, and nothing else.
#[tokio::test]
async fn its_settings_find_the_pods_and_name_them() {
    let namespace = namespace("scraped").await;
    pods(&namespace).await;
    let (name, account) = (namespace.name(), format!("--serviceaccount={}:prometheus", namespace.name()));
    for made in [
        &["create", "serviceaccount", "prometheus"][..],
        &["create", "role", "prometheus", "--verb=get,list,watch", "--resource=pods"],
        &["create", "rolebinding", "prometheus", "--role=prometheus", &account],
    ] {
        namespace.kubectl(made).await.unwrap();
    }
    let kubeconfig = namespace.cluster().kubeconfig_of(name, "prometheus").await.unwrap();
    let discovery = json!({"role": "pod", "kubeconfig_file": kubeconfig, "namespaces": {"names": [name]}});
    let folder = Folder::new("scraped").unwrap();
    fs::write(folder.path().join("prometheus.yaml"), settings(&discovery.to_string())).unwrap();
    promtool(folder.path(), &["check", "config", "prometheus.yaml"]).await.unwrap();
    // It looks for as long as it is told, whatever it has found.
    let look = ["check", "service-discovery", "--timeout=3s", "prometheus.yaml", "outbox"];
    wait::until("three targets with their labels", SOON, async || {
        let found = promtool(folder.path(), &look).await.unwrap();
        let found: Vec<Value> = serde_json::from_str(found.split_at(found.find("[\n").unwrap()).1).unwrap();
        let kept = found.iter().map(|target| &target["labels"]).filter(|labels| *labels != &json!({}));
        let mut seen: Vec<[&str; 3]> = kept
            .map(|labels| {
                assert_eq!(labels["namespace"], name, "{labels}");
                let pod = labels["pod"].as_str().unwrap();
                let port = labels["__address__"].as_str().unwrap().rsplit(':').next().unwrap();
                // Without what the Deployment adds.
                [pod.rsplitn(3, '-').last().unwrap(), port, labels["relay"].as_str().unwrap_or_default()]
            })
            .collect();
        seen.sort_unstable();
        let expected = [
            ["outbox-basket-api", "9080", ""],
            ["outbox-outbox-operator", "9101", ""],
            ["shop-relay", "9100", "shop"],
        ];
        if seen == expected { Ok(()) } else { Err(format!("{seen:?}")) }
    })
    .await
    .unwrap();
}
