//! Configuration: one YAML file with a format version, environment overrides, all of it checked before anything
//! starts. Secrets come from files or the environment and have no place in the YAML.

mod access;
mod files;
mod kafka_access;
mod load;
mod sasl;
mod schema;
mod secret;

pub use access::{Access, ChannelBinding, SourceTls, TlsMode};
pub use files::ReadFile;
pub use kafka_access::{SinkAccess, SinkTls};
pub use load::{ConfigError, ENV_PREFIX, FORMAT_VERSION, PASSWORD_ENV, SINK_PASSWORD_ENV};
pub(crate) use sasl::is_loopback;
pub use sasl::{
    AwsMskIam, ClientCredentials, Oauthbearer, Sasl, SaslCredentials, TokenCredentials, TokenEndpoint,
    TokenSource, UserPassword,
};
pub use schema::{
    AdminConfig, Compression, Config, CreationPolicy, Delivery, Failover, HeartbeatConfig, OnGap, OnPoison,
    Publication, Retention, Shutdown, Sink, Slot, Source, StartAt, TableName, quote,
};
pub use secret::Secret;

pub use crate::routing::rule::Routing;
