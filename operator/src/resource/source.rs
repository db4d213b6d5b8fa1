//! The PostgreSQL side.

use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::secrets::{CredentialsSecretRef, RoleCertificateSecretRef, Tls};

/// Where rows come from.
#[derive(KubeSchema, Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("self.onGap == 'Stop' || self.postgres.slot.creationPolicy == 'IfMissing'")
        .message("onGap Refill replaces a lost slot: set postgres.slot.creationPolicy to IfMissing, or onGap to Stop"),
)]
pub struct Source {
    /// The database with the outbox table.
    pub postgres: PostgresSource,
    /// What is delivered first, on the first start: the rows that are in the table already (Table), or only what is committed
    /// from then on (Now).
    #[serde(default)]
    pub start: StartAt,
    /// What the relay does when the slot was lost or advanced by another client, so that rows may be missing in Kafka: it stops (Stop), or
    /// replaces the slot and delivers the missing rows from the table (Refill).
    #[serde(default)]
    pub on_gap: OnGap,
    /// `ce_source` of every record, a URI-reference; `/<database>/<table>`, percent-encoded, when not given. No two relays may write to one topic under one name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 1024))]
    pub event_source: Option<String>,
}

/// A PostgreSQL database, version 15 or newer, with `wal_level=logical`.
#[derive(KubeSchema, Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("has(self.host) != has(self.clusterRef)")
        .message("give either host, or clusterRef, which stands for the host of a CloudNativePG Cluster"),
    validation = Rule::new("has(self.database) || has(self.clusterRef)")
        .message("database is required; only a clusterRef can stand for it"),
    validation = Rule::new("!has(self.clusterRef) || self.port == 5432")
        .message("the port of a CloudNativePG Cluster is 5432: leave port out, or give host in place of clusterRef"),
    validation = Rule::new("!has(self.clusterRef) || !has(self.clusterRef.role) || !(has(self.credentialsSecretRef) || has(self.username))")
        .message("clusterRef.role stands for the role and its Secret: leave out credentialsSecretRef and username, or role"),
    validation = Rule::new("has(self.credentialsSecretRef) || has(self.username) || has(self.clusterRef)")
        .message("credentialsSecretRef is required; for a role that logs in with its certificate alone, or with passwordFile, set username"),
    validation = Rule::new("!has(self.username) || !has(self.credentialsSecretRef)")
        .message("username is for a role without a password: beside one, set credentialsSecretRef.username or usernameKey"),
    validation = Rule::new("!has(self.username) || has(self.tls.certificateSecretRef) || has(self.passwordFile)")
        .message("username is for a role without a Secret: set tls.certificateSecretRef for one that logs in with its certificate alone, or passwordFile"),
    validation = Rule::new("!has(self.passwordFile) || has(self.username)")
        .message("passwordFile takes the place of credentialsSecretRef: leave that out, and set username"),
    validation = Rule::new("!has(self.passwordFile) || has(self.adminCredentialsSecretRef) || has(self.adminCertificateSecretRef)")
        .message("the operator does not have passwordFile, which is in the relay's pods: set adminCredentialsSecretRef or adminCertificateSecretRef"),
    validation = Rule::new("!has(self.username) || has(self.passwordFile) || self.tls.channelBinding == 'prefer'")
        .message("channelBinding binds a password's proof to the TLS connection: without a password leave it at prefer"),
    validation = Rule::new("!has(self.adminCertificateSecretRef) || !has(self.adminCredentialsSecretRef)")
        .message("give either adminCredentialsSecretRef or adminCertificateSecretRef"),
    validation = Rule::new("!has(self.adminCertificateSecretRef) || self.tls.mode != 'disable'")
        .message("adminCertificateSecretRef is not used without TLS: set another tls.mode, or leave it out"),
)]
pub struct PostgresSource {
    /// A Cluster of CloudNativePG in the namespace of this resource, in place of `host`. It stands for what is not given here: the database and the
    /// Secret of the application's user, and the CA of the server.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cluster_ref: Option<PostgresClusterRef>,
    /// Host names or addresses, separated by commas. They are tried in order; the first that takes writes is used.
    // A path would be a Unix socket, of the operator's own machine to begin with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 1024), regex(pattern = "^[^/]+$"))]
    pub host: Option<String>,
    /// Port of the hosts that do not name one.
    #[serde(default = "postgres_port")]
    #[schemars(range(min = 1, max = 65535))]
    pub port: i32,
    /// The database. Cannot change. Without it, the one that CloudNativePG has created for the application.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 63))]
    pub database: Option<String>,
    /// How connections are protected.
    #[serde(default)]
    pub tls: PostgresTls,
    /// Credentials of the relay's role, which needs LOGIN, REPLICATION, and the grants that docs/OUTBOX.md lists. The pods get the
    /// password as a file.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub credentials_secret_ref: Option<CredentialsSecretRef>,
    /// The relay's role, where it authenticates with `tls.certificateSecretRef` alone, or with the password in `passwordFile`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 63))]
    pub username: Option<String>,
    /// Path of a file in the relay's pods with the password of `username`, which another process renews: a sidecar for the IAM
    /// authentication of Amazon RDS, Cloud SQL or Azure, which `relay.podTemplate` adds. The relay reads it for each connection. The
    /// operator does not have the file and needs credentials of an administrator.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 2, max = 1024), regex(pattern = "^/"))]
    pub password_file: Option<String>,
    /// Credentials of a role for what the relay's may not do: to create the publication (owner of the table) and, when this resource is
    /// deleted, to drop the slot (REPLICATION) and delete the relay's row (DELETE on the checkpoint table). Only the operator uses it. Without
    /// it the relay's role is used.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub admin_credentials_secret_ref: Option<CredentialsSecretRef>,
    /// The same for a role that logs in with a certificate alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub admin_certificate_secret_ref: Option<RoleCertificateSecretRef>,
    /// The outbox table, as `schema.table`. Cannot change.
    #[serde(default = "outbox_table")]
    #[schemars(length(max = 127), regex(pattern = r"^[^.]{1,63}\.[^.]{1,63}$"))]
    pub table: String,
    /// The publication that the slot reads.
    pub publication: Publication,
    /// The replication slot.
    pub slot: Slot,
}

