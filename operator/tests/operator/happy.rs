//! From a resource to events in Kafka: real control plane, PostgreSQL, Kafka and relay. The cluster has no node, so the test
//! runs the relay itself, with exactly the configuration the operator has written, and says that its pod is ready.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use outbox_operator::desired::files::POD_ROOT;
use rdkafka::config::ClientConfig;
use serde_json::{Value, json};
use testbed::guard::Folder;
use testbed::kubernetes::Namespace;
use testbed::process::{Launch, Program};
use testbed::records::read_all;
use testbed::{Database, net, shared, wait};

use crate::cluster::{apply, namespace, relay};

const SOON: Duration = Duration::from_secs(120);

fn start_operator(namespace: &Namespace) -> Program {
    let port = net::free_port().unwrap();
    Launch::new("outbox-operator", env!("CARGO_BIN_EXE_outbox-operator"))
        .arg("run")
        .arg(format!("--namespace={}", namespace.name()))
        .arg("--relay-image=outbox-relay:test")
        .arg(format!("--listen=127.0.0.1:{port}"))
        .env("KUBECONFIG", namespace.cluster().kubeconfig())
        .start()
        .unwrap()
}

/// Beside the operator's, built with the features that tests are built with.
fn relay_program() -> PathBuf {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let built = Command::new(cargo)
        .current_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join(".."))
        .args(["build", "--quiet", "--locked", "--workspace", "--bin", "outbox-relay"])
        .status()
        .unwrap();
    assert!(built.success());
    Path::new(env!("CARGO_BIN_EXE_outbox-operator")).with_file_name("outbox-relay")
}

/// Starts the relay as its pod would, with the folders of Secrets elsewhere.
async fn start_relay(namespace: &Namespace, folder: &Folder) -> Program {
    let stored = namespace.kubectl(&["get", "configmap", "shop-relay", "-o", "json"]).await.unwrap();
    let stored: Value = serde_json::from_str(&stored).unwrap();
    let root = folder.path().display().to_string();
    let yaml = stored["data"]["relay.yaml"].as_str().unwrap().replace(POD_ROOT, &root);
    fs::create_dir_all(folder.path().join("postgres")).unwrap();
    fs::write(folder.path().join("postgres/password"), "unused").unwrap();
    let file = folder.path().join("relay.yaml");
    fs::write(&file, yaml).unwrap();
    let port = net::free_port().unwrap();
    Launch::new("outbox-relay", relay_program())
        .arg("run")
        .arg("--config")
        .arg(&file)
        .env("OUTBOX_RELAY__ADMIN__LISTEN", format!("127.0.0.1:{port}"))
        .start()
        .unwrap()
}

/// Says of the relay's pods what a node would say.
async fn say_that_pods_are_ready(namespace: &Namespace) {
    let list = ["get", "pods", "-l", "app.kubernetes.io/instance=shop", "-o", "name"];
    let pods = wait::until("a pod", SOON, async || match namespace.kubectl(&list).await {
        Ok(pods) if !pods.is_empty() => Ok(pods),
        other => Err(format!("{other:?}")),
    })
    .await
    .unwrap();
    let status = json!({"status": {"phase": "Running", "conditions": [
        {"type": "Ready", "status": "True"},
        {"type": "PodScheduled", "status": "True"},
    ]}})
    .to_string();
    for pod in pods.lines() {
        namespace
            .kubectl(&["patch", pod, "--subresource=status", "--type=merge", "-p", &status])
            .await
            .unwrap();
    }
}

/// Condition -> (status, reason).
async fn conditions(namespace: &Namespace) -> BTreeMap<String, (String, String)> {
    let stored = namespace.kubectl(&["get", "obr", "shop", "-o", "json"]).await.unwrap();
    let stored: Value = serde_json::from_str(&stored).unwrap();
    let conditions = stored["status"]["conditions"].as_array().cloned().unwrap_or_default();
    let text = |condition: &Value, name: &str| condition[name].as_str().unwrap_or_default().to_owned();
    conditions
        .iter()
        .map(|condition| (text(condition, "type"), (text(condition, "status"), text(condition, "reason"))))
        .collect()
}

