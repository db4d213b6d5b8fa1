//! The relay's pods.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Affinity, LocalObjectReference, ResourceRequirements, Toleration};
use k8s_openapi::api::networking::v1::{NetworkPolicyEgressRule, NetworkPolicyPeer};
use kube::KubeSchema;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// The relay's pods. One streams; a second stands by and takes over within seconds.
#[derive(KubeSchema, Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct RelayWorkload {
    /// Image of the relay; the operator's own release when not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 1024))]
    pub image: Option<String>,
    /// Secrets to pull the image with.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 10))]
    pub image_pull_secrets: Vec<LocalObjectReference>,
    /// 1, or 2 for a standby.
    #[serde(default = "one")]
    #[schemars(range(min = 1, max = 2))]
    pub replicas: i32,
    /// Resources of the container. Requests of 100m CPU and 64Mi memory when not given; `{}` for none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resources: Option<ResourceRequirements>,
    /// How much is logged.
    #[serde(default)]
    pub log_level: LogLevel,
    /// Labels of nodes that pods may run on.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub node_selector: BTreeMap<String, String>,
    /// Taints that pods tolerate.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 50))]
    pub tolerations: Vec<Toleration>,
    /// Which nodes and pods to be near to, or away from. By default two replicas prefer different nodes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub affinity: Option<Affinity>,
    /// Priority class of pods.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub priority_class_name: Option<String>,
    /// Labels of all objects of the relay, pods included: a change of them replaces the pods. The operator's own labels stay as they are.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(extend("maxProperties" = 50))]
    pub labels: BTreeMap<String, String>,
    /// Annotations of all objects of the relay, pods included: eks.amazonaws.com/role-arn, for example, is read from the service account.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(extend("maxProperties" = 50))]
    pub annotations: BTreeMap<String, String>,
    /// A network policy of the pods; none when not given. Names are always looked up (port 53), and only the admin listener can be
    /// reached.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub network_policy: Option<NetworkAccess>,
    /// A pod template (labels and annotations in metadata, the rest in spec) that is laid over the operator's own: lists are merged by
    /// name, the relay's container is called relay, and null removes a field. For what has no field here: sidecars, topology spread,
    /// proxies. What the relay is told is refused here: its command, args, configuration, Secrets, and environment variables that begin
    /// with OUTBOX_RELAY_.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "any_object")]
    pub pod_template: Option<Value>,
}

/// How the relay stops.
#[derive(KubeSchema, Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Shutdown {
    /// Seconds from the termination signal to the end of the relay at most: it waits for acknowledgements of records in flight. The
    /// pods' termination grace period is 5 s longer.
    #[serde(default = "grace_seconds")]
    #[schemars(range(min = 1, max = 3600))]
    pub grace_seconds: i32,
}

impl Default for Shutdown {
    fn default() -> Self {
        Shutdown { grace_seconds: grace_seconds() }
    }
}

/// Who reaches the pods, and whom they reach.
#[derive(KubeSchema, Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct NetworkAccess {
    /// Who may reach the admin listener: the operator, without which Streaming is Unknown, and Prometheus. Every client when empty.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 50))]
    pub ingress_from: Vec<NetworkPolicyPeer>,
    /// Destinations that the pods may reach: PostgreSQL, every Kafka broker and, for tokens, the token endpoint or AWS STS.
    #[schemars(length(min = 1, max = 50))]
    pub egress: Vec<NetworkPolicyEgressRule>,
}

impl Default for RelayWorkload {
    fn default() -> Self {
        RelayWorkload {
            image: None,
            image_pull_secrets: Vec::new(),
            replicas: one(),
            resources: None,
            log_level: LogLevel::default(),
            node_selector: BTreeMap::new(),
            tolerations: Vec::new(),
            affinity: None,
            priority_class_name: None,
            labels: BTreeMap::new(),
            annotations: BTreeMap::new(),
            network_policy: None,
            pod_template: None,
        }
    }
}

/// How much is logged.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum LogLevel {
    /// Errors only.
    Error,
    /// Warnings, too.
    Warn,
    /// What happens.
    #[default]
    Info,
    /// For developers.
    Debug,
}

/// Of the pod template: its own schema would be many times as large as all the rest.
fn any_object(_: &mut SchemaGenerator) -> Schema {
    json_schema!({"type": "object", "x-kubernetes-preserve-unknown-fields": true})
}

fn one() -> i32 {
    1
}

/// The relay's own default.
fn grace_seconds() -> i32 {
    25
}
