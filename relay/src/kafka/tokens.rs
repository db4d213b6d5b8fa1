//! Tokens for SASL OAUTHBEARER: fetched in one place, set on every client that authenticates with them.
//!
//! Clients with the same credentials share a refresher: a thread that fetches a token, sets it on all of them, and fetches the next one before
//! it expires. A new client gets the current token when it is created, so it need not be polled first, and no thread that serves
//! acknowledgements waits for a token endpoint. A token that cannot be renewed is used until it expires; one that brokers reject is replaced
//! earlier.

mod aws;
mod endpoint;
mod fetcher;
mod https;
mod refresher;

use kafka_admin::Token;
use rdkafka::admin::AdminClient;
use rdkafka::client::{Client, ClientContext};
use rdkafka::consumer::{BaseConsumer, Consumer, ConsumerContext};
use rdkafka::producer::{Producer, ProducerContext, ThreadedProducer};

pub use self::refresher::{on_rejected, problem, supply};

/// A client that authenticates with tokens.
pub trait TokenClient: Send + Sync {
    /// Sets the token, or reports why there is none.
    ///
    /// # Errors
    /// The client rejects the token.
    fn on_token(&self, token: Result<&Token, &str>) -> Result<(), kafka_admin::Error>;
}

impl<C: ConsumerContext + 'static> TokenClient for BaseConsumer<C> {
    fn on_token(&self, token: Result<&Token, &str>) -> Result<(), kafka_admin::Error> {
        set(self.client(), token)
    }
}

impl<C: ProducerContext + 'static> TokenClient for ThreadedProducer<C> {
    fn on_token(&self, token: Result<&Token, &str>) -> Result<(), kafka_admin::Error> {
        set(self.client(), token)
    }
}

impl<C: ClientContext> TokenClient for AdminClient<C> {
    fn on_token(&self, token: Result<&Token, &str>) -> Result<(), kafka_admin::Error> {
        set(self.inner(), token)
    }
}

fn set<C: ClientContext>(client: &Client<C>, token: Result<&Token, &str>) -> Result<(), kafka_admin::Error> {
    match token {
        Ok(token) => kafka_admin::set_token(client, token),
        Err(why) => kafka_admin::report_token_failure(client, why),
    }
}