async fn until(namespace: &Namespace, operator: &Program, expected: &[(&str, &str, &str)]) {
    wait::until(format!("{expected:?}"), SOON, async || {
        let seen = conditions(namespace).await;
        let is = |(aspect, status, reason): &(&str, &str, &str)| {
            seen.get(*aspect).is_some_and(|seen| (seen.0.as_str(), seen.1.as_str()) == (*status, *reason))
        };
        if expected.iter().all(is) { Ok(()) } else { Err(format!("{seen:?}\n{}", operator.log_tail())) }
    })
    .await
    .unwrap();
}

#[tokio::test]
async fn from_a_resource_to_events_in_kafka() {
    let bootstrap = shared().await.unwrap().kafka_bootstrap().to_owned();
    let database = Database::fresh("operator").await.unwrap();
    let url = url::Url::parse(database.url()).unwrap();
    let namespace = namespace("happy").await;
    let topic = format!("outbox.event.{}", database.name());
    let mut operator = start_operator(&namespace);
    let spec = json!({
        "source": {"postgres": {
            "host": "127.0.0.1", "port": url.port().unwrap(), "database": database.name(), "tls": {"mode": "disable"},
            "credentialsSecretRef": {"name": "login"},
            "publication": {"name": "outbox"}, "slot": {"name": database.name()},
        }},
        "sink": {"kafka": {"bootstrapServers": bootstrap, "tls": {"mode": "disable"}}},
        "topics": [{"name": topic, "partitions": 3, "replicationFactor": 1}],
    });
    apply(&namespace, &relay(&spec)).await.unwrap();
    // Nothing is made before the Secret is there, and what is missing is said.
    until(
        &namespace,
        &operator,
        &[
            ("ReferencesResolved", "False", "SecretUnusable"),
            ("Ready", "False", "SecretUnusable"),
            ("TopicsReady", "Unknown", "NotReached"),
        ],
    )
    .await;
    let secret = [
        "create",
        "secret",
        "generic",
        "login",
        "--from-literal=username=postgres",
        "--from-literal=password=unused",
    ];
    namespace.kubectl(&secret).await.unwrap();
    until(
        &namespace,
        &operator,
        &[
            ("ReferencesResolved", "True", "Resolved"),
            ("DatabaseReachable", "True", "Connected"),
            ("KafkaReachable", "True", "Connected"),
            ("PublicationReady", "True", "Present"),
            ("TopicsReady", "True", "AsDeclared"),
            ("SlotReady", "False", "WaitingForRelay"),
            ("WorkloadAvailable", "False", "Unschedulable"),
            ("Streaming", "False", "SlotNotHeld"),
            ("Suspended", "False", "Running"),
        ],
    )
    .await;
    let folder = Folder::new("relay").unwrap();
    let _relay = start_relay(&namespace, &folder).await;
    say_that_pods_are_ready(&namespace).await;
    until(&namespace, &operator, &[("SlotReady", "True", "Present"), ("Ready", "True", "Streaming")]).await;
    database
        .execute(&format!(
            "INSERT INTO outbox (id, aggregatetype, aggregateid, type, payload)
             VALUES (gen_random_uuid(), '{}', 'k', 't.v1', '1')",
            database.name()
        ))
        .await
        .unwrap();
    wait::until("the event in Kafka", SOON, async || match read_all(&bootstrap, &[&topic]).await {
        Ok(records) if records.len() == 1 => Ok(()),
        other => Err(format!("{other:?}")),
    })
    .await
    .unwrap();
    operator.terminate().unwrap();
    assert_eq!(operator.wait(SOON).await.unwrap().code(), Some(0), "{}", operator.log_tail());
    let made = ClientConfig::new().set("bootstrap.servers", &bootstrap).clone();
    let made = outbox_operator::topics::Cluster::new(&made).unwrap().observe(&[topic.clone()]).await.unwrap();
    assert_eq!(made[&topic].overrides["message.timestamp.type"], "LogAppendTime");
}
