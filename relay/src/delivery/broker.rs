//! The seam between delivery and Kafka. Everything that delivery does is one of three calls, so the model of delivery
//! runs the same code against a broker in memory.

use std::sync::Arc;

use rdkafka::error::KafkaError;

use super::Delivery;
use crate::kafka::producers::{Ack, AckQueue, ProducerRecord, Producers, Purge, Tag};
use crate::kafka::queries::KafkaQueries;
use crate::kafka::query::Query;

/// Kafka, as delivery sees it.
pub trait Broker {
    /// Accepts a record to send. Its outcome arrives through [`Broker::take_reports`]. The records of one partition are
    /// sent, and their outcomes arrive, in the order of these calls.
    fn produce(&self, record: ProducerRecord<'_>, tag: Tag) -> Result<(), KafkaError>;

    /// Starts a query. Its result arrives through [`Delivery::on_query_result`].
    fn query(&self, query: Query<'_>);

    /// Moves the outcomes that have arrived into `acks`, which must be empty. Returns what else the producers reported
    /// since the last call.
    fn take_reports(&self, acks: &mut Vec<Ack>) -> ProducerReports;
}

/// What producers report besides the outcomes of records.
#[derive(Debug, Default)]
pub struct ProducerReports {
    /// Why TLS or SASL with a broker failed.
    pub auth_error: Option<String>,
    /// All brokers seem to be down. A broker that closes an idle connection is reported in the same way.
    pub brokers_down: bool,
    /// A producer has failed permanently.
    pub failed: bool,
}

/// The Kafka clients of one session.
pub struct KafkaBroker {
    pub(super) producers: Producers,
    pub(super) acks: Arc<AckQueue>,
    queries: KafkaQueries,
}

impl KafkaBroker {
    /// `acks` is the queue of these producers.
    pub fn new(producers: Producers, acks: Arc<AckQueue>, queries: KafkaQueries) -> KafkaBroker {
        KafkaBroker { producers, acks, queries }
    }
}

impl Broker for KafkaBroker {
    fn produce(&self, record: ProducerRecord<'_>, tag: Tag) -> Result<(), KafkaError> {
        self.producers.send(record, tag)
    }

    fn query(&self, query: Query<'_>) {
        self.queries.start(query, &self.producers);
    }

    fn take_reports(&self, acks: &mut Vec<Ack>) -> ProducerReports {
        self.acks.take(acks);
        ProducerReports {
            auth_error: self.acks.auth_errors().take(),
            brokers_down: self.acks.take_brokers_down(),
            failed: self.acks.producer_failed(),
        }
    }
}

impl Delivery<KafkaBroker> {
    /// Stops sending.
    pub fn purge(&self, purge: Purge) {
        self.in_flight.broker.producers.purge(purge);
    }

    /// The producers, to be closed. Cancels the queries.
    pub fn into_producers(self) -> Producers {
        self.in_flight.broker.producers
    }
}
