//! The Kafka side: brokers, routing, delivery.

use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::sasl::Sasl;
use super::secrets::{CertificateSecretRef, CredentialsSecretRef, Tls};

/// `host:port`, IPv6 addresses in brackets, separated by commas.
const BROKERS: &str = r"^\s*(\[[0-9a-fA-F:]+\]|[^,:\s]+):[1-9][0-9]{0,4}(\s*,\s*(\[[0-9a-fA-F:]+\]|[^,:\s]+):[1-9][0-9]{0,4})*\s*$";

/// Where records go.
#[derive(KubeSchema, Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Sink {
    /// The Kafka cluster.
    pub kafka: KafkaSink,
}

/// A Kafka cluster.
#[derive(KubeSchema, Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("!has(self.sasl) || !(self.sasl.mechanism in ['PLAIN', 'OAUTHBEARER', 'AWS_MSK_IAM']) || self.tls.mode != 'disable'")
        .message("PLAIN, OAUTHBEARER and AWS_MSK_IAM show the password or token to anyone on the network path: use TLS, or SCRAM-SHA-256 or SCRAM-SHA-512"),
    validation = Rule::new("!has(self.adminCredentialsSecretRef) || !has(self.sasl) || has(self.sasl.credentialsSecretRef)")
        .message("adminCredentialsSecretRef needs sasl.credentialsSecretRef: leave it out where only the relay's pods have credentials"),
    validation = Rule::new("has(self.bootstrapServers) != has(self.clusterRef)")
        .message("give either bootstrapServers, or clusterRef, which stands for a listener of Strimzi's Kafka"),
    validation = Rule::new("!has(self.clusterRef) || !has(self.clusterRef.namespace) || has(self.tls.caSecretRef) || \
        self.tls.mode == 'disable' || self.tls.mode == 'require'")
        .message("no Secret is read in another namespace: copy <cluster>-cluster-ca-cert, and name the copy in tls.caSecretRef"),
    validation = Rule::new("!has(self.userRef) || !has(self.sasl)")
        .message("userRef stands for sasl: give one of the two"),
    validation = Rule::new("!has(self.userRef) || !has(self.tls.certificateSecretRef)")
        .message("userRef stands for tls.certificateSecretRef: give one of the two"),
    validation = Rule::new("!has(self.adminCredentialsSecretRef) || has(self.sasl) || has(self.userRef)")
        .message("adminCredentialsSecretRef needs sasl, whose mechanism it is used with"),
    validation = Rule::new("!has(self.adminCertificateSecretRef) || !has(self.sasl)")
        .message("with sasl, brokers know a client by its credentials: use adminCredentialsSecretRef"),
    validation = Rule::new("!has(self.adminCertificateSecretRef) || self.tls.mode != 'disable'")
        .message("adminCertificateSecretRef is not used without TLS: set another tls.mode, or leave it out"),
)]
pub struct KafkaSink {
    /// A listener of a Kafka of Strimzi, in place of `bootstrapServers`. It stands for the CA of the cluster, too, where `tls` has none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cluster_ref: Option<KafkaClusterRef>,
    /// A KafkaUser of Strimzi in the namespace of this resource, in place of `sasl` or `tls.certificateSecretRef`, whichever its authentication
    /// needs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user_ref: Option<KafkaUserRef>,
    /// `host:port` of brokers to begin with, separated by commas.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 1024), regex(pattern = BROKERS))]
    pub bootstrap_servers: Option<String>,
    /// How connections are protected.
    #[serde(default)]
    pub tls: Tls,
    /// SASL authentication of the relay. Without it, brokers know the relay by its client certificate, or not at all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sasl: Option<Sasl>,
    /// Credentials of a SASL user, or of a client of the token endpoint, that may create and configure topics. Only the operator uses it.
    /// Without it the relay's are used.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub admin_credentials_secret_ref: Option<CredentialsSecretRef>,
    /// The same for brokers that know clients by certificate: the client certificate of a user that may create and configure topics.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub admin_certificate_secret_ref: Option<CertificateSecretRef>,
    /// Compression of record batches.
    #[serde(default)]
    pub compression: Compression,
    /// Milliseconds a batch waits to fill. 0 is best for latency: under load batches fill during the round trip anyway.
    #[serde(default)]
    #[schemars(range(min = 0, max = 5000))]
    pub linger_ms: i32,
    /// Largest record in bytes; at most the topics' `max.message.bytes`.
    #[serde(default = "max_message_bytes")]
    #[schemars(range(min = 1000, max = 100_000_000))]
    pub max_message_bytes: i32,
    /// Producer connections; partitions are spread over them.
    #[serde(default = "one")]
    #[schemars(range(min = 1, max = 16))]
    pub producers: i32,
}

