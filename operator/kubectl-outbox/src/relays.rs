//! The resources, their pods, and what the relays in them report.

use std::process::ExitCode;
use std::thread;

use serde::Deserialize;
use serde_json::Value;

use crate::kubectl::{Failure, Kubectl};

/// With its group, because another kind may have the short name.
const RESOURCE: &str = "outboxrelays.outbox.dev";
const PODS: &str = "app.kubernetes.io/managed-by=outbox-operator,app.kubernetes.io/name=outbox-relay";
const INSTANCE: &str = "app.kubernetes.io/instance";
/// The relay's container, and the port of its admin listener.
const CONTAINER: &str = "relay";
const ADMIN_PORT: u16 = 9100;
/// Reports that are asked for at the same time.
const AT_ONCE: usize = 16;

/// A resource, with what its relay reports.
#[derive(Debug)]
pub struct Relay {
    pub namespace: String,
    pub name: String,
    /// Status of the condition Ready.
    pub ready: String,
    pub reason: String,
    pub topics: u64,
    /// `/status` of the pod that delivers, or of another one where none does; or why there is none.
    pub report: Result<Report, String>,
    pods: Vec<Pod>,
}

/// The answer of a pod.
#[derive(Debug)]
pub struct Report {
    pod: String,
    status: Value,
}

/// A running pod of a relay.
#[derive(Debug)]
struct Pod {
    name: String,
    /// The relay's configuration file in it.
    config: String,
}

impl Relay {
    /// A member of the report.
    pub fn member(&self, pointer: &str) -> Option<&Value> {
        self.report.as_ref().ok()?.status.pointer(pointer)
    }

    /// Age of the oldest committed row that is not in Kafka.
    pub fn lag_seconds(&self) -> Option<f64> {
        self.member("/lagSeconds").and_then(Value::as_f64)
    }

    /// The pod to ask: the one that delivers, or else the first.
    fn pod(&self) -> Option<&Pod> {
        let active = self.report.as_ref().ok().map(|report| &report.pod);
        self.pods.iter().find(|pod| Some(&pod.name) == active).or_else(|| self.pods.first())
    }
}

/// The resources of a namespace, or of all.
pub fn list(kubectl: &Kubectl, namespace: Option<&str>) -> Result<Vec<Relay>, Failure> {
    let scope = namespace.map_or_else(|| "--all-namespaces".to_owned(), |name| format!("--namespace={name}"));
    let resources = kubectl.json(&["get", RESOURCE, &scope, "--output=json"])?;
    let pods = kubectl.json(&["get", "pods", &scope, "--selector", PODS, "--output=json"])?;
    let mut relays: Vec<Relay> = items(&resources).map(|resource| relay(resource, &pods)).collect();
    ask(kubectl, &mut relays);
    Ok(relays)
}

/// One resource.
pub fn find(kubectl: &Kubectl, namespace: Option<&str>, name: &str) -> Result<Relay, Failure> {
    let mut get = vec!["get", RESOURCE, name, "--output=json"];
    let scope = namespace.map(|name| format!("--namespace={name}"));
    get.extend(scope.as_deref());
    let resource = kubectl.json(&get)?;
    let scope = format!("--namespace={}", text(&resource, "/metadata/namespace"));
    let selector = format!("{PODS},{INSTANCE}={name}");
    let pods = kubectl.json(&["get", "pods", &scope, "--selector", &selector, "--output=json"])?;
    let mut relays = [relay(&resource, &pods)];
    ask(kubectl, &mut relays);
    let [relay] = relays;
    Ok(relay)
}

/// Runs a command of the relay in its pod, with the pod's configuration.
pub fn exec_in(kubectl: &Kubectl, relay: &Relay, arguments: &[&str]) -> Result<ExitCode, Failure> {
    let pod = relay.pod().ok_or_else(|| Failure::NoPod(format!("{}/{}", relay.namespace, relay.name)))?;
    let namespace = format!("--namespace={}", relay.namespace);
    let exec = ["exec", &namespace, &pod.name, "--container", CONTAINER, "--", "outbox-relay"];
    kubectl.show(&[&exec, arguments, &["--config", &pod.config]].concat())
}