/// A Cluster of CloudNativePG (`postgresql.cnpg.io/v1`).
#[derive(KubeSchema, Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct PostgresClusterRef {
    /// Name of the Cluster.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
    /// The relay's role: one of the Cluster's `spec.managed.roles`, with a `passwordSecret`. Without it, the application's user.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 63))]
    pub role: Option<String>,
}

/// How connections to PostgreSQL are protected.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("self.channelBinding != 'require' || self.mode != 'disable'")
        .message("channelBinding: require needs TLS: set another mode, or leave channelBinding at prefer"),
)]
pub struct PostgresTls {
    /// As for Kafka, with the same rules.
    #[serde(flatten)]
    pub tls: Tls,
    /// SCRAM channel binding of the replication connection: where both sides support it (prefer), or always (require), so that a man in the middle
    /// cannot use the authentication.
    #[serde(default)]
    pub channel_binding: ChannelBinding,
}

/// SCRAM channel binding.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum ChannelBinding {
    /// Where both sides support it.
    #[default]
    Prefer,
    /// Always.
    Require,
}

/// The publication that the slot reads: inserts of the outbox table, via its root.
#[derive(KubeSchema, Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Publication {
    /// Its name. Cannot change.
    #[schemars(length(min = 1, max = 63))]
    pub name: String,
    /// Whether the operator creates it when it is missing (IfMissing), or you create it (Never).
    #[serde(default)]
    pub creation_policy: CreationPolicy,
    /// What becomes of it when this resource is deleted.
    #[serde(default = "retain")]
    pub deletion_policy: DeletionPolicy,
}

/// The replication slot. It retains WAL until the relay has delivered it.
#[derive(KubeSchema, Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Slot {
    /// Its name. Cannot change.
    #[schemars(length(min = 1, max = 63), regex(pattern = "^[a-z0-9_]+$"))]
    pub name: String,
    /// Whether the relay creates it on its first start (IfMissing), or you create it (Never). A slot that was lost is
    /// replaced only with onGap Refill.
    #[serde(default)]
    pub creation_policy: CreationPolicy,
    /// What happens to it when this resource is deleted. A slot that is retained and not read fills the primary's disk. One that
    /// you create (creationPolicy Never) is never dropped.
    #[serde(default = "delete")]
    pub deletion_policy: DeletionPolicy,
    /// Whether standbys keep a copy of a slot that the relay creates, so that delivery continues when one of them is promoted. Auto: where the
    /// server supports it (PostgreSQL 17 and newer). Cannot change: it applies when the slot is created.
    #[serde(default)]
    pub failover: Failover,
}

/// Whether a slot goes along with a failover.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
pub enum Failover {
    /// Where the server can.
    #[default]
    Auto,
    /// It does not.
    Never,
}

/// How long delivered rows stay in the outbox table.
#[derive(KubeSchema, Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Retention {
    /// Hours. Partitions that ended longer ago are dropped once every relay has delivered all of their rows.
    #[serde(default = "keep_hours")]
    #[schemars(range(min = 1, max = 8784))]
    pub keep_hours: i32,
    /// For how many hours ahead partitions are made.
    #[serde(default = "keep_hours")]
    #[schemars(range(min = 1, max = 8784))]
    pub ahead_hours: i32,
}

impl Default for Retention {
    fn default() -> Self {
        Retention { keep_hours: keep_hours(), ahead_hours: keep_hours() }
    }
}

/// The probe that the relay sends through the replication stream.
#[derive(KubeSchema, Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Heartbeat {
    /// Seconds between two heartbeats; 0 sends none. The age of the last one is how the relay notices a stream that is silent although
    /// the server has something to send.
    #[serde(default = "interval_seconds")]
    #[schemars(range(min = 0, max = 3600))]
    pub interval_seconds: i32,
}

impl Default for Heartbeat {
    fn default() -> Self {
        Heartbeat { interval_seconds: interval_seconds() }
    }
}

/// Where delivery begins on the first start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
pub enum StartAt {
    /// With the rows that are in the table.
    #[default]
    Table,
    /// With what is committed from then on.
    Now,
}

/// What happens at a gap between checkpoint and slot.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
pub enum OnGap {
    /// Delivery stops.
    #[default]
    Stop,
    /// The missing rows are delivered from the table.
    Refill,
}

/// Whether an object that is missing is made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
pub enum CreationPolicy {
    /// Create it when it is missing.
    #[default]
    IfMissing,
    /// You create it.
    Never,
}

/// What becomes of an object outside Kubernetes when its resource is deleted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
pub enum DeletionPolicy {
    /// It stays.
    Retain,
    /// It is deleted, too.
    Delete,
}

fn postgres_port() -> i32 {
    5432
}

fn outbox_table() -> String {
    "public.outbox".into()
}

/// What others may read or need is theirs to delete.
fn retain() -> DeletionPolicy {
    DeletionPolicy::Retain
}

/// A slot that is not read fills the disk of the primary.
fn delete() -> DeletionPolicy {
    DeletionPolicy::Delete
}

/// The relay's own default.
fn keep_hours() -> i32 {
    72
}

/// The relay's own default.
fn interval_seconds() -> i32 {
    10
}
