//! The shape of the configuration file. Field names are those of the `OutboxRelay` resource where both exist.

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use outbox::attribute::percent_encoded;
use serde::{Deserialize, Serialize};

use super::{Sasl, Secret, SinkAccess, SinkTls, SourceTls};
use crate::routing::rule::{Routing, Rule};

/// Maximum number of records that wait or are sent and not acknowledged. A few thousand keep a broker busy at any round-trip time worth
/// having, and each costs librdkafka about 1.5 KB besides its payload (measured), so this caps memory as well.
const DEFAULT_MAX_IN_FLIGHT_EVENTS: usize = 8_192;
/// The same in bytes, headers and overhead of each record included, so that large events cannot fill the memory either.
const DEFAULT_MAX_IN_FLIGHT_BYTES: usize = 16 * 1024 * 1024;
/// librdkafka's own default; the broker's `message.max.bytes` default is a little more.
const DEFAULT_MAX_MESSAGE_BYTES: usize = 1_000_000;
/// Rows stay for three days: longer than the outages people sleep through on a long weekend.
const DEFAULT_KEEP_HOURS: u32 = 72;
/// As often as an idle relay writes its checkpoint anyway, so it makes no server busier than it is; and a person who
/// looks at the age has an answer within the 10 s in which a fault has to show.
const DEFAULT_HEARTBEAT_SECONDS: u32 = 10;
/// Kubernetes kills after 30 s; the margin is for the signal's way and the process's end.
const DEFAULT_GRACE_SECONDS: u32 = 25;

/// Everything the relay is told.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Config {
    /// Format of this file.
    pub version: u32,
    /// Name of this relay: its row in `outbox_checkpoint`.
    pub name: String,
    /// What declares this relay. The checkpoint shows the owner of the relay that last held the slot.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub owner: String,
    /// Where rows come from.
    pub source: Source,
    /// Where records go.
    pub sink: Sink,
    /// Which topic an event goes to.
    #[serde(default)]
    pub routing: Routing,
    /// How much may be in flight.
    #[serde(default)]
    pub delivery: Delivery,
    /// Partitions of the outbox table.
    #[serde(default)]
    pub retention: Retention,
    /// The probe through the stream.
    #[serde(default)]
    pub heartbeat: HeartbeatConfig,
    /// How to stop.
    #[serde(default)]
    pub shutdown: Shutdown,
    /// Health, metrics, status.
    #[serde(default)]
    pub admin: AdminConfig,
}

impl Config {
    /// What decides where events go.
    pub fn routing_rule(&self) -> Rule {
        Rule {
            routing: self.routing.clone(),
            max_message_bytes: self.sink.max_message_bytes,
            dead_letter_topic: self.delivery.dead_letters().map(str::to_owned),
        }
    }
}

/// The PostgreSQL side.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Source {
    /// Host names or addresses separated by commas, or the directory of a Unix socket when it begins with `/`. They
    /// are tried in order, and the first that takes writes is used.
    pub host: String,
    /// Port of the hosts that do not name one; for a Unix socket the number in the socket's file name.
    #[serde(default = "default_postgres_port")]
    pub port: u16,
    /// Database that holds the outbox table.
    pub database: String,
    /// A role with LOGIN and REPLICATION.
    pub user: String,
    /// File that holds the role's password, read at each connect; the environment variable takes precedence.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub password_file: Option<PathBuf>,
    /// The password, when the environment gives it.
    #[serde(skip)]
    pub password: Option<Secret>,
    /// How the connections are protected.
    #[serde(default)]
    pub tls: SourceTls,
    /// The outbox table.
    #[serde(default)]
    pub table: TableName,
    /// The publication to read.
    pub publication: Publication,
    /// The replication slot to hold.
    pub slot: Slot,
    /// What is delivered first when there is no checkpoint yet.
    #[serde(default)]
    pub start: StartAt,
    /// What happens when the slot was lost.
    #[serde(default, skip_serializing_if = "OnGap::is_default")]
    pub on_gap: OnGap,
    /// `ce_source` of every record, a URI-reference; `/<database>/<schema>.<table>`, percent-encoded, when not given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub event_source: Option<String>,
}

