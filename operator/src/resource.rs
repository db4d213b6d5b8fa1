//! The custom resource `OutboxRelay`: what people write, and what the operator answers.
//!
//! Everything that can be refused without looking outside is refused by the API server: the schema has bounds and
//! defaults, and CEL rules say what belongs together and what may not change. Descriptions are what `kubectl explain`
//! shows.

mod sasl;
mod secrets;
mod sink;
mod source;
mod status;
mod topics;
mod versions;
mod workload;

use kube::{CustomResource, KubeSchema};
use serde::{Deserialize, Serialize};

pub use self::sasl::{Extension, Oauthbearer, Sasl, SaslMechanism, TokenEndpoint};
pub use self::secrets::{
    CaSecretRef, CertificateSecretRef, CredentialsSecretRef, RoleCertificateSecretRef, Tls, TlsMode, Username,
};
pub use self::sink::{
    Compression, Delivery, KafkaClusterRef, KafkaSink, KafkaUserRef, OnPoison, Routing, Sink,
};
pub use self::source::{
    ChannelBinding, CreationPolicy, DeletionPolicy, Failover, Heartbeat, OnGap, PostgresClusterRef,
    PostgresSource, PostgresTls, Publication, Retention, Slot, Source, StartAt,
};
pub use self::status::{Condition, OutboxRelayStatus, TopicStatus};
pub use self::topics::Topic;
pub use self::versions::definition;
pub use self::workload::{LogLevel, NetworkAccess, RelayWorkload, Shutdown};

/// A relay with its publication, replication slot, topics and pods.
#[derive(CustomResource, KubeSchema, Clone, Debug, PartialEq, Deserialize, Serialize)]
#[kube(
    group = "outbox.dev",
    version = "v1beta1",
    kind = "OutboxRelay",
    namespaced,
    shortname = "obr",
    category = "outbox",
    status = "OutboxRelayStatus",
    derive = "PartialEq",
    doc = "Carries committed rows of an outbox table to Kafka: declares a relay with its publication, replication slot, topics \
           and pods.",
    // Of new resources only: a rule about the name of one that exists would refuse the operator's every write, and so its end.
    validation = Rule::new("oldSelf.hasValue() || self.metadata.name.size() <= 50")
        .message("names are at most 50 characters long: those of its objects are made from it, and end at 63")
        .optional_old_self(true),
    validation = Rule::new("oldSelf.hasValue() || self.metadata.name.matches('^[a-z][-a-z0-9]*$')")
        .message("names start with a letter and have lower-case letters, digits and '-' only, and no dots: a Service is named after it")
        .optional_old_self(true),
    printcolumn(
        name = "Ready",
        type_ = "string",
        json_path = r#".status.conditions[?(@.type=="Ready")].status"#
    ),
    printcolumn(
        name = "Reason",
        type_ = "string",
        json_path = r#".status.conditions[?(@.type=="Ready")].reason"#
    ),
    printcolumn(name = "Slot", type_ = "string", json_path = ".spec.source.postgres.slot.name"),
    printcolumn(name = "Topics", type_ = "integer", json_path = ".status.topicCount"),
    printcolumn(name = "Image", type_ = "string", json_path = ".status.image", priority = 1),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("has(self.source.postgres.database) == has(oldSelf.source.postgres.database) && \
        (!has(self.source.postgres.database) || self.source.postgres.database == oldSelf.source.postgres.database)")
        .message("the database cannot change: the slot belongs to it; make another OutboxRelay")
        .field_path(".source.postgres.database"),
    validation = Rule::new("self.source.postgres.table == oldSelf.source.postgres.table")
        .message("the table cannot change: the checkpoint speaks of its rows; make another OutboxRelay")
        .field_path(".source.postgres.table"),
    validation = Rule::new("self.source.postgres.slot.name == oldSelf.source.postgres.slot.name")
        .message("the slot's name cannot change: it holds the position; make another OutboxRelay")
        .field_path(".source.postgres.slot.name"),
    validation = Rule::new("self.source.postgres.slot.failover == oldSelf.source.postgres.slot.failover")
        .message("failover counts when the slot is made, and cannot change: alter the slot, as docs/OUTBOX.md shows")
        .field_path(".source.postgres.slot.failover"),
    validation = Rule::new("self.source.postgres.publication.name == oldSelf.source.postgres.publication.name")
        .message("the publication's name cannot change: rows would be missing; make another OutboxRelay")
        .field_path(".source.postgres.publication.name"),
    validation = Rule::new("has(self.source.eventSource) == has(oldSelf.source.eventSource) && \
        (!has(self.source.eventSource) || self.source.eventSource == oldSelf.source.eventSource)")
        .message("eventSource cannot change: the relay knows its own records by it"),
    validation = Rule::new("!has(self.delivery.deadLetterTopic) || self.delivery.deadLetterTopic != self.routing.replacement")
        .message("events would be routed to deadLetterTopic, which takes none: change routing.replacement"),
    validation = Rule::new("size(self.topics) == 0 || !has(self.sink.kafka.sasl) || has(self.sink.kafka.sasl.credentialsSecretRef)")
        .message("only the relay's pods have credentials for Kafka, so the operator cannot create topics: create them yourself, and leave topics empty"),
)]
pub struct OutboxRelaySpec {
    /// Where rows come from.
    pub source: Source,
    /// Where records go.
    pub sink: Sink,
    /// Topics that the operator creates and keeps as they are declared here. May be empty: then another tool manages the topics, for
    /// example Strimzi.
    #[serde(default)]
    #[schemars(length(max = 200), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["name"]))]
    pub topics: Vec<Topic>,
    /// Which topic an event goes to: the rule of Debezium's outbox event router.
    #[serde(default)]
    pub routing: Routing,
    /// Limits of what is in flight, and what happens to rows that cannot be delivered.
    #[serde(default)]
    pub delivery: Delivery,
    /// How long delivered rows stay in the outbox table.
    #[serde(default)]
    pub retention: Retention,
    /// The probe that the relay sends through the replication stream.
    #[serde(default)]
    pub heartbeat: Heartbeat,
    /// How the relay stops.
    #[serde(default)]
    pub shutdown: Shutdown,
    /// The relay's pods.
    #[serde(default)]
    pub relay: RelayWorkload,
    /// Stops delivery: no pods run. Everything else stays as it is, and PostgreSQL retains WAL for the slot meanwhile.
    #[serde(default)]
    pub suspend: bool,
}

impl OutboxRelaySpec {
    /// Of the topics that are declared.
    pub fn topic_names(&self) -> Vec<String> {
        self.topics.iter().map(|topic| topic.name.clone()).collect()
    }

    /// Whether something outside Kubernetes is deleted with the resource.
    pub fn deletes_something(&self) -> bool {
        let deletes_topic = |topic: &Topic| topic.deletion_policy == DeletionPolicy::Delete;
        self.deletes_slot() || self.deletes_publication() || self.topics.iter().any(deletes_topic)
    }

    /// A slot that another tool creates is not the operator's to drop.
    pub fn deletes_slot(&self) -> bool {
        let slot = &self.source.postgres.slot;
        slot.deletion_policy == DeletionPolicy::Delete && slot.creation_policy == CreationPolicy::IfMissing
    }

    /// Whether a publication that the operator has created is dropped.
    pub fn deletes_publication(&self) -> bool {
        self.source.postgres.publication.deletion_policy == DeletionPolicy::Delete
    }
}