fn relay(resource: &Value, pods: &Value) -> Relay {
    let (namespace, name) = (text(resource, "/metadata/namespace"), text(resource, "/metadata/name"));
    let conditions = resource.pointer("/status/conditions").and_then(Value::as_array);
    let is_ready = |condition: &&Value| text(condition, "/type") == "Ready";
    let ready = conditions.into_iter().flatten().find(is_ready);
    let shown = |pointer: &str| ready.map_or_else(|| "-".to_owned(), |ready| text(ready, pointer));
    let pods = items(pods).filter(|pod| {
        text(pod, "/metadata/namespace") == namespace
            && pod.pointer("/metadata/labels").and_then(|labels| labels.get(INSTANCE))
                == Some(&name.clone().into())
    });
    Relay {
        ready: shown("/status"),
        reason: shown("/reason"),
        topics: resource.pointer("/status/topicCount").and_then(Value::as_u64).unwrap_or_default(),
        report: Err("no pod is running".to_owned()),
        pods: pods.filter_map(running).collect(),
        namespace,
        name,
    }
}

fn running(pod: &Value) -> Option<Pod> {
    if text(pod, "/status/phase") != "Running" || pod.pointer("/metadata/deletionTimestamp").is_some() {
        return None;
    }
    #[derive(Deserialize)]
    struct Container {
        name: String,
        #[serde(default)]
        args: Vec<String>,
    }
    let containers: Vec<Container> = serde_json::from_value(pod.pointer("/spec/containers")?.clone()).ok()?;
    let args = containers.into_iter().find(|container| container.name == CONTAINER)?.args;
    let config = args.iter().skip_while(|argument| *argument != "--config").nth(1)?.clone();
    Some(Pod { name: text(pod, "/metadata/name"), config })
}

/// Asks all pods, several at a time: a cluster may have hundreds.
fn ask(kubectl: &Kubectl, relays: &mut [Relay]) {
    for some in relays.chunks_mut(AT_ONCE) {
        thread::scope(|scope| {
            for relay in some {
                scope.spawn(move || report(kubectl, relay));
            }
        });
    }
}

fn report(kubectl: &Kubectl, relay: &mut Relay) {
    for pod in &relay.pods {
        let path =
            format!("/api/v1/namespaces/{}/pods/{}:{ADMIN_PORT}/proxy/status", relay.namespace, pod.name);
        match kubectl.json(&["get", "--raw", &path]) {
            Ok(status) => {
                let is_active = text(&status, "/role") == "active";
                if is_active || relay.report.is_err() {
                    relay.report = Ok(Report { pod: pod.name.clone(), status });
                }
                if is_active {
                    return;
                }
            }
            Err(failure) if relay.report.is_err() => relay.report = Err(failure.to_string()),
            Err(_) => {}
        }
    }
}

fn items(list: &Value) -> impl Iterator<Item = &Value> {
    list.get("items").and_then(Value::as_array).into_iter().flatten()
}

fn text(value: &Value, pointer: &str) -> String {
    value.pointer(pointer).and_then(Value::as_str).unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn pod(name: &str, namespace: &str, instance: &str, phase: &str) -> Value {
        json!({
            "metadata": {"name": name, "namespace": namespace, "labels": {INSTANCE: instance}},
            "spec": {"containers": [
                {"name": "proxy"},
                {"name": "relay", "args": ["run", "--log-format", "json", "--config", "/etc/relay.yaml"]},
            ]},
            "status": {"phase": phase},
        })
    }

    #[test]
    fn a_relay_has_the_running_pods_of_its_namespace_and_name() {
        let pods = json!({"items": [
            pod("a", "shop", "orders", "Running"),
            pod("b", "shop", "orders", "Pending"),
            pod("c", "shop", "payments", "Running"),
            pod("d", "billing", "orders", "Running"),
        ]});
        let resource = json!({"metadata": {"namespace": "shop", "name": "orders"}});
        let relay = relay(&resource, &pods);
        assert_eq!((relay.ready.as_str(), relay.topics), ("-", 0), "not reconciled yet");
        let pod = relay.pod().unwrap();
        assert_eq!((pod.name.as_str(), pod.config.as_str(), relay.pods.len()), ("a", "/etc/relay.yaml", 1));
    }

    #[test]
    fn commands_run_in_the_pod_that_delivers() {
        let pods = json!({"items": [
            pod("a", "shop", "orders", "Running"),
            pod("b", "shop", "orders", "Running"),
        ]});
        let resource = json!({"metadata": {"namespace": "shop", "name": "orders"}});
        let mut relay = relay(&resource, &pods);
        relay.report = Ok(Report { pod: "b".to_owned(), status: json!({"lagSeconds": 1.5}) });
        assert_eq!((relay.pod().unwrap().name.as_str(), relay.lag_seconds()), ("b", Some(1.5)));
    }
}