/// Where delivery begins without a checkpoint. It means nothing once there is one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
pub enum StartAt {
    /// With the rows that are in the table: to leave events out has to be asked for.
    #[default]
    Table,
    /// With what is committed from now on, or where an existing slot stands.
    Now,
}

/// What the relay does when its slot was lost, so that rows may be missing in Kafka.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
pub enum OnGap {
    /// Delivery stops at the gap, until a person helps.
    #[default]
    Stop,
    /// It replaces the slot and delivers the missing rows from the table.
    Refill,
}

impl OnGap {
    /// Omitted from the file then: a relay of an earlier version does not know the field.
    fn is_default(&self) -> bool {
        *self == OnGap::default()
    }
}

/// Whether the relay may create an object that is missing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
pub enum CreationPolicy {
    /// Create it when it is missing.
    #[default]
    IfMissing,
    /// Never: you create it.
    Never,
}

/// The publication to read.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Publication {
    /// Its name.
    pub name: String,
    /// Creating one needs ownership of the table.
    #[serde(default)]
    pub creation_policy: CreationPolicy,
}

/// The replication slot to hold.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Slot {
    /// Its name: lower-case letters, digits and underscores, 63 at most.
    pub name: String,
    /// Whether the relay creates it on its first start.
    #[serde(default)]
    pub creation_policy: CreationPolicy,
    /// Whether one that the relay creates goes along with a failover.
    #[serde(default)]
    pub failover: Failover,
}

/// Whether standbys keep a copy of the slot, so that delivery continues when one of them is promoted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
pub enum Failover {
    /// Where the server can (PostgreSQL 17 and newer).
    #[default]
    Auto,
    /// No.
    Never,
}

/// The Kafka side.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Sink {
    /// `host:port` pairs, separated by commas.
    pub bootstrap_servers: String,
    /// How the connections are protected.
    #[serde(default)]
    pub tls: SinkTls,
    /// How the relay logs in; not at all when not given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sasl: Option<Sasl>,
    /// What the files of the two hold: read at the start, and again when a session begins.
    #[serde(skip)]
    pub access: SinkAccess,
    /// Compression of record batches.
    #[serde(default)]
    pub compression: Compression,
    /// How long a batch waits to fill, in milliseconds. 0 is best for latency: under load batches fill during the
    /// round trip anyway.
    #[serde(default)]
    pub linger_ms: u32,
    /// Largest record in bytes; at most the topics' `max.message.bytes`.
    #[serde(default = "default_max_message_bytes")]
    pub max_message_bytes: usize,
    /// Producer connections; partitions are spread over them. One is enough until a broker connection is the limit.
    #[serde(default = "default_producers")]
    pub producers: usize,
}

/// Compression of record batches.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
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

impl Compression {
    /// The name librdkafka knows it by.
    pub fn as_str(self) -> &'static str {
        match self {
            Compression::None => "none",
            Compression::Lz4 => "lz4",
            Compression::Zstd => "zstd",
        }
    }
}

/// What becomes of a row that cannot be delivered.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
pub enum OnPoison {
    /// Delivery stops behind it, until a person helps.
    #[default]
    Stop,
    /// It becomes a record of the dead-letter topic, and delivery continues.
    DeadLetter,
}

/// How much may be in flight between PostgreSQL and Kafka, and what happens to rows that cannot be delivered.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Delivery {
    /// Maximum number of records that wait for their partition, or are sent and not acknowledged.
    pub max_in_flight_events: usize,
    /// Maximum of their bytes: key, value, headers and overhead. A single record may always be in flight.
    pub max_in_flight_bytes: usize,
    /// What becomes of a row that cannot be delivered.
    pub on_poison: OnPoison,
    /// Where dead letters go, and are read again. No event is routed to it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dead_letter_topic: Option<String>,
}

impl Default for Delivery {
    fn default() -> Self {
        Delivery {
            max_in_flight_events: DEFAULT_MAX_IN_FLIGHT_EVENTS,
            max_in_flight_bytes: DEFAULT_MAX_IN_FLIGHT_BYTES,
            on_poison: OnPoison::default(),
            dead_letter_topic: None,
        }
    }
}

