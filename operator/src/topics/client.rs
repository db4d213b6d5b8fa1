//! The Kafka client that all resources with the same brokers and credentials share. Nothing here blocks the thread on which resources are
//! reconciled and the Lease is renewed: creating a client reads certificates, and dropping one waits for its threads.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use outbox_relay::config::Sink;
use outbox_relay::kafka::client::{self, auth_failure, client_config};
use rdkafka::admin::AdminClient;
use rdkafka::client::DefaultClientContext;

use super::error::KafkaError;

/// A client without an answer is replaced, and the reason searched for with one more, at most this often. librdkafka can be left without any
/// broker to ask (confluentinc/librdkafka#5301), but during an outage another client is no better, and each costs threads and, with TLS, a
/// handshake with every broker.
const RETRY_EVERY: Duration = Duration::from_secs(20);

/// How long the search for the reason may take when Kafka does not answer: with the request before, an outage still shows within 10 s.
const DIAGNOSIS_WITHIN: Duration = Duration::from_secs(3);

pub type Admin = AdminClient<DefaultClientContext>;

/// A client that is dropped on a separate thread.
pub struct Client(Option<Arc<Admin>>);

impl Client {
    /// The client.
    pub fn admin(&self) -> Option<&Admin> {
        self.0.as_deref()
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        let client = self.0.take();
        std::thread::spawn(move || drop(client));
    }
}

/// See the module's text.
pub struct SharedClient {
    sink: Sink,
    current: Mutex<Arc<Client>>,
    silence: Mutex<Silence>,
}

/// What was found out about a cluster that does not answer. Each set of brokers and credentials has its own.
#[derive(Default)]
struct Silence {
    examined: Option<Instant>,
    why_not_trusted: Option<String>,
}

impl Silence {
    /// Whether it is time to examine it (again). The caller that gets `true` does so.
    fn is_due(&mut self, now: Instant) -> bool {
        let is_due = self.examined.is_none_or(|before| now.duration_since(before) >= RETRY_EVERY);
        if is_due {
            self.examined = Some(now);
        }
        is_due
    }
}

impl SharedClient {
    /// Creates the client; it does not connect yet. Blocks.
    pub fn create(sink: &Sink) -> Result<SharedClient, KafkaError> {
        let client = Arc::new(create(sink)?);
        Ok(SharedClient { sink: sink.clone(), current: Mutex::new(client), silence: Mutex::default() })
    }

    /// The client to use now.
    pub fn current(&self) -> Arc<Client> {
        Arc::clone(&lock(&self.current))
    }

    /// Kafka has answered: the next silence is examined immediately.
    pub fn on_answer(&self) {
        *lock(&self.silence) = Silence::default();
    }

    /// Kafka has not answered `client`: finds out whether that is for want of trust, and replaces the client. Blocks.
    pub fn on_silence(&self, error: KafkaError) -> KafkaError {
        if lock(&self.silence).is_due(Instant::now()) {
            if let Ok(client) = create(&self.sink) {
                *lock(&self.current) = Arc::new(client);
            }
            let why = auth_failure(&self.sink, DIAGNOSIS_WITHIN);
            lock(&self.silence).why_not_trusted = why;
        }
        match lock(&self.silence).why_not_trusted.clone() {
            Some(why) => error.not_trusted(why),
            None => error,
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn create(sink: &Sink) -> Result<Client, KafkaError> {
    let mut config = client_config(sink);
    // Its last push would delay the end of a client by up to a second.
    config.set("enable.metrics.push", "false");
    let client = client::create(sink, &config, DefaultClientContext);
    let client = client.map_err(|error| KafkaError::failed("creating a client", &error))?;
    Ok(Client(Some(client)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_silent_cluster_is_examined_once_in_a_while_and_again_after_it_has_answered() {
        let (mut silence, start) = (Silence::default(), Instant::now());
        assert!(silence.is_due(start));
        assert!(!silence.is_due(start + RETRY_EVERY / 2));
        assert!(silence.is_due(start + RETRY_EVERY));
        assert!(!silence.is_due(start + RETRY_EVERY), "another resource asks at the same time");
    }

    #[test]
    fn the_answer_serves_all_that_ask_within_that_time() {
        let sink = serde_json::json!({"bootstrapServers": "127.0.0.1:1", "tls": {"mode": "disable"}});
        let client = SharedClient::create(&serde_json::from_value(sink).unwrap()).unwrap();
        let first = client.current();
        lock(&client.silence).is_due(Instant::now());
        lock(&client.silence).why_not_trusted = Some("SASL authentication failed".to_owned());
        let silent = || KafkaError::new("looking at topics", "timed out".to_owned(), None);
        assert!(client.on_silence(silent()).is_distrust);
        assert!(Arc::ptr_eq(&first, &client.current()), "no client was created");
        client.on_answer();
        assert!(!client.on_silence(silent()).is_distrust, "nothing listens there");
        assert!(!Arc::ptr_eq(&first, &client.current()));
    }
}
