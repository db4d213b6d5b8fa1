//! What GitOps tools make of a resource: Argo CD with the health check of docs/install, Flux with the one of docs/INSTALL.md.

use std::fs;

use outbox_operator::status::Reason;
use serde_json::{Value, json};
use testbed::guard::Folder;
use testbed::kubernetes::Namespace;
use testbed::lua::lua;
use testbed::wait;

use crate::cluster::{apply, least, namespace, relay};
use crate::stage::{SOON, operator};

const CONFIG: &str = include_str!("../../../docs/install/argocd-cm.yaml");
const INSTALL: &str = include_str!("../../../docs/INSTALL.md");
const REASONS: &str = include_str!("../../../docs/OPERATOR-REASONS.md");

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

/// A resource of generation 2 with this status of `Ready`.
fn with_ready(status: &str, reason: &str) -> Value {
    let ready = json!({"type": "Ready", "status": status, "reason": reason, "message": "why"});
    json!({"metadata": {"generation": 2}, "status": {"observedGeneration": 2, "conditions": [ready]}})
}

#[tokio::test]
async fn argo_cd_shows_what_the_conditions_say() {
    let mut suspended = with_ready("False", "Suspended");
    let condition =
        json!({"type": "Suspended", "status": "True", "reason": "Suspended", "message": "no pods"});
    suspended["status"]["conditions"].as_array_mut().unwrap().push(condition);
    let mut outdated = with_ready("True", "Streaming");
    outdated["metadata"]["generation"] = json!(3);
    let without_conditions = json!({"metadata": {"generation": 1}, "status": {"observedGeneration": 1}});
    let seen = health(&[
        json!({"metadata": {"generation": 1}}),
        without_conditions,
        outdated,
        with_ready("True", "Streaming"),
        with_ready("Unknown", "RelayUnreachable"),
        with_ready("False", "SlotLost"),
        suspended,
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
        ("Degraded", "why"),
        ("Suspended", "no pods"),
    ];
    assert_eq!(seen, expected);
}

/// The check has a list of its own, because a script of Argo CD knows nothing of the operator's.
#[tokio::test]
async fn argo_cd_waits_for_the_reasons_that_end_without_help() {
    let reasons = REASONS.lines().filter_map(|line| line.strip_prefix("| `")?.split('`').next());
    // What `Ready` can be False for.
    let reasons: Vec<&str> = reasons.filter(|reason| *reason != "Suspended").collect();
    assert!(reasons.len() > 20, "{reasons:?}");
    let objects: Vec<Value> = reasons.iter().map(|reason| with_ready("False", reason)).collect();
    for (reason, (status, _)) in reasons.iter().zip(health(&objects).await) {
        // Pods are missing for a while at every start.
        let ends = Reason::passes(reason) || ["NoPod", "NoPodReady"].contains(reason);
        assert_eq!(status, if ends { "Progressing" } else { "Degraded" }, "{reason}");
    }
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
    assert!(message.contains("login"), "{message}");
    let suspend = ["patch", "obr", "shop", "--type=merge", "-p", r#"{"spec":{"suspend":true}}"#];
    namespace.kubectl(&suspend).await.unwrap();
    until("Suspended").await;
    namespace.cluster().kubectl_with(&["apply", "--dry-run=client", "-f", "-"], CONFIG).await.unwrap();
    operator.terminate().unwrap();
    operator.wait(SOON).await.unwrap();
}

/// The expression for Flux, about an object that the API server calls `object`.
fn expression_for_flux() -> String {
    let block = INSTALL.split("```yaml\nspec:\n").nth(1).unwrap().split("```").next().unwrap();
    let kustomization: Value = serde_saphyr::from_str(&format!("spec:\n{block}")).unwrap();
    let check = &kustomization["spec"]["healthCheckExprs"][0];
    assert_eq!(
        (&check["apiVersion"], &check["kind"]),
        (&json!("outbox.dev/v1alpha1"), &json!("OutboxRelay"))
    );
    let current = check["current"].as_str().unwrap();
    current.replace("status.", "object.status.").replace("metadata.", "object.metadata.")
}

/// Lets a namespace take the status of a resource only where an expression is true of it.
fn policy(namespace: &str, expression: &str) -> Value {
    let rule = json!({"apiGroups": ["outbox.dev"], "apiVersions": ["v1alpha1"], "resources": ["outboxrelays/status"],
        "operations": ["UPDATE"]});
    let here = json!({"matchLabels": {"kubernetes.io/metadata.name": namespace}});
    let object = |kind: &str, spec: Value| json!({"apiVersion": "admissionregistration.k8s.io/v1", "kind": kind, "metadata": {"name": namespace}, "spec": spec});
    json!({"apiVersion": "v1", "kind": "List", "items": [
        object("ValidatingAdmissionPolicy", json!({"failurePolicy": "Fail", "matchConstraints": {"resourceRules": [rule]},
            "validations": [{"expression": expression, "message": "not current"}]})),
        object("ValidatingAdmissionPolicyBinding", json!({"policyName": namespace, "validationActions": ["Deny"],
            "matchResources": {"namespaceSelector": here}})),
    ]})
}

/// Whether the policy takes this status.
async fn is_current(namespace: &Namespace, status: &Value) -> bool {
    let patch = json!({ "status": status }).to_string();
    let patch =
        ["patch", "obr", "shop", "--subresource=status", "--dry-run=server", "--type=merge", "-p", &patch];
    match namespace.kubectl(&patch).await {
        Ok(_) => true,
        Err(error) => {
            let error = error.to_string();
            assert!(error.contains("ValidatingAdmissionPolicy"), "{error}");
            false
        }
    }
}

/// Flux and the API server both use CEL, so a policy shows what the expression of the document decides.
#[tokio::test]
async fn flux_waits_until_a_resource_is_ready_or_suspended() {
    let namespace = namespace("flux").await;
    apply(&namespace, &relay(&least())).await.unwrap();
    let policy = policy(namespace.name(), &expression_for_flux());
    namespace.cluster().apply(&policy.to_string()).await.unwrap();
    let status = |generation: i64, conditions: &[(&str, &str)]| {
        let condition = |(kind, status): &(&str, &str)| json!({"type": kind, "status": status, "reason": "Test", "message": "", "lastTransitionTime": "2026-01-01T00:00:00Z"});
        let conditions: Vec<Value> = conditions.iter().map(condition).collect();
        json!({"observedGeneration": generation, "conditions": conditions})
    };
    let not_ready = [("Ready", "False"), ("Suspended", "False")];
    wait::until("a policy that is in force", SOON, async || {
        if is_current(&namespace, &status(1, &not_ready)).await { Err("taken") } else { Ok(()) }
    })
    .await
    .unwrap();
    for (status, expected) in [
        (status(1, &[("Ready", "True"), ("Suspended", "False")]), true),
        (status(1, &[("Ready", "False"), ("Suspended", "True")]), true),
        (status(1, &[("Ready", "Unknown"), ("Suspended", "False")]), false),
        (status(0, &[("Ready", "True"), ("Suspended", "False")]), false),
        (json!({}), false),
    ] {
        assert_eq!(is_current(&namespace, &status).await, expected, "{status}");
    }
    let kinds = "validatingadmissionpolicy,validatingadmissionpolicybinding";
    namespace.cluster().kubectl(&["delete", kinds, namespace.name()]).await.unwrap();
}