impl Delivery {
    /// The topic poison rows go to; `None` where they stop delivery.
    pub fn dead_letters(&self) -> Option<&str> {
        match self.on_poison {
            OnPoison::Stop => None,
            OnPoison::DeadLetter => self.dead_letter_topic.as_deref(),
        }
    }
}

/// Partitions of the outbox table.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Retention {
    /// How long rows stay, in hours.
    pub keep_hours: u32,
    /// For how many hours ahead partitions are made.
    pub ahead_hours: u32,
}

impl Default for Retention {
    fn default() -> Self {
        Retention { keep_hours: DEFAULT_KEEP_HOURS, ahead_hours: DEFAULT_KEEP_HOURS }
    }
}

/// The probe through the stream.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct HeartbeatConfig {
    /// Seconds between two; 0 sends none.
    pub interval_seconds: u32,
}

impl Default for HeartbeatConfig {
    fn default() -> Self {
        HeartbeatConfig { interval_seconds: DEFAULT_HEARTBEAT_SECONDS }
    }
}

/// How to stop.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Shutdown {
    /// Seconds from the signal to the end of the process at the latest.
    pub grace_seconds: u32,
}

impl Default for Shutdown {
    fn default() -> Self {
        Shutdown { grace_seconds: DEFAULT_GRACE_SECONDS }
    }
}

impl Shutdown {
    /// From the signal to the end of the process at the latest.
    pub fn grace(&self) -> Duration {
        Duration::from_secs(self.grace_seconds.into())
    }

    /// The part of it in which acknowledgements are waited for; the rest is for the last checkpoint and the end of the
    /// stream.
    pub fn drain(&self) -> Duration {
        self.grace().mul_f64(0.8)
    }
}

/// The admin listener.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct AdminConfig {
    /// Address and port.
    pub listen: SocketAddr,
}

impl Default for AdminConfig {
    fn default() -> Self {
        AdminConfig { listen: SocketAddr::from(([127, 0, 0, 1], 9100)) }
    }
}

/// A table with its schema.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(try_from = "String", into = "String")]
pub struct TableName {
    /// Schema.
    pub schema: String,
    /// Table.
    pub table: String,
}

impl Default for TableName {
    fn default() -> Self {
        TableName { schema: "public".into(), table: "outbox".into() }
    }
}

impl TryFrom<String> for TableName {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        match text.split_once('.') {
            Some((schema, table)) if !schema.is_empty() && !table.is_empty() && !table.contains('.') => {
                Ok(TableName { schema: schema.into(), table: table.into() })
            }
            _ => Err(format!(
                "'{text}' is not a table name; write it as schema.table, for example public.outbox: no quotes, and no dot in \
                 either name"
            )),
        }
    }
}

impl From<TableName> for String {
    fn from(name: TableName) -> String {
        name.to_string()
    }
}

impl fmt::Display for TableName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.schema, self.table)
    }
}

impl TableName {
    /// The name as it stands in SQL.
    pub fn quoted(&self) -> String {
        format!("{}.{}", quote(&self.schema), quote(&self.table))
    }

    /// Another relation of the same schema, as it stands in SQL.
    pub fn sibling(&self, name: &str) -> String {
        format!("{}.{}", quote(&self.schema), quote(name))
    }
}

/// An SQL identifier in double quotes.
pub fn quote(identifier: &str) -> String {
    format!("\"{}\"", identifier.replace('"', "\"\""))
}

impl Source {
    /// `ce_source` of every record.
    pub fn event_source(&self) -> String {
        self.event_source.clone().unwrap_or_else(|| {
            let TableName { schema, table } = &self.table;
            let [database, schema, table] = [&self.database, schema, table].map(|name| percent_encoded(name));
            format!("/{database}/{schema}.{table}")
        })
    }
}

fn default_postgres_port() -> u16 {
    5432
}

fn default_max_message_bytes() -> usize {
    DEFAULT_MAX_MESSAGE_BYTES
}

fn default_producers() -> usize {
    1
}
