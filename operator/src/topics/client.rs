//! The Kafka client that all resources with the same brokers and credentials share. Nothing here blocks the thread on which resources are
//! reconciled and the Lease is renewed: creating a client reads certificates, and dropping one waits for its threads.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use outbox_relay::kafka::client::auth_failure;
use rdkafka::admin::AdminClient;
use rdkafka::client::DefaultClientContext;
use rdkafka::config::ClientConfig;

use super::error::KafkaError;

/// A client without an answer is replaced, at most this often: librdkafka can be left without any broker to ask
/// (confluentinc/librdkafka#5301), but during an outage another client is no better.
const REPLACE_EVERY: Duration = Duration::from_secs(20);

/// How long the search for the reason may take when Kafka does not answer: with the request before, an outage still shows within 10 s.
const DIAGNOSIS_WITHIN: Duration = Duration::from_secs(3);

pub type Admin = AdminClient<DefaultClientContext>;

/// A client that is dropped on a thread of its own.
pub struct Client(Option<Admin>);

impl Client {
    /// The client.
    pub fn admin(&self) -> Option<&Admin> {
        self.0.as_ref()
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
    config: ClientConfig,
    current: Mutex<(Arc<Client>, Instant)>,
}

impl SharedClient {
    /// Creates the client; it does not connect yet. Blocks.
    pub fn create(config: &ClientConfig) -> Result<SharedClient, KafkaError> {
        let client = Arc::new(create(config)?);
        Ok(SharedClient { config: config.clone(), current: Mutex::new((client, Instant::now())) })
    }

    /// The client to use now.
    pub fn current(&self) -> Arc<Client> {
        Arc::clone(&self.current.lock().unwrap_or_else(PoisonError::into_inner).0)
    }

    /// Takes in that Kafka has not answered `client`: finds out whether that is for want of trust, and replaces the client. Blocks.
    pub fn on_silence(&self, error: KafkaError) -> KafkaError {
        let is_due = {
            let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
            let is_due = current.1.elapsed() >= REPLACE_EVERY;
            if is_due {
                current.1 = Instant::now();
            }
            is_due
        };
        if is_due && let Ok(client) = create(&self.config) {
            self.current.lock().unwrap_or_else(PoisonError::into_inner).0 = Arc::new(client);
        }
        match auth_failure(&self.config, DIAGNOSIS_WITHIN) {
            Some(why) => error.not_trusted(why),
            None => error,
        }
    }
}

fn create(config: &ClientConfig) -> Result<Client, KafkaError> {
    let mut config = config.clone();
    // Its last push would delay the end of a client by up to a second.
    config.set("enable.metrics.push", "false");
    let client = config.create().map_err(|error| KafkaError::failed("creating a client", &error))?;
    Ok(Client(Some(client)))
}
