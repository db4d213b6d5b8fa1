//! The relay's configuration, in the relay's own types: what it would refuse cannot be written.

use std::net::{Ipv6Addr, SocketAddr};
use std::path::PathBuf;

use kube::ResourceExt;
use outbox_relay::config::{
    self, AdminConfig, Config, FORMAT_VERSION, HeartbeatConfig, SinkTls, SourceTls, TableName,
};

use super::files::{KAFKA, POSTGRES, token_endpoint_ca_file};
use crate::resource::{
    ChannelBinding, Compression, CreationPolicy, CredentialsSecretRef, Delivery, Failover, Heartbeat,
    Oauthbearer, OnGap, OnPoison, OutboxRelay, Retention, Routing, Sasl, SaslMechanism, Shutdown, StartAt,
    TlsMode, TokenEndpoint, Username,
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

/// What the relay of `relay` is told. `user` is its role, which may be in a Secret.
///
/// # Errors
/// Names the field that has no meaning to the relay.
pub fn configuration(relay: &OutboxRelay, user: &str) -> Result<Config, Invalid> {
    let spec = &relay.spec;
    Ok(Config {
        version: FORMAT_VERSION,
        name: identity(relay),
        owner: owner(relay),
        source: source(relay, user)?,
        sink: sink(relay)?,
        routing: routing(&spec.routing),
        delivery: delivery(&spec.delivery)?,
        retention: retention(&spec.retention)?,
        heartbeat: heartbeat(&spec.heartbeat)?,
        shutdown: shutdown(&spec.shutdown)?,
        // From outside the pod: probes, Prometheus and the operator.
        admin: AdminConfig { listen: SocketAddr::from((Ipv6Addr::UNSPECIFIED, ADMIN_PORT)) },
    })
}

/// The relay's name in its checkpoint: of no other resource in the cluster.
pub fn identity(relay: &OutboxRelay) -> String {
    format!("{}/{}", relay.namespace().unwrap_or_default(), relay.name_any())
}

/// The owner of the relay in its checkpoint: of no other resource anywhere, also not of one that is declared again.
pub fn owner(relay: &OutboxRelay) -> String {
    relay.uid().unwrap_or_default()
}

/// The PostgreSQL side alone. What the rest of the specification says does not matter to it.
///
/// # Errors
/// As [`configuration`].
pub fn source(relay: &OutboxRelay, user: &str) -> Result<config::Source, Invalid> {
    let source = &relay.spec.source;
    let postgres = &source.postgres;
    let tls = &postgres.tls.tls;
    let [cert_file, key_file] = POSTGRES.certificate_files(tls.certificate_secret_ref.as_ref());
    let table = TableName::try_from(postgres.table.clone())
        .map_err(|problem| Invalid { field: "source.postgres.table", problem })?;
    Ok(config::Source {
        host: given("source.postgres.host", postgres.host.as_ref())?,
        port: number("source.postgres.port", postgres.port)?,
        database: given("source.postgres.database", postgres.database.as_ref())?,
        user: user.to_owned(),
        password_file: match (&postgres.password_file, &postgres.credentials_secret_ref) {
            (Some(file), _) => Some(PathBuf::from(file)),
            (None, Some(_)) => Some(POSTGRES.password_file()),
            (None, None) => None,
        },
        password: None,
        tls: SourceTls {
            mode: tls_mode(tls.mode),
            ca_file: POSTGRES.ca_file(tls.ca_secret_ref.as_ref()),
            cert_file,
            key_file,
            channel_binding: match postgres.tls.channel_binding {
                ChannelBinding::Prefer => config::ChannelBinding::Prefer,
                ChannelBinding::Require => config::ChannelBinding::Require,
            },
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
        on_gap: match source.on_gap {
            OnGap::Stop => config::OnGap::Stop,
            OnGap::Refill => config::OnGap::Refill,
        },
        event_source: source.event_source.clone(),
    })
}

/// The Kafka side alone.
///
/// # Errors
/// As [`configuration`].
pub fn sink(relay: &OutboxRelay) -> Result<config::Sink, Invalid> {
    let kafka = &relay.spec.sink.kafka;
    let [cert_file, key_file] = KAFKA.certificate_files(kafka.tls.certificate_secret_ref.as_ref());
    let ca_file = KAFKA.ca_file(kafka.tls.ca_secret_ref.as_ref());
    Ok(config::Sink {
        bootstrap_servers: given("sink.kafka.bootstrapServers", kafka.bootstrap_servers.as_ref())?,
        tls: SinkTls { mode: tls_mode(kafka.tls.mode), ca_file, cert_file, key_file },
        sasl: kafka.sasl.as_ref().map(sasl).transpose()?,
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

fn sasl(sasl: &Sasl) -> Result<config::Sasl, Invalid> {
    let reference = sasl.credentials_secret_ref.as_ref();
    Ok(match sasl.mechanism {
        SaslMechanism::Plain => config::Sasl::Plain(user_password(reference)),
        SaslMechanism::ScramSha256 => config::Sasl::ScramSha256(user_password(reference)),
        SaslMechanism::ScramSha512 => config::Sasl::ScramSha512(user_password(reference)),
        SaslMechanism::Oauthbearer => {
            let oauth = sasl.oauthbearer.as_ref().map(|oauth| oauthbearer(oauth, reference)).transpose()?;
            config::Sasl::Oauthbearer(oauth.unwrap_or_default())
        }
        SaslMechanism::AwsMskIam => {
            config::Sasl::AwsMskIam(config::AwsMskIam { region: sasl.region.clone().unwrap_or_default() })
        }
    })
}

fn user_password(reference: Option<&CredentialsSecretRef>) -> config::UserPassword {
    let (username, username_file) = user(reference);
    config::UserPassword {
        username,
        username_file,
        password_file: reference.map(|_| KAFKA.password_file()),
        password: None,
    }
}
/// As text, or as the file that has it.
fn user(reference: Option<&CredentialsSecretRef>) -> (Option<String>, Option<PathBuf>) {
    match reference.map(CredentialsSecretRef::user) {
        Some(Username::Text(name)) => (Some(name.to_owned()), None),
        Some(Username::Key(_)) => (None, Some(KAFKA.username_file())),
        None => (None, None),
    }
}

fn oauthbearer(
    oauth: &Oauthbearer,
    reference: Option<&CredentialsSecretRef>,
) -> Result<config::Oauthbearer, Invalid> {
    let lifetime = oauth.token_lifetime_seconds;
    let extensions = oauth.extensions.iter().flatten();
    Ok(config::Oauthbearer {
        token_file: oauth.token_file.as_ref().map(PathBuf::from),
        client_credentials: oauth
            .token_endpoint
            .as_ref()
            .map(|endpoint| client_credentials(endpoint, reference)),
        token_lifetime_seconds: lifetime
            .map(|seconds| number("sink.kafka.sasl.oauthbearer.tokenLifetimeSeconds", seconds))
            .transpose()?,
        extensions: extensions.map(|(name, value)| (name.clone(), value.0.clone())).collect(),
    })
}

fn client_credentials(
    endpoint: &TokenEndpoint,
    reference: Option<&CredentialsSecretRef>,
) -> config::ClientCredentials {
    let (client_id, client_id_file) = user(reference);
    config::ClientCredentials {
        token_endpoint: endpoint.url.clone(),
        allow_http: endpoint.allow_http,
        ca_file: endpoint.ca_secret_ref.as_ref().map(|_| token_endpoint_ca_file()),
        client_id,
        client_id_file,
        client_secret_file: reference.map(|_| KAFKA.password_file()),
        client_secret: None,
        scope: endpoint.scope.clone(),
    }
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

fn heartbeat(heartbeat: &Heartbeat) -> Result<HeartbeatConfig, Invalid> {
    let interval_seconds = number("heartbeat.intervalSeconds", heartbeat.interval_seconds)?;
    Ok(HeartbeatConfig { interval_seconds })
}

fn shutdown(shutdown: &Shutdown) -> Result<config::Shutdown, Invalid> {
    let grace_seconds = number("shutdown.graceSeconds", shutdown.grace_seconds)?;
    Ok(config::Shutdown { grace_seconds })
}

fn tls_mode(mode: TlsMode) -> config::TlsMode {
    match mode {
        TlsMode::Disable => config::TlsMode::Disable,
        TlsMode::Require => config::TlsMode::Require,
        TlsMode::VerifyCa => config::TlsMode::VerifyCa,
        TlsMode::VerifyFull => config::TlsMode::VerifyFull,
    }
}

/// Rules of the schema require it, or a reference that has been replaced by then.
fn given(field: &'static str, value: Option<&String>) -> Result<String, Invalid> {
    let missing =
        || Invalid { field, problem: "is required: apply this version's CRD, and set it".to_owned() };
    value.cloned().ok_or_else(missing)
}

/// The schema has signed numbers, as Kubernetes wants them, and its bounds.
fn number<A: Copy + std::fmt::Display + TryInto<B>, B>(field: &'static str, value: A) -> Result<B, Invalid> {
    value.try_into().map_err(|_| Invalid { field, problem: format!("{value} is out of range") })
}
