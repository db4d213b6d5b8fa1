//! The objects of a relay: its configuration, its pods, and what speaks of them.

use k8s_openapi::api::apps::v1::{Deployment, DeploymentSpec, DeploymentStrategy, RollingUpdateDeployment};
use k8s_openapi::api::core::v1::{
    ConfigMap, PodTemplateSpec, Service, ServiceAccount, ServicePort, ServiceSpec,
};
use k8s_openapi::api::networking::v1::{
    NetworkPolicy, NetworkPolicyEgressRule, NetworkPolicyIngressRule, NetworkPolicyPort, NetworkPolicySpec,
};
use k8s_openapi::api::policy::v1::{PodDisruptionBudget, PodDisruptionBudgetSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::configuration::{ADMIN_PORT, Invalid};
use super::configuration_file::{self, ConfigurationFile};
use super::naming::{metadata, selector};
use super::pod::{self, ADMIN, PodDefaults};
use crate::digest::WorkloadDigest;
use crate::resource::OutboxRelay;

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
    /// Who may reach the pods, and whom they may reach, where the resource says so.
    pub network_policy: Option<NetworkPolicy>,
    /// The pods.
    pub deployment: Deployment,
}

/// The objects of a relay with this configuration. Pods are replaced when it changes, and not when a Secret does: the relay
/// reads passwords and certificates again at each connect.
///
/// # Errors
/// As [`pod::template`].
pub fn workload(
    relay: &OutboxRelay,
    configuration: &ConfigurationFile,
    defaults: PodDefaults<'_>,
) -> Result<Workload, Invalid> {
    let template = pod::template(relay, defaults, &configuration.digest())?;
    Ok(Workload {
        service_account: ServiceAccount {
            metadata: metadata(relay),
            automount_service_account_token: Some(false),
            ..ServiceAccount::default()
        },
        config_map: ConfigMap {
            metadata: metadata(relay),
            data: Some([(configuration_file::NAME.to_owned(), configuration.as_str().to_owned())].into()),
            ..ConfigMap::default()
        },
        service: service(relay),
        disruption_budget: PodDisruptionBudget {
            metadata: metadata(relay),
            spec: Some(PodDisruptionBudgetSpec {
                max_unavailable: Some(IntOrString::Int(1)),
                // Relays that cannot deliver are not ready: they must not keep a node from being drained meanwhile.
                unhealthy_pod_eviction_policy: Some("AlwaysAllow".into()),
                selector: Some(by_label(relay)),
                ..PodDisruptionBudgetSpec::default()
            }),
            status: None,
        },
        network_policy: network_policy(relay),
        deployment: deployment(relay, template),
    })
}

impl Workload {
    /// Changes when anything in it changes.
    pub fn digest(&self) -> WorkloadDigest {
        // What has no JSON form would be applied in no other.
        let json = |object: serde_json::Result<String>| object.unwrap_or_default();
        let objects = [
            json(serde_json::to_string(&self.service_account)),
            json(serde_json::to_string(&self.config_map)),
            json(serde_json::to_string(&self.service)),
            json(serde_json::to_string(&self.disruption_budget)),
            json(serde_json::to_string(&self.network_policy)),
            json(serde_json::to_string(&self.deployment)),
        ];
        WorkloadDigest::of(objects.iter().map(String::as_str))
    }
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

fn deployment(relay: &OutboxRelay, template: PodTemplateSpec) -> Deployment {
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
            template,
            ..DeploymentSpec::default()
        }),
        status: None,
    }
}

/// The admin listener is all that is reached of a relay. Names are looked up wherever they are told.
fn network_policy(relay: &OutboxRelay) -> Option<NetworkPolicy> {
    let access = relay.spec.relay.network_policy.as_ref()?;
    let port = |port: IntOrString, protocol: &str| NetworkPolicyPort {
        port: Some(port),
        protocol: Some(protocol.to_owned()),
        end_port: None,
    };
    let names = ["UDP", "TCP"].map(|protocol| port(IntOrString::Int(53), protocol));
    let names = NetworkPolicyEgressRule { ports: Some(names.into()), to: None };
    Some(NetworkPolicy {
        metadata: metadata(relay),
        spec: Some(NetworkPolicySpec {
            pod_selector: Some(by_label(relay)),
            policy_types: Some(vec!["Ingress".to_owned(), "Egress".to_owned()]),
            ingress: Some(vec![NetworkPolicyIngressRule {
                from: (!access.ingress_from.is_empty()).then(|| access.ingress_from.clone()),
                ports: Some(vec![port(IntOrString::String(ADMIN.to_owned()), "TCP")]),
            }]),
            egress: Some(std::iter::once(names).chain(access.egress.clone()).collect()),
        }),
    })
}
