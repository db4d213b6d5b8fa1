//! The relay's pods: what they run, what they see, and what a resource overrides of them.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{
    Affinity, Capabilities, ConfigMapVolumeSource, Container, ContainerPort, EnvVar, HTTPGetAction,
    PodAffinityTerm, PodAntiAffinity, PodSecurityContext, PodSpec, PodTemplateSpec, Probe,
    ResourceRequirements, SeccompProfile, SecurityContext, Volume, VolumeMount, WeightedPodAffinityTerm,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use kube::api::ObjectMeta;
use serde_json::Value;

use super::configuration::{ADMIN_PORT, Invalid};
use super::configuration_file::{FOLDER, NAME};
use super::files::mounted;
use super::naming::{CONTAINER, labels, object_name, own_labels, selector};
use super::pod_overrides;
use crate::digest::ConfigurationDigest;
use crate::resource::{LogLevel, OutboxRelay};

/// Longer than the relay takes from the signal to its end (`spec.shutdown.graceSeconds`): it ends before it is killed.
const TERMINATION_MARGIN_SECONDS: i64 = 5;
/// Any but root; the image defines no user.
const USER: i64 = 65_532;
/// What a relay that has nothing to do but 1,000 events per second needs, measured in docs/PERFORMANCE.md, with room: a pod that requests
/// nothing is the first that its node evicts, and a namespace with a quota refuses it.
const REQUESTS: [(&str, &str); 2] = [("cpu", "100m"), ("memory", "64Mi")];
/// Name of the admin listener's port.
pub const ADMIN: &str = "admin";
/// How messages call the template for all relays.
const COMMON_TEMPLATE: &str = "the operator's --relay-pod-template";
/// Another one rolls the pods: they read their configuration when they start.
const DIGEST: &str = "outbox.dev/configuration-digest";

/// What is the same for the pods of all resources.
#[derive(Clone, Copy, Debug)]
pub struct PodDefaults<'a> {
    /// Runs where a resource names no image.
    pub image: &'a str,
    /// The user and the groups they run as.
    pub user_ids: UserIds,
    /// Laid over the operator's own template, below what a resource says.
    pub template: Option<&'a Value>,
}

/// Who chooses the numbers of users and groups that pods run as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UserIds {
    /// The operator: Kubernetes assigns no ids, and the image defines no user.
    Fixed,
    /// The cluster: OpenShift has a range for each namespace, and refuses pods that ask for another number.
    ChosenByCluster,
}

impl UserIds {
    fn number(self) -> Option<i64> {
        match self {
            UserIds::Fixed => Some(USER),
            UserIds::ChosenByCluster => None,
        }
    }
}

/// What the Deployment makes pods of: the operator's, with what the resource overrides. `digest` is of what they read when they start.
///
/// # Errors
/// What the resource overrides is no pod template, or would run another relay than the one that the resource declares.
pub fn template(
    relay: &OutboxRelay,
    defaults: PodDefaults<'_>,
    digest: &ConfigurationDigest,
) -> Result<PodTemplateSpec, Invalid> {
    let own = PodTemplateSpec {
        metadata: Some(ObjectMeta {
            labels: Some(labels(relay)),
            annotations: Some(relay.spec.relay.annotations.clone()),
            ..ObjectMeta::default()
        }),
        spec: Some(pod(relay, defaults)),
    };
    let mut template = own;
    if let Some(common) = defaults.template {
        template = lay_over(&template, common, COMMON_TEMPLATE)?;
        set_what_the_resource_says(&mut template, relay);
    }
    if let Some(overrides) = &relay.spec.relay.pod_template {
        template = lay_over(&template, overrides, "relay.podTemplate")?;
    }
    // The pods are found by the labels, and replaced when the digest changes.
    let metadata = template.metadata.get_or_insert_default();
    metadata.labels.get_or_insert_default().extend(own_labels(relay));
    metadata.annotations.get_or_insert_default().insert(DIGEST.to_owned(), digest.as_str().to_owned());
    Ok(template)
}

