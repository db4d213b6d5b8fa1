//! How every Kafka client of the relay is created, and its errors of certificates and authentication.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use rdkafka::ClientContext;
use rdkafka::config::{ClientConfig, FromClientConfigAndContext, RDKafkaLogLevel};
use rdkafka::consumer::{BaseConsumer, Consumer, ConsumerContext};
use rdkafka::error::{KafkaError, KafkaResult, RDKafkaErrorCode};

use crate::config::{Sink, TokenCredentials};
use crate::error::ErrorKind;
use crate::kafka::error_codes::reason_of_kafka;
use crate::kafka::tokens::{self, TokenClient};

/// A change of leaders without an error is noticed within this time, not within librdkafka's five minutes. The price is
/// one request for the topics in use.
const METADATA_REFRESH_MS: &str = "10000";

/// Timeout of each request while the reason is searched for.
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

/// Settings of a client that reads records and joins no group; `purpose` is part of the name of that group.
pub fn reader_config(sink: &Sink, purpose: &str) -> ClientConfig {
    let mut config = client_config(sink);
    config
        // Never joined, but librdkafka creates no consumer without it.
        .set("group.id", format!("outbox-relay-{purpose}"))
        .set("enable.auto.commit", "false")
        .set("enable.partition.eof", "true")
        // Another producer's open transaction must not hide this outbox's records after it.
        .set("isolation.level", "read_uncommitted")
        // Limits the memory of a read of any length. A single larger record is fetched nevertheless.
        .set("queued.max.messages.kbytes", "2048")
        .set("fetch.message.max.bytes", "1048576");
    config
}

/// Creates a client with `config`, which is based on `sink`'s settings, and supplies it with tokens if `sink` uses them.
pub fn create<T, C>(sink: &Sink, config: &ClientConfig, context: C) -> KafkaResult<Arc<T>>
where
    T: FromClientConfigAndContext<C> + TokenClient + 'static,
    C: ClientContext,
{
    let client = Arc::new(T::from_config_and_context(config, context)?);
    if let Some(credentials) = sink.access.token_credentials() {
        tokens::supply(credentials, &client);
    }
    Ok(client)
}

/// Keeps the last error of certificates or authentication that librdkafka reported: requests themselves only time out.
pub struct AuthErrors {
    last: Mutex<Option<String>>,
    tokens: Option<TokenCredentials>,
}

impl AuthErrors {
    pub fn new(sink: &Sink) -> AuthErrors {
        AuthErrors { last: Mutex::default(), tokens: sink.access.token_credentials().cloned() }
    }

    /// Whether an error is of that kind; if so, it is kept, and a rejected token is replaced.
    pub fn record(&self, error: &KafkaError, reason: &str) -> bool {
        let code = error.rdkafka_error_code();
        let is_kept = code.is_some_and(|code| reason_of_kafka(code) == ErrorKind::KafkaAuthenticationFailed);
        if is_kept {
            *self.last.lock().unwrap_or_else(PoisonError::into_inner) = Some(reason.to_owned());
            if let (Some(RDKafkaErrorCode::Authentication), Some(credentials)) = (code, &self.tokens) {
                tokens::on_rejected(credentials);
            }
        }
        is_kept
    }

    /// The last error since the last call. A broker only reports that the token has expired; the reason why there is no
    /// newer one is more useful.
    pub fn take(&self) -> Option<String> {
        let last = self.last.lock().unwrap_or_else(PoisonError::into_inner).take()?;
        Some(self.tokens.as_ref().and_then(tokens::problem).unwrap_or(last))
    }
}

impl ClientContext for AuthErrors {
    fn error(&self, error: KafkaError, reason: &str) {
        self.record(&error, reason);
        tracing::debug!(%error, reason, "Kafka client");
    }
}

impl ConsumerContext for AuthErrors {}

/// The TLS or authentication error between brokers and a client of `sink`, as librdkafka reports it; `None` if there is
/// none, or if no broker can be reached. For a request that timed out, because the request itself does not contain the
/// reason. Blocks for `within` at most.
pub fn auth_failure(sink: &Sink, within: Duration) -> Option<String> {
    let mut config = client_config(sink);
    // A consumer reports errors of its connections. It joins no group, but needs the name of one.
    config.set("group.id", "outbox-diagnosis").set("enable.metrics.push", "false");
    let client: Arc<BaseConsumer<AuthErrors>> = create(sink, &config, AuthErrors::new(sink)).ok()?;
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
