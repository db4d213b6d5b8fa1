//! The relay's pods: what they run, what they see, and what a resource overrides of them.

use std::collections::BTreeMap;

use k8s_openapi::DeepMerge;
use k8s_openapi::api::core::v1::{
    Affinity, Capabilities, ConfigMapVolumeSource, Container, ContainerPort, EnvVar, HTTPGetAction,
    PodAffinityTerm, PodAntiAffinity, PodSecurityContext, PodSpec, PodTemplateSpec, Probe, SeccompProfile,
    SecurityContext, Volume, VolumeMount, WeightedPodAffinityTerm,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use kube::api::ObjectMeta;
use serde_json::Value;

use super::configuration::{ADMIN_PORT, Invalid};
use super::files::mounted;
use super::naming::{labels, object_name, selector};
use crate::resource::{LogLevel, OutboxRelay};

/// The relay finishes what is under way within 25 s of the signal (docs/CONFIGURATION.md); the rest is for its end.
const TERMINATION_GRACE_SECONDS: i64 = 30;
/// Any but root; the image has no user of its own to rely on.
const USER: i64 = 65_532;
const CONFIGURATION_FOLDER: &str = "/etc/outbox-relay/config";
/// Name of the configuration's file.
pub const CONFIGURATION_FILE: &str = "relay.yaml";
/// Name of the admin listener's port.
pub const ADMIN: &str = "admin";
/// Another one rolls the pods: they read their configuration when they start.
const DIGEST: &str = "outbox.dev/configuration-digest";

/// What the Deployment makes pods of: the operator's, with what the resource overrides. `digest` is of what they read when they start.
///
/// # Errors
/// What the resource overrides is no pod template.
pub fn template(relay: &OutboxRelay, image: &str, digest: &str) -> Result<PodTemplateSpec, Invalid> {
    let mut template = PodTemplateSpec {
        metadata: Some(ObjectMeta {
            labels: Some(labels(relay)),
            annotations: Some([(DIGEST.to_owned(), digest.to_owned())].into()),
            ..ObjectMeta::default()
        }),
        spec: Some(pod(relay, image)),
    };
    if let Some(overrides) = overrides(relay)? {
        template.merge_from(overrides);
        // By these the pods are found.
        let metadata = template.metadata.get_or_insert_default();
        metadata.labels.get_or_insert_default().extend(labels(relay));
    }
    Ok(template)
}

/// What the resource overrides. The API server knows nothing of it, so that a field that does not exist has to be found here.
fn overrides(relay: &OutboxRelay) -> Result<Option<PodTemplateSpec>, Invalid> {
    let Some(given) = &relay.spec.relay.pod_template else { return Ok(None) };
    let invalid = |problem: String| Invalid { field: "relay.podTemplate", problem };
    let template: PodTemplateSpec =
        serde_json::from_value(given.clone()).map_err(|error| invalid(error.to_string()))?;
    let kept = serde_json::to_value(&template).map_err(|error| invalid(error.to_string()))?;
    match unknown(given, &kept) {
        Some(field) => Err(invalid(format!("there is no field {field} in a pod template"))),
        None => Ok(Some(template)),
    }
}

/// The path of a member that reading has left out. Empty ones, which are not written, are no members.
fn unknown(given: &Value, kept: &Value) -> Option<String> {
    let below = |name: String, given: &Value, kept: Option<&Value>| {
        let empty = given.is_null() || *given == serde_json::json!({}) || *given == serde_json::json!([]);
        match kept {
            None => (!empty).then_some(name),
            Some(kept) => unknown(given, kept).map(|path| format!("{name}.{path}")),
        }
    };
    match (given, kept) {
        (Value::Object(given), Value::Object(kept)) => {
            given.iter().find_map(|(name, value)| below(name.clone(), value, kept.get(name)))
        }
        (Value::Array(given), Value::Array(kept)) => given
            .iter()
            .enumerate()
            .find_map(|(index, value)| below(index.to_string(), value, kept.get(index))),
        _ => None,
    }
}

fn by_label(relay: &OutboxRelay) -> LabelSelector {
    LabelSelector { match_labels: Some(selector(relay)), match_expressions: None }
}

fn pod(relay: &OutboxRelay, image: &str) -> PodSpec {
    let workload = &relay.spec.relay;
    let secrets = mounted(&relay.spec);
    let configuration = Volume {
        name: "configuration".to_owned(),
        config_map: Some(ConfigMapVolumeSource {
            name: object_name(relay),
            ..ConfigMapVolumeSource::default()
        }),
        ..Volume::default()
    };
    let some = |list: &BTreeMap<String, String>| (!list.is_empty()).then(|| list.clone());
    PodSpec {
        service_account_name: Some(object_name(relay)),
        automount_service_account_token: Some(false),
        enable_service_links: Some(false),
        termination_grace_period_seconds: Some(TERMINATION_GRACE_SECONDS),
        security_context: Some(PodSecurityContext {
            run_as_non_root: Some(true),
            run_as_user: Some(USER),
            fs_group: Some(USER),
            seccomp_profile: Some(SeccompProfile {
                type_: "RuntimeDefault".to_owned(),
                localhost_profile: None,
            }),
            ..PodSecurityContext::default()
        }),
        volumes: Some(secrets.iter().map(|secret| secret.volume()).chain([configuration]).collect()),
        containers: vec![container(relay, image)],
        image_pull_secrets: (!workload.image_pull_secrets.is_empty())
            .then(|| workload.image_pull_secrets.clone()),
        node_selector: some(&workload.node_selector),
        tolerations: (!workload.tolerations.is_empty()).then(|| workload.tolerations.clone()),
        affinity: Some(workload.affinity.clone().unwrap_or_else(|| apart(relay))),
        priority_class_name: workload.priority_class_name.clone(),
        ..PodSpec::default()
    }
}

/// A standby on the node that died would be of no use.
fn apart(relay: &OutboxRelay) -> Affinity {
    Affinity {
        pod_anti_affinity: Some(PodAntiAffinity {
            preferred_during_scheduling_ignored_during_execution: Some(vec![WeightedPodAffinityTerm {
                weight: 100,
                pod_affinity_term: PodAffinityTerm {
                    label_selector: Some(by_label(relay)),
                    topology_key: "kubernetes.io/hostname".to_owned(),
                    ..PodAffinityTerm::default()
                },
            }]),
            ..PodAntiAffinity::default()
        }),
        ..Affinity::default()
    }
}

fn container(relay: &OutboxRelay, image: &str) -> Container {
    let workload = &relay.spec.relay;
    let configuration = VolumeMount {
        name: "configuration".to_owned(),
        mount_path: CONFIGURATION_FOLDER.to_owned(),
        read_only: Some(true),
        ..VolumeMount::default()
    };
    let mounts = mounted(&relay.spec).iter().map(|secret| secret.mount()).chain([configuration]).collect();
    Container {
        name: "relay".to_owned(),
        image: Some(workload.image.clone().unwrap_or_else(|| image.to_owned())),
        args: Some(
            ["run", "--log-format", "json", "--config"]
                .map(str::to_owned)
                .into_iter()
                .chain([format!("{CONFIGURATION_FOLDER}/{CONFIGURATION_FILE}")])
                .collect(),
        ),
        env: Some(vec![EnvVar {
            name: "RUST_LOG".to_owned(),
            value: Some(format!("{},librdkafka=off,rdkafka=off", level(workload.log_level))),
            value_from: None,
        }]),
        ports: Some(vec![ContainerPort {
            name: Some(ADMIN.to_owned()),
            container_port: ADMIN_PORT.into(),
            ..ContainerPort::default()
        }]),
        resources: workload.resources.clone(),
        volume_mounts: Some(mounts),
        liveness_probe: Some(probe("/livez", 3)),
        // A relay that cannot deliver is not restarted for it: it says why.
        readiness_probe: Some(probe("/readyz", 1)),
        security_context: Some(SecurityContext {
            allow_privilege_escalation: Some(false),
            read_only_root_filesystem: Some(true),
            capabilities: Some(Capabilities { drop: Some(vec!["ALL".to_owned()]), add: None }),
            ..SecurityContext::default()
        }),
        ..Container::default()
    }
}

fn level(level: LogLevel) -> &'static str {
    match level {
        LogLevel::Error => "error",
        LogLevel::Warn => "warn",
        LogLevel::Info => "info",
        LogLevel::Debug => "debug",
    }
}

fn probe(path: &str, failures: i32) -> Probe {
    Probe {
        http_get: Some(HTTPGetAction {
            path: Some(path.to_owned()),
            port: IntOrString::String(ADMIN.to_owned()),
            ..HTTPGetAction::default()
        }),
        period_seconds: Some(5),
        timeout_seconds: Some(3),
        failure_threshold: Some(failures),
        ..Probe::default()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_field_that_does_not_exist_is_found() {
        let found = |given: &Value| {
            let read: PodTemplateSpec = serde_json::from_value(given.clone()).unwrap();
            unknown(given, &json!(read))
        };
        assert_eq!(found(&json!({"spec": {"hostNetwork": true, "containers": [{"name": "relay"}]}})), None);
        assert_eq!(found(&json!({"metadata": {"labels": {}}, "spec": null})), None);
        assert_eq!(
            found(&json!({"spec": {"contaners": []}, "metdata": {"a": 1}})).as_deref(),
            Some("metdata")
        );
        let nested = json!({"spec": {"containers": [{"name": "a"}, {"name": "b", "enviroment": [1]}]}});
        assert_eq!(found(&nested).as_deref(), Some("spec.containers.1.enviroment"));
    }
}
