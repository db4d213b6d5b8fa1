//! What Argo CD makes of a resource, with the health check of docs/install. Flux and Helm read the conditions by kstatus's rules.

use std::fs;

use serde_json::{Value, json};
use testbed::guard::Folder;
use testbed::lua::lua;
use testbed::wait;

use crate::cluster::{apply, least, namespace, relay};
use crate::stage::{SOON, operator};

const CONFIG: &str = include_str!("../../../docs/install/argocd-cm.yaml");

/// JSON as a Lua expression.
fn literal(value: &Value) -> String {
    match value {
        Value::Null => "nil".to_owned(),
        Value::Array(items) => format!("{{{}}}", items.iter().map(literal).collect::<Vec<_>>().join(", ")),
        Value::Object(fields) => {
            let fields = fields.iter().map(|(name, value)| format!("[{}] = {}", json!(name), literal(value)));
            format!("{{{}}}", fields.collect::<Vec<_>>().join(", "))
        }
        Value::String(text) => {
            let bytes = text.bytes().map(|byte| format!("\\{byte:03}")).collect::<String>();
            format!("\"{bytes}\"")
        }
        scalar => scalar.to_string(),
    }
}

/// The status and the message that Argo CD shows of each object.
async fn health(objects: &[Value]) -> Vec<(String, String)> {
    let config: Value = serde_saphyr::from_str(CONFIG).unwrap();
    let check = config["data"]["resource.customizations.health.outbox.dev_OutboxRelay"].as_str().unwrap();
    let calls = objects.iter().map(|object| format!("show(health({}))\n", literal(object)));
    let script = format!(
        "local function health(obj)\n{check}\nend\nlocal function show(hs)\nprint(hs.status .. '|' .. hs.message)\nend\n{}",
        calls.collect::<String>()
    );
    let folder = Folder::new("health").unwrap();
    let file = folder.path().join("health.lua");
    fs::write(&file, script).unwrap();
    let printed = lua(&file).await.unwrap();
    let split =
        |line: &str| line.split_once('|').map(|(status, message)| (status.to_owned(), message.to_owned()));
    printed.lines().map(|line| split(line).unwrap()).collect()
}

/// A resource of generation 2 with these conditions True, and a `Ready` of this status.
fn with(ready: &str, conditions: &[&str]) -> Value {
    let condition =
        |kind: &str, status: &str| json!({"type": kind, "status": status, "reason": "R", "message": "why"});
    let mut all = vec![condition("Ready", ready)];
    all.extend(
        ["Suspended", "Reconciling", "Stalled"]
            .map(|kind| condition(kind, if conditions.contains(&kind) { "True" } else { "False" })),
    );
    json!({"metadata": {"generation": 2}, "status": {"observedGeneration": 2, "conditions": all}})
}

#[tokio::test]
async fn argo_cd_shows_what_the_conditions_say() {
    let mut outdated = with("True", &[]);
    outdated["metadata"]["generation"] = json!(3);
    let without_conditions = json!({"metadata": {"generation": 1}, "status": {"observedGeneration": 1}});
    let seen = health(&[
        json!({"metadata": {"generation": 1}}),
        without_conditions,
        outdated,
        with("True", &[]),
        with("Unknown", &["Reconciling"]),
        with("False", &["Reconciling"]),
        with("False", &["Stalled"]),
        with("True", &["Suspended"]),
    ])
    .await;
    let seen: Vec<_> = seen.iter().map(|(status, message)| (status.as_str(), message.as_str())).collect();
    let unread = "the operator has not read this generation yet";
    let expected = [
        ("Progressing", unread),
        ("Progressing", "the operator has not reported a status yet"),
        ("Progressing", unread),
        ("Healthy", "why"),
        ("Progressing", "why"),
        ("Progressing", "why"),
        ("Degraded", "why"),
        ("Suspended", "why"),
    ];
    assert_eq!(seen, expected);
}

#[tokio::test]
async fn argo_cd_reads_the_status_that_the_operator_writes() {
    let namespace = namespace("argo").await;
    let mut operator = operator(namespace.name(), namespace.cluster().kubeconfig()).start().unwrap();
    apply(&namespace, &relay(&least())).await.unwrap();
    let until = async |expected: &str| -> String {
        wait::until(expected.to_owned(), SOON, async || {
            let stored = namespace.kubectl(&["get", "obr", "shop", "-o", "json"]).await.unwrap();
            let seen = health(&[serde_json::from_str(&stored).unwrap()]).await.remove(0);
            if seen.0 == expected { Ok(seen.1) } else { Err(format!("{seen:?} {}", operator.log_tail())) }
        })
        .await
        .unwrap()
    };
    let message = until("Degraded").await;
    assert!(message.contains("credentials"), "{message}");
    let suspend = ["patch", "obr", "shop", "--type=merge", "-p", r#"{"spec":{"suspend":true}}"#];
    namespace.kubectl(&suspend).await.unwrap();
    until("Suspended").await;
    namespace.cluster().kubectl_with(&["apply", "--dry-run=client", "-f", "-"], CONFIG).await.unwrap();
    operator.terminate().unwrap();
    operator.wait(SOON).await.unwrap();
}
