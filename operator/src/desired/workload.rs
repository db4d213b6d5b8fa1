//! The objects of a relay: its configuration, its pods, and what speaks of them.

use std::collections::BTreeMap;

use k8s_openapi::api::apps::v1::{Deployment, DeploymentSpec, DeploymentStrategy, RollingUpdateDeployment};
use k8s_openapi::api::core::v1::{
    Affinity, Capabilities, ConfigMap, ConfigMapVolumeSource, Container, ContainerPort, EnvVar,
    HTTPGetAction, PodAffinityTerm, PodAntiAffinity, PodSecurityContext, PodSpec, PodTemplateSpec, Probe,
    SeccompProfile, SecurityContext, Service, ServiceAccount, ServicePort, ServiceSpec, Volume, VolumeMount,
    WeightedPodAffinityTerm,
};
use k8s_openapi::api::policy::v1::{PodDisruptionBudget, PodDisruptionBudgetSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use kube::api::ObjectMeta;
use sha2::{Digest, Sha256};

use super::configuration::ADMIN_PORT;
use super::files::mounted;
use super::naming::{labels, metadata, object_name, selector};
use crate::resource::{LogLevel, OutboxRelay};

/// The relay finishes what is under way within 25 s of the signal (docs/CONFIGURATION.md); the rest is for its end.
const TERMINATION_GRACE_SECONDS: i64 = 30;
/// Any but root; the image has no user of its own to rely on.
const USER: i64 = 65_532;
const CONFIGURATION_FOLDER: &str = "/etc/outbox-relay/config";
const CONFIGURATION_FILE: &str = "relay.yaml";
const ADMIN: &str = "admin";
/// Another one rolls the pods: they read their configuration when they start.
const DIGEST: &str = "outbox.dev/configuration-digest";

/// Every object of a relay.
#[derive(Clone, Debug, PartialEq)]
pub struct Workload {
    /// Runs the pods, and may do nothing.
    pub service_account: ServiceAccount,
    /// The relay's configuration.
    pub config_map: ConfigMap,
    /// Metrics and status.
    pub service: Service,
    /// One pod at a time may be evicted.
    pub disruption_budget: PodDisruptionBudget,
    /// The pods.
    pub deployment: Deployment,
}

/// The objects of a relay with this configuration, which is YAML. `image` runs where the resource names none; `secrets` is a digest
/// of what the pods' Secrets hold.
pub fn workload(relay: &OutboxRelay, configuration: &str, image: &str, secrets: &str) -> Workload {
    let digest = digest([configuration, secrets]);
    Workload {
        service_account: ServiceAccount {
            metadata: metadata(relay),
            automount_service_account_token: Some(false),
            ..ServiceAccount::default()
        },
        config_map: ConfigMap {
            metadata: metadata(relay),
            data: Some([(CONFIGURATION_FILE.to_owned(), configuration.to_owned())].into()),
            ..ConfigMap::default()
        },
        service: service(relay),
        disruption_budget: PodDisruptionBudget {
            metadata: metadata(relay),
            spec: Some(PodDisruptionBudgetSpec {
                max_unavailable: Some(IntOrString::Int(1)),
                selector: Some(by_label(relay)),
                ..PodDisruptionBudgetSpec::default()
            }),
            status: None,
        },
        deployment: deployment(relay, image, &digest),
    }
}

impl Workload {
    /// Changes when anything in it changes.
    pub fn digest(&self) -> String {
        // What has no JSON form would be applied in no other.
        let json = |object: serde_json::Result<String>| object.unwrap_or_default();
        let objects = [
            json(serde_json::to_string(&self.service_account)),
            json(serde_json::to_string(&self.config_map)),
            json(serde_json::to_string(&self.service)),
            json(serde_json::to_string(&self.disruption_budget)),
            json(serde_json::to_string(&self.deployment)),
        ];
        digest(objects.iter().map(String::as_str))
    }
}

/// Of texts, each told apart from the next.
pub fn digest<'a>(texts: impl IntoIterator<Item = &'a str>) -> String {
    let mut digest = Sha256::new();
    for text in texts {
        digest.update((text.len() as u64).to_be_bytes());
        digest.update(text);
    }
    digest.finalize().iter().take(16).map(|byte| format!("{byte:02x}")).collect()
}

fn by_label(relay: &OutboxRelay) -> LabelSelector {
    LabelSelector { match_labels: Some(selector(relay)), match_expressions: None }
}

/// Also pods that are not ready: their metrics are the ones that are wanted.
fn service(relay: &OutboxRelay) -> Service {
    Service {
        metadata: metadata(relay),
        spec: Some(ServiceSpec {
            selector: Some(selector(relay)),
            // A name for the pods; addresses of the cluster are for what is balanced, and there are few of them.
            cluster_ip: Some("None".to_owned()),
            publish_not_ready_addresses: Some(true),
            ports: Some(vec![ServicePort {
                name: Some(ADMIN.to_owned()),
                port: ADMIN_PORT.into(),
                target_port: Some(IntOrString::String(ADMIN.to_owned())),
                ..ServicePort::default()
            }]),
            ..ServiceSpec::default()
        }),
        status: None,
    }
}

fn deployment(relay: &OutboxRelay, image: &str, digest: &str) -> Deployment {
    let spec = &relay.spec;
    Deployment {
        metadata: metadata(relay),
        spec: Some(DeploymentSpec {
            replicas: Some(if spec.suspend { 0 } else { spec.relay.replicas }),
            selector: by_label(relay),
            // A new pod would only wait for the slot that the old one holds.
            strategy: Some(DeploymentStrategy {
                type_: Some("RollingUpdate".to_owned()),
                rolling_update: Some(RollingUpdateDeployment {
                    max_surge: Some(IntOrString::Int(0)),
                    max_unavailable: Some(IntOrString::Int(1)),
                }),
            }),
            template: PodTemplateSpec {
                metadata: Some(ObjectMeta {
                    labels: Some(labels(relay)),
                    annotations: Some([(DIGEST.to_owned(), digest.to_owned())].into()),
                    ..ObjectMeta::default()
                }),
                spec: Some(pod(relay, image)),
            },
            ..DeploymentSpec::default()
        }),
        status: None,
    }
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
