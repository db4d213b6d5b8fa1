//! How every Kafka client of the relay is made, and what librdkafka reports about its certificates and credentials.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use rdkafka::ClientContext;
use rdkafka::config::{ClientConfig, RDKafkaLogLevel};
use rdkafka::consumer::{BaseConsumer, Consumer, ConsumerContext};
use rdkafka::error::KafkaError;

use crate::config::Sink;
use crate::error::ErrorKind;
use crate::kafka::error::reason_of_kafka;

/// A change of leaders that no error told of is noticed within this, in place of librdkafka's five minutes: one request for
/// the topics in use.
const METADATA_REFRESH_MS: &str = "10000";

/// A request without an answer takes this long while the reason is looked for.
const DIAGNOSIS_STEP: Duration = Duration::from_millis(300);

/// Settings all clients share.
pub fn client_config(sink: &Sink) -> ClientConfig {
    let mut config = ClientConfig::new();
    config
        .set("bootstrap.servers", &sink.bootstrap_servers)
        .set("client.id", "outbox-relay")
        .set("allow.auto.create.topics", "false")
        .set("socket.keepalive.enable", "true")
        .set("socket.timeout.ms", "15000")
        .set("reconnect.backoff.ms", "50")
        .set("reconnect.backoff.max.ms", "2000")
        .set("topic.metadata.refresh.fast.interval.ms", "50")
        .set("topic.metadata.refresh.interval.ms", METADATA_REFRESH_MS)
        .set_log_level(RDKafkaLogLevel::Warning);
    sink.protect(&mut config);
    config
}

/// Settings of a client that reads records and joins no group; `purpose` names it in the group that it has to have.
pub fn reader_config(sink: &Sink, purpose: &str) -> ClientConfig {
    let mut config = client_config(sink);
    config
        // Never joined: a consumer cannot be made without the name of a group.
        .set("group.id", format!("outbox-relay-{purpose}"))
        .set("enable.auto.commit", "false")
        .set("enable.partition.eof", "true");
    config
}

/// Keeps what librdkafka reports about certificates and credentials: requests themselves only end without an answer.
#[derive(Default)]
pub struct AuthErrors(Mutex<Option<String>>);

impl AuthErrors {
    /// Whether an error was of that kind; it is kept then.
    pub fn record(&self, error: &KafkaError, reason: &str) -> bool {
        let code = error.rdkafka_error_code();
        let heard = code.is_some_and(|code| reason_of_kafka(code) == ErrorKind::KafkaAuthenticationFailed);
        if heard {
            *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(reason.to_owned());
        }
        heard
    }

    /// What was heard since the last call.
    pub fn take(&self) -> Option<String> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

impl ClientContext for AuthErrors {
    fn error(&self, error: KafkaError, reason: &str) {
        self.record(&error, reason);
        tracing::debug!(%error, reason, "Kafka client");
    }
}

impl ConsumerContext for AuthErrors {}

/// Why brokers and a client with this configuration do not trust each other, in librdkafka's words; `None` where they do, or no broker can
/// be reached. For a request that got no answer, because the request itself does not tell. Blocks for `within` at most.
pub fn auth_failure(config: &ClientConfig, within: Duration) -> Option<String> {
    let mut config = config.clone();
    // A consumer tells of errors of its connections; it joins no group, and has to have the name of one.
    config.set("group.id", "outbox-diagnosis").set("enable.metrics.push", "false");
    let client: BaseConsumer<AuthErrors> = config.create_with_context(AuthErrors::default()).ok()?;
    let began = Instant::now();
    while began.elapsed() < within {
        if kafka_admin::cluster_id(client.client(), DIAGNOSIS_STEP).is_ok() {
            return None;
        }
        while client.poll(Duration::ZERO).is_some() {}
        if let Some(why) = client.context().take() {
            return Some(why);
        }
    }
    None
}
