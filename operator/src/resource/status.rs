//! What the operator answers.

pub use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::KubeSchema;
use serde::{Deserialize, Serialize};

use super::source::DeletionPolicy;

/// What the operator has found and done. Numbers that change continuously are metrics, not status.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct OutboxRelayStatus {
    /// The generation of the specification that the conditions speak of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// Ready sums the others up: ReferencesResolved, DatabaseReachable, KafkaReachable, PublicationReady, SlotReady, TopicsReady,
    /// WorkloadAvailable, Streaming, Suspended; Reconciling and Stalled as kstatus reads them. FailoverReady is apart: it is about the next
    /// failover of the database, not about now.
    #[serde(default)]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"]))]
    pub conditions: Vec<Condition>,
    /// The database as it is, not as it is named: system identifier and database. Two resources for one slot are told by it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub database_identity: Option<String>,
    /// The Kafka cluster as it calls itself. Two resources for one topic are told by it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kafka_identity: Option<String>,
    /// Number of topics declared.
    #[serde(default)]
    pub topic_count: i32,
    /// Topics this resource has made or taken over.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["name"]))]
    pub topics: Vec<TopicStatus>,
    /// Image the pods run, as the kubelet reports it; absent while none runs. During a rollout that of the ready pods.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<String>,
}

/// A topic as it was seen last.
#[derive(KubeSchema, Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct TopicStatus {
    /// Its name.
    pub name: String,
    /// Kafka's id of the topic: one that is recreated under the same name has another.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// Number of its partitions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub partitions: Option<i32>,
    /// Replicas of each of them, where all have the same number.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub replication_factor: Option<i32>,
    /// Keys of its configuration that this resource has set. One that is no longer declared is given back to the broker.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub config_keys: Vec<String>,
    /// What becomes of it when it is taken from the list.
    #[serde(default = "retain")]
    pub deletion_policy: DeletionPolicy,
}

fn retain() -> DeletionPolicy {
    DeletionPolicy::Retain
}
