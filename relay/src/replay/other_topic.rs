//! Sends replayed events to a topic that the routing does not give, such as the topic of one consumer.
//!
//! Not through the session: the topics that it writes to become part of the checkpoint and are verified at each start, and
//! a record that Kafka refuses ends it. A topic that its consumer deletes, or that the relay may not write to, must not
//! stop the stream.

use std::sync::Arc;
use std::time::Duration;

use pg_replication::PgTime;
use rdkafka::error::{KafkaError, KafkaResult};
use tokio::runtime::Handle;
use tokio::time::timeout;

use super::lines::SendOutcome;
use crate::config::{Config, Sink};
use crate::event::owned_row::OwnedRow;
use crate::event::record::{Provenance, RecordEncoder};
use crate::kafka::producers::{AckQueue, ProducerRecord, Producers, Tag};
use crate::kafka::topic_reader::TopicReader;
use crate::progress::offset::Offset;
use crate::routing::router::partition;
use crate::topics::partitions::PartitionId;
use crate::topics::registry::PartitionName;

/// Timeout of one record. The client waits for the next line for a minute.
const ACKNOWLEDGED_WITHIN: Duration = Duration::from_secs(45);

pub(super) struct OtherTopic {
    name: String,
    partitions: i32,
    encoder: RecordEncoder,
    producer: Producer,
}

impl OtherTopic {
    /// Fails if the topic does not exist.
    pub(super) fn open(
        config: &Config,
        name: &str,
        topics: &TopicReader,
        runtime: Handle,
    ) -> Result<OtherTopic, String> {
        let partitions = topics.partitions(name).map_err(|error| error.to_string())?;
        if partitions == 0 {
            return Err(format!("topic {name} does not exist: create it first"));
        }
        let sink = Sink { producers: 1, ..config.sink.clone() };
        Ok(OtherTopic {
            name: name.to_owned(),
            partitions,
            encoder: RecordEncoder { source: config.source.event_source() },
            producer: Producer { sink, runtime, clients: None },
        })
    }

    /// Sends the record of a row, and waits for its acknowledgement. `None` if there is none in time.
    pub(super) fn send(&mut self, row: &OwnedRow, provenance: Provenance<'_>) -> Option<SendOutcome> {
        let refused = |error: String| Some(SendOutcome::Refused(error));
        let row = match row.as_row() {
            Ok(row) => row,
            Err(error) => return refused(error.to_string()),
        };
        let now = PgTime::now();
        let headers = match self.encoder.headers(&row, provenance, row.occurred_at.unwrap_or(now)) {
            Ok(headers) => headers,
            Err(error) => return refused(error.to_string()),
        };
        let name =
            PartitionName { topic: &self.name, number: partition(row.partition_key(), self.partitions) };
        let record = ProducerRecord {
            topic: name.topic,
            partition: name.number,
            key: row.key.as_deref(),
            value: row.payload.as_deref(),
            headers,
            timestamp: now.into(),
        };
        match self.producer.send(record)? {
            Ok(_) => Some(SendOutcome::Sent { topic: name.topic.to_owned(), partition: name.number }),
            Err(error) => refused(format!("Kafka refused the record for {name}: {error}")),
        }
    }
}

/// Sends one record at a time.
struct Producer {
    /// With one producer.
    sink: Sink,
    runtime: Handle,
    /// `None` before the first record, and after one that failed: nothing is sent after it.
    clients: Option<Clients>,
}

struct Clients {
    producers: Producers,
    acks: Arc<AckQueue>,
}

impl Producer {
    /// `None` if Kafka does not acknowledge the record in time. It may have it.
    fn send(&mut self, record: ProducerRecord<'_>) -> Option<KafkaResult<Offset>> {
        let clients = match self.clients.take().map_or_else(|| Clients::new(&self.sink), Ok) {
            Ok(clients) => clients,
            Err(error) => return Some(Err(error)),
        };
        let outcome = match clients.producers.send(record, Tag::replay(PartitionId(0))) {
            Ok(()) => self.runtime.block_on(clients.acknowledged()),
            Err(error) => Some(Err(error)),
        };
        match outcome {
            Some(Ok(_)) => self.clients = Some(clients),
            _ => clients.producers.close(),
        }
        outcome
    }
}

impl Clients {
    fn new(sink: &Sink) -> KafkaResult<Clients> {
        let acks = Arc::new(AckQueue::new(sink));
        Ok(Clients { producers: Producers::new(sink, 1, None, &acks)?, acks })
    }

    async fn acknowledged(&self) -> Option<KafkaResult<Offset>> {
        let acknowledged = async {
            let mut acks = Vec::new();
            loop {
                self.acks.take(&mut acks);
                if let Some(ack) = acks.pop() {
                    return ack.outcome.map_err(KafkaError::MessageProduction);
                }
                self.acks.arrived().await;
            }
        };
        timeout(ACKNOWLEDGED_WITHIN, acknowledged).await.ok()
    }
}
