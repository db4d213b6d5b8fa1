//! Records that Kafka refuses, and when the error that ended a session is resolved.
//!
//! A refused record ends the session, because its producer sends nothing after it. The next session reads the topics'
//! settings again and sends the row alone. If the broker refuses it again because of the record itself, it would refuse
//! it every time. Then the row is poison, and the routing history records that (see
//! [`crate::routing::mapping::RefusedRows`]).

use std::collections::HashSet;
use std::time::{Duration, Instant};

use outbox::Position;
use rdkafka::error::RDKafkaErrorCode as Code;

use super::in_flight::InFlight;
use super::{Broker, Delivery, KafkaBroker};
use crate::error::{ErrorKind, RelayError};
use crate::kafka::error_codes::{Fault, error_of, explained, fault_of, reason_of_kafka};
use crate::routing::mapping::{RefusedRow, RoutingTable};
use crate::topics::partitions::PartitionId;
use crate::topics::registry::TopicRegistry;

/// Time to wait for the broker's response that made a producer fail: librdkafka reports the fatal error before it.
const CAUSE_WITHIN: Duration = Duration::from_millis(500);
/// How often to retry a row that Kafka refused and that cannot become a dead letter. Each retry costs a session.
const RETRY_INTERVAL: Duration = Duration::from_secs(10);

/// A record that Kafka refused, for a reason that may lie in the record.
#[derive(Clone, Debug)]
pub struct Refusal {
    position: Position,
    topic: String,
    code: Code,
    /// The record was refused alone, after the settings of its topic were read again.
    pub is_poison: bool,
}

impl Refusal {
    /// The topic, if the broker refused a timestamp that the topic's settings allow. Its records then get the current
    /// time.
    pub(super) fn topic_of_timestamp(&self) -> Option<&str> {
        (self.code == Code::InvalidTimestamp).then_some(self.topic.as_str())
    }

    /// The entry for the routing history.
    pub fn refused(&self) -> RefusedRow {
        RefusedRow { position: self.position, topic: self.topic.clone(), cause: explained(self.code) }
    }
}

/// The refusals of this session and of the previous one.
#[derive(Default)]
pub(super) struct RefusalWatch {
    /// The refusal that ended the previous session. The settings of its topic were read since then.
    previous: Option<Refusal>,
    /// The refusal that ends this session.
    current: Option<Refusal>,
    /// Whether the broker's response that ends this session is known.
    has_response: bool,
    /// A row that Kafka refused and that cannot become a dead letter, and since when it waits.
    waiting: Option<(Position, Instant)>,
    /// The row that is being retried.
    retry: Option<Position>,
    /// Partitions with purged records: librdkafka may report a purged record before the response to an earlier one.
    purged: HashSet<u32>,
}

impl RefusalWatch {
    pub(super) fn new(previous: Option<Refusal>) -> RefusalWatch {
        RefusalWatch { previous, ..RefusalWatch::default() }
    }

    /// The row at `position` cannot be routed, because Kafka refused it. It is retried later.
    pub(super) fn schedule_retry(&mut self, position: Position) {
        if self.waiting.is_none_or(|(known, _)| known != position) {
            self.waiting = Some((position, Instant::now()));
        }
    }

    /// Whether the row at `position` is being retried after Kafka refused it.
    pub(super) fn is_retry(&self, position: Position) -> bool {
        self.retry == Some(position)
    }

    /// Whether this session already adapted to a refusal by `topic`: it read the topic's settings again, and sent
    /// records with the current time if their timestamps were refused.
    fn has_adapted(&self, topic: &str, code: Code) -> bool {
        self.previous.as_ref().is_some_and(|previous| {
            let of_timestamp = previous.code == Code::InvalidTimestamp;
            previous.topic == topic && (of_timestamp || code != Code::InvalidTimestamp)
        })
    }

    /// Kafka refused a record, which is no longer in flight. `position` is that of its row; a replayed dead letter has
    /// none.
    pub(super) fn on_refusal<B: Broker>(
        &mut self,
        partition: PartitionId,
        position: Option<Position>,
        code: Code,
        in_flight: &InFlight<B>,
    ) -> RelayError {
        if matches!(code, Code::PurgeQueue | Code::PurgeInflight) {
            self.purged.insert(partition.0);
        }
        // The row and the rest of its request can be identified only while responses arrive in the order of sending.
        let alone = in_flight.lanes.has_nothing_sent(partition) && !self.purged.contains(&partition.0);
        let fault = fault_of(code);
        self.has_response |= fault != Fault::Producer;
        let name = in_flight.topics.name_of(partition);
        let Some(position) = position else {
            return error_of(&format!("Kafka refused a replayed dead letter for {name}"), code);
        };
        if fault == Fault::Row {
            let is_poison = alone && self.has_adapted(name.topic, code);
            self.current = Some(Refusal { position, topic: name.topic.to_owned(), code, is_poison });
        }
        error_of(&format!("Kafka refused a record for {name}, the row at {position}"), code).at(position)
    }

    /// The refusal that ended this session, for the next one.
    pub(super) fn take(&mut self) -> Option<Refusal> {
        self.current.take()
    }

    /// Retries a refused row that cannot become a dead letter from time to time: the broker may accept it by now.
    pub(super) fn on_tick(&mut self, routing: &mut RoutingTable, topics: &TopicRegistry) {
        let due = self.waiting.take_if(|(_, since)| since.elapsed() >= RETRY_INTERVAL);
        if let Some((position, _)) = due {
            self.retry = Some(position);
            routing.retry(position, topics);
        }
    }
}

impl Delivery<KafkaBroker> {
    /// Finds the broker's response that made a producer fail.
    pub async fn find_cause(&mut self, error: RelayError) -> RelayError {
        if error.kind != ErrorKind::DeliveryFailed || self.refusals.has_response {
            return error;
        }
        if let Some((code, why)) = self.in_flight.broker.producers.failure()
            && fault_of(code) != Fault::Producer
        {
            let what = format!("a producer has failed permanently: {why}: {}", explained(code));
            return RelayError { kind: reason_of_kafka(code), detail: what, at: error.at };
        }
        let deadline = tokio::time::Instant::now() + CAUSE_WITHIN;
        loop {
            let mut acks = self.acks.take_unprocessed();
            let mut arrived = Vec::new();
            self.in_flight.broker.acks.take(&mut arrived);
            acks.append(&mut arrived);
            for ack in acks {
                let partition = ack.tag.partition();
                let sent = self.in_flight.lanes.on_ended(partition);
                let Err(code) = ack.outcome else { continue };
                let position = sent.and_then(|sent| sent.content.position());
                let refused = self.refusals.on_refusal(partition, position, code, &self.in_flight);
                if fault_of(code) != Fault::Producer {
                    self.metrics.count_produce_error(code);
                    return refused;
                }
            }
            if tokio::time::timeout_at(deadline, self.in_flight.broker.acks.arrived()).await.is_err() {
                return error;
            }
        }
    }
}
