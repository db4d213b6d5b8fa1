//! Topics the operator makes.

use std::collections::BTreeMap;

use kube::KubeSchema;
use serde::{Deserialize, Serialize};

use super::source::DeletionPolicy;

/// A topic that the operator makes, grows and configures. It never shrinks one, and never changes its replication factor.
#[derive(KubeSchema, Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("!has(self.partitions) || !has(oldSelf.partitions) || self.partitions >= oldSelf.partitions")
        .message("partitions never shrink: Kafka cannot, and keys would change their partition")
        .field_path(".partitions"),
    validation = Rule::new("self.name != '.' && self.name != '..'").message("'.' and '..' are no names of topics"),
)]
pub struct Topic {
    /// Its name.
    #[schemars(length(min = 1, max = 249), regex(pattern = "^[a-zA-Z0-9._-]+$"))]
    pub name: String,
    /// Number of partitions. Growing it moves keys to other partitions: events of a key are in order within each. Without it, the topic is created
    /// with the broker's default (`num.partitions`), and the number is never changed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 10_000))]
    pub partitions: Option<i32>,
    /// Replicas of each partition. Without it, the topic is created with the broker's default (`default.replication.factor`), and any number is
    /// accepted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 20))]
    pub replication_factor: Option<i32>,
    /// Configuration of the topic, for example `retention.ms`. Keys that are not listed are left as they are.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(extend("maxProperties" = 50))]
    pub config: BTreeMap<String, String>,
    /// What becomes of it when this resource is deleted, or the topic is taken from this list.
    #[serde(default = "retain")]
    pub deletion_policy: DeletionPolicy,
}

/// Consumers may still read it.
fn retain() -> DeletionPolicy {
    DeletionPolicy::Retain
}