/// A listener of a Kafka of Strimzi (`kafka.strimzi.io`).
#[derive(KubeSchema, Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct KafkaClusterRef {
    /// Name of the Kafka.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
    /// Its namespace; the one of this resource, when not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 63))]
    pub namespace: Option<String>,
    /// Name of the listener.
    #[schemars(length(min = 1, max = 63))]
    pub listener: String,
}

/// A KafkaUser of Strimzi.
#[derive(KubeSchema, Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct KafkaUserRef {
    /// Name of the KafkaUser. Its authentication is `scram-sha-512` or `tls`.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
}

/// Compression of record batches.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Compression {
    /// None: small batches gain nothing from it.
    #[default]
    None,
    /// Cheap and quick.
    Lz4,
    /// Smaller, for more CPU.
    Zstd,
}

/// Which topic an event goes to.
#[derive(KubeSchema, Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Routing {
    /// Column whose text selects the topic.
    #[serde(default = "by_field")]
    #[schemars(length(min = 1, max = 63))]
    pub by_field: String,
    /// Regular expression over that text; it must match the whole of it.
    #[serde(default = "regex")]
    #[schemars(length(min = 1, max = 1024))]
    pub regex: String,
    /// The topic, with `${name}` for the groups of the expression.
    #[serde(default = "replacement")]
    #[schemars(length(min = 1, max = 1024))]
    pub replacement: String,
}

impl Default for Routing {
    fn default() -> Self {
        Routing { by_field: by_field(), regex: regex(), replacement: replacement() }
    }
}

/// Limits of what is in flight, and what happens to rows that cannot be delivered.
#[derive(KubeSchema, Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("self.onPoison != 'DeadLetter' || has(self.deadLetterTopic)")
        .message("onPoison: DeadLetter needs deadLetterTopic"),
    validation = Rule::new("!has(self.deadLetterTopic) || (self.deadLetterTopic != '.' && self.deadLetterTopic != '..')")
        .message("'.' and '..' are no names of topics"),
)]
pub struct Delivery {
    /// Records sent and not acknowledged at most.
    #[serde(default = "max_in_flight_events")]
    #[schemars(range(min = 1, max = 1_000_000))]
    pub max_in_flight_events: i32,
    /// Their bytes at most: bounds the relay's memory.
    #[serde(default = "max_in_flight_bytes")]
    #[schemars(range(min = 65_536, max = 4_294_967_296_i64))]
    pub max_in_flight_bytes: i64,
    /// What happens to a row that can never be delivered: delivery stops behind it (Stop), or it goes to the dead-letter topic
    /// (DeadLetter).
    #[serde(default)]
    pub on_poison: OnPoison,
    /// The dead-letter topic.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 249), regex(pattern = "^[a-zA-Z0-9._-]+$"))]
    pub dead_letter_topic: Option<String>,
}

impl Default for Delivery {
    fn default() -> Self {
        Delivery {
            max_in_flight_events: max_in_flight_events(),
            max_in_flight_bytes: max_in_flight_bytes(),
            on_poison: OnPoison::default(),
            dead_letter_topic: None,
        }
    }
}

/// What happens to a row that can never be delivered.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
pub enum OnPoison {
    /// Delivery stops behind it until you correct the cause.
    #[default]
    Stop,
    /// It becomes a record of the dead-letter topic, and delivery continues.
    DeadLetter,
}

// The relay's own defaults; a test compares them.

fn max_message_bytes() -> i32 {
    1_000_000
}

fn one() -> i32 {
    1
}

fn max_in_flight_events() -> i32 {
    8_192
}

fn max_in_flight_bytes() -> i64 {
    16 * 1024 * 1024
}

fn by_field() -> String {
    "aggregatetype".into()
}

fn regex() -> String {
    "(?<routedByValue>.*)".into()
}

fn replacement() -> String {
    "outbox.event.${routedByValue}".into()
}