fn lay_over(
    own: &PodTemplateSpec,
    overrides: &Value,
    field: &'static str,
) -> Result<PodTemplateSpec, Invalid> {
    pod_overrides::lay_over(own, overrides).map_err(|problem| Invalid { field, problem })
}

/// A template for all relays must not override the fields of a resource.
fn set_what_the_resource_says(template: &mut PodTemplateSpec, relay: &OutboxRelay) {
    let workload = &relay.spec.relay;
    let metadata = template.metadata.get_or_insert_default();
    metadata.labels.get_or_insert_default().extend(workload.labels.clone());
    metadata.annotations.get_or_insert_default().extend(workload.annotations.clone());
    let Some(pod) = &mut template.spec else { return };
    if !workload.image_pull_secrets.is_empty() {
        pod.image_pull_secrets = Some(workload.image_pull_secrets.clone());
    }
    if !workload.node_selector.is_empty() {
        pod.node_selector.get_or_insert_default().extend(workload.node_selector.clone());
    }
    if !workload.tolerations.is_empty() {
        pod.tolerations = Some(workload.tolerations.clone());
    }
    if workload.affinity.is_some() {
        pod.affinity.clone_from(&workload.affinity);
    }
    if workload.priority_class_name.is_some() {
        pod.priority_class_name.clone_from(&workload.priority_class_name);
    }
    for container in pod.containers.iter_mut().filter(|container| container.name == CONTAINER) {
        if workload.image.is_some() {
            container.image.clone_from(&workload.image);
        }
        if workload.resources.is_some() {
            container.resources.clone_from(&workload.resources);
        }
    }
}

/// Whether a template for all relays can be used.
///
/// # Errors
/// What is wrong with it.
pub fn check_common(template: &Value) -> Result<(), String> {
    let container = Container { name: CONTAINER.to_owned(), ..Container::default() };
    let spec = PodSpec { containers: vec![container], ..PodSpec::default() };
    let own = PodTemplateSpec { metadata: None, spec: Some(spec) };
    pod_overrides::lay_over(&own, template).map(drop)
}

fn by_label(relay: &OutboxRelay) -> LabelSelector {
    LabelSelector { match_labels: Some(selector(relay)), match_expressions: None }
}

fn pod(relay: &OutboxRelay, defaults: PodDefaults<'_>) -> PodSpec {
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
        termination_grace_period_seconds: Some(
            i64::from(relay.spec.shutdown.grace_seconds) + TERMINATION_MARGIN_SECONDS,
        ),
        security_context: Some(PodSecurityContext {
            run_as_non_root: Some(true),
            run_as_user: defaults.user_ids.number(),
            fs_group: defaults.user_ids.number(),
            seccomp_profile: Some(SeccompProfile {
                type_: "RuntimeDefault".to_owned(),
                localhost_profile: None,
            }),
            ..PodSecurityContext::default()
        }),
        volumes: Some(secrets.iter().map(|secret| secret.volume()).chain([configuration]).collect()),
        containers: vec![container(relay, defaults.image)],
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
        mount_path: FOLDER.to_owned(),
        read_only: Some(true),
        ..VolumeMount::default()
    };
    let mounts = mounted(&relay.spec).iter().map(|secret| secret.mount()).chain([configuration]).collect();
    Container {
        name: CONTAINER.to_owned(),
        image: Some(workload.image.clone().unwrap_or_else(|| image.to_owned())),
        args: Some(
            ["run", "--log-format", "json", "--config"]
                .map(str::to_owned)
                .into_iter()
                .chain([format!("{FOLDER}/{NAME}")])
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
        resources: Some(workload.resources.clone().unwrap_or_else(resources)),
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

fn resources() -> ResourceRequirements {
    let requests = REQUESTS.map(|(name, quantity)| (name.to_owned(), Quantity(quantity.to_owned())));
    ResourceRequirements { requests: Some(requests.into()), ..ResourceRequirements::default() }
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
