//! The relay's configuration, in the relay's own types: what it would refuse cannot be written.

use std::net::{Ipv6Addr, SocketAddr};
use std::path::Path;

use kube::ResourceExt;
use outbox_relay::config::{
    self, AdminConfig, Config, FORMAT_VERSION, HeartbeatConfig, Shutdown, SinkTls, SourceTls, TableName,
};

use super::files::{self, KAFKA, POSTGRES};
use crate::resource::{
    Compression, CreationPolicy, Delivery, Failover, KafkaSink, OnPoison, OutboxRelay, Retention, Routing,
    SaslMechanism, Source, StartAt, TlsMode,
};

/// Port of the relay's admin listener.
pub const ADMIN_PORT: u16 = 9100;

/// The resource has a value that its schema allows and the relay does not.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("spec.{field}: {problem}")]
pub struct Invalid {
    /// Below `spec`.
    pub(super) field: &'static str,
    /// What is wrong with its value.
    pub(super) problem: String,
}

/// What the relay of `relay` is told. `user` is its role, which is in a Secret; `root` is where the folders of Secrets are.
///
/// # Errors
/// Names the field that has no meaning to the relay.
pub fn configuration(relay: &OutboxRelay, user: &str, root: &Path) -> Result<Config, Invalid> {
    let spec = &relay.spec;
    Ok(Config {
        version: FORMAT_VERSION,
        name: identity(relay),
        source: source(&spec.source, user, root)?,
        sink: sink(&spec.sink.kafka, root)?,
        routing: routing(&spec.routing),
        delivery: delivery(&spec.delivery)?,
        retention: retention(&spec.retention)?,
        heartbeat: HeartbeatConfig::default(),
        shutdown: Shutdown::default(),
        // From outside the pod: probes, Prometheus and the operator.
        admin: AdminConfig { listen: SocketAddr::from((Ipv6Addr::UNSPECIFIED, ADMIN_PORT)) },
    })
}

/// The relay's name in its checkpoint: of no other resource in the cluster.
pub fn identity(relay: &OutboxRelay) -> String {
    format!("{}/{}", relay.namespace().unwrap_or_default(), relay.name_any())
}

fn source(source: &Source, user: &str, root: &Path) -> Result<config::Source, Invalid> {
    let postgres = &source.postgres;
    let [ca_file, cert_file, key_file] = files::tls(root, &POSTGRES, &postgres.tls);
    let table = TableName::try_from(postgres.table.clone())
        .map_err(|problem| Invalid { field: "source.postgres.table", problem })?;
    Ok(config::Source {
        host: postgres.host.clone(),
        port: number("source.postgres.port", postgres.port)?,
        database: postgres.database.clone(),
        user: user.to_owned(),
        password_file: Some(files::path(root, POSTGRES.login, files::PASSWORD)),
        password: None,
        tls: SourceTls {
            mode: tls_mode(postgres.tls.mode),
            ca_file,
            cert_file,
            key_file,
            ..SourceTls::default()
        },
        table,
        publication: config::Publication {
            name: postgres.publication.name.clone(),
            // The operator makes it, and knows by what policy.
            creation_policy: config::CreationPolicy::Never,
        },
        slot: config::Slot {
            name: postgres.slot.name.clone(),
            creation_policy: match postgres.slot.creation_policy {
                CreationPolicy::IfMissing => config::CreationPolicy::IfMissing,
                CreationPolicy::Never => config::CreationPolicy::Never,
            },
            failover: match postgres.slot.failover {
                Failover::Auto => config::Failover::Auto,
                Failover::Never => config::Failover::Never,
            },
        },
        start: match source.start {
            StartAt::Table => config::StartAt::Table,
            StartAt::Now => config::StartAt::Now,
        },
        event_source: source.event_source.clone(),
    })
}

fn sink(kafka: &KafkaSink, root: &Path) -> Result<config::Sink, Invalid> {
    let [ca_file, cert_file, key_file] = files::tls(root, &KAFKA, &kafka.tls);
    Ok(config::Sink {
        bootstrap_servers: kafka.bootstrap_servers.clone(),
        tls: SinkTls { mode: tls_mode(kafka.tls.mode), ca_file, cert_file, key_file },
        sasl: kafka.sasl.as_ref().map(|sasl| config::Sasl {
            mechanism: match sasl.mechanism {
                SaslMechanism::Plain => config::SaslMechanism::Plain,
                SaslMechanism::ScramSha256 => config::SaslMechanism::ScramSha256,
                SaslMechanism::ScramSha512 => config::SaslMechanism::ScramSha512,
            },
            username: None,
            username_file: Some(files::path(root, KAFKA.login, files::USERNAME)),
            password_file: Some(files::path(root, KAFKA.login, files::PASSWORD)),
            password: None,
        }),
        access: config::SinkAccess::default(),
        compression: match kafka.compression {
            Compression::None => config::Compression::None,
            Compression::Lz4 => config::Compression::Lz4,
            Compression::Zstd => config::Compression::Zstd,
        },
        linger_ms: number("sink.kafka.lingerMs", kafka.linger_ms)?,
        max_message_bytes: number("sink.kafka.maxMessageBytes", kafka.max_message_bytes)?,
        producers: number("sink.kafka.producers", kafka.producers)?,
    })
}

fn routing(routing: &Routing) -> config::Routing {
    config::Routing {
        by_field: routing.by_field.clone(),
        regex: routing.regex.clone(),
        replacement: routing.replacement.clone(),
    }
}

fn delivery(delivery: &Delivery) -> Result<config::Delivery, Invalid> {
    Ok(config::Delivery {
        max_in_flight_events: number("delivery.maxInFlightEvents", delivery.max_in_flight_events)?,
        max_in_flight_bytes: number("delivery.maxInFlightBytes", delivery.max_in_flight_bytes)?,
        on_poison: match delivery.on_poison {
            OnPoison::Stop => config::OnPoison::Stop,
            OnPoison::DeadLetter => config::OnPoison::DeadLetter,
        },
        dead_letter_topic: delivery.dead_letter_topic.clone(),
    })
}

fn retention(retention: &Retention) -> Result<config::Retention, Invalid> {
    Ok(config::Retention {
        keep_hours: number("retention.keepHours", retention.keep_hours)?,
        ahead_hours: number("retention.aheadHours", retention.ahead_hours)?,
    })
}

fn tls_mode(mode: TlsMode) -> config::TlsMode {
    match mode {
        TlsMode::Disable => config::TlsMode::Disable,
        TlsMode::Require => config::TlsMode::Require,
        TlsMode::VerifyCa => config::TlsMode::VerifyCa,
        TlsMode::VerifyFull => config::TlsMode::VerifyFull,
    }
}

/// The schema has signed numbers, as Kubernetes wants them, and its bounds.
fn number<A: Copy + std::fmt::Display + TryInto<B>, B>(field: &'static str, value: A) -> Result<B, Invalid> {
    value.try_into().map_err(|_| Invalid { field, problem: format!("{value} is out of range") })
}
