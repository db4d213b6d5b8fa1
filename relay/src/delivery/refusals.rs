//! What follows when Kafka refuses a record, and when a failure that ended a session is over.
//!
//! A refused record ends the session, because its producer sends nothing more. The next session reads the settings of
//! topics again and sends the row alone. If the broker refuses it then for a reason that lies in the record, it would
//! refuse it each time: the row is poison, and the mapping remembers that (see [`crate::routing::mapping::RefusedRows`]).

use std::collections::HashSet;
use std::time::{Duration, Instant};

use outbox::Position;
use pg_replication::CommitLsn;
use rdkafka::error::RDKafkaErrorCode as Code;

use super::Delivery;
use crate::error::{ErrorKind, RelayError};
use crate::kafka::error::{Fault, error_of, explained, fault_of, reason_of_kafka};
use crate::routing::mapping::RefusedRow;
use crate::topics::partitions::PartitionId;

/// How long to wait for the answer that ended a producer: librdkafka reports the end before the answer.
const CAUSE_WITHIN: Duration = Duration::from_millis(500);
/// How often a row is sent again that Kafka refused and that has no other place. Each try costs a session.
const TRY_AGAIN_EVERY: Duration = Duration::from_secs(10);

/// A record that Kafka refused, for a reason that may lie in the record.
#[derive(Clone, Debug)]
pub struct Refusal {
    position: Position,
    topic: String,
    code: Code,
    /// It was refused alone, after the settings of its topic were read again.
    pub is_poison: bool,
}

impl Refusal {
    /// What the mapping remembers of it.
    pub fn refused(&self) -> RefusedRow {
        RefusedRow { position: self.position, topic: self.topic.clone(), cause: explained(self.code) }
    }
}

/// Refusals of this session, and of the one before.
#[derive(Default)]
pub(super) struct RefusalWatch {
    /// What ended the session before. The settings of its topic were read since.
    before: Option<Refusal>,
    /// What ended this session.
    now: Option<Refusal>,
    /// Whether a broker's answer is known that ended this session.
    answered: bool,
    /// A row that Kafka refused and that has no other place, and since when it waits.
    waiting: Option<(Position, Instant)>,
    tried_again: Option<Position>,
    /// Partitions of which records were given up: what was purged may be reported before the answer to one sent earlier.
    purged: HashSet<u32>,
}

impl RefusalWatch {
    pub(super) fn new(before: Option<Refusal>) -> RefusalWatch {
        RefusalWatch { before, ..RefusalWatch::default() }
    }

    /// The row at `position` has no place, because Kafka refused it.
    pub(super) fn on_unplaced(&mut self, position: Position) {
        if self.waiting.is_none_or(|(known, _)| known != position) {
            self.waiting = Some((position, Instant::now()));
        }
    }

    /// Whether the row at `position` is sent once more after it had no place.
    pub(super) fn is_tried_again(&self, position: Position) -> bool {
        self.tried_again == Some(position)
    }

    /// Whether a session has begun since `topic` refused a record: its settings were read again, and records got the
    /// current time if theirs was refused.
    fn has_done_what_it_can(&self, topic: &str, code: Code) -> bool {
        if code == Code::InvalidTimestamp {
            return self.were_of_timestamps(topic);
        }
        self.before.as_ref().is_some_and(|before| before.topic == topic)
    }

    /// Whether the broker's limits of timestamps are others than those that could be read: records get the current
    /// time then.
    pub(super) fn were_of_timestamps(&self, topic: &str) -> bool {
        self.before.as_ref().is_some_and(|known| known.code == Code::InvalidTimestamp && known.topic == topic)
    }
}

impl Delivery {
    /// Kafka refused a record, which is no longer in flight.
    pub(super) fn on_refusal(
        &mut self,
        partition: PartitionId,
        position: Option<Position>,
        code: Code,
    ) -> RelayError {
        if matches!(code, Code::PurgeQueue | Code::PurgeInflight) {
            self.refusals.purged.insert(partition.0);
        }
        // Which row it is, and what else was in its request, is known only while answers come in the order of sending.
        let alone = self.in_flight.is_empty(partition) && !self.refusals.purged.contains(&partition.0);
        let fault = fault_of(code);
        self.refusals.answered |= fault != Fault::Producer;
        let (topic, number) = self.partitions.name_of(partition).unwrap_or_default();
        let Some(position) = position else {
            return error_of(
                &format!("Kafka refused a dead letter that was sent again to {topic}/{number}"),
                code,
            );
        };
        if fault == Fault::Row {
            let is_poison = alone && self.refusals.has_done_what_it_can(topic, code);
            self.refusals.now = Some(Refusal { position, topic: topic.to_owned(), code, is_poison });
        }
        error_of(&format!("Kafka refused a record for {topic}/{number}, the row at {position}"), code)
            .at(position)
    }

    /// What ended this session, for the next one.
    pub fn take_refusal(&mut self) -> Option<Refusal> {
        self.refusals.now.take()
    }

    /// Looks for the answer of a broker behind a producer that takes nothing more.
    pub async fn find_cause(&mut self, error: RelayError) -> RelayError {
        if error.kind != ErrorKind::DeliveryFailed || self.refusals.answered {
            return error;
        }
        if let Some((code, why)) = self.producers.failure()
            && fault_of(code) != Fault::Producer
        {
            let what = format!("a producer has failed for good: {why}: {}", explained(code));
            return RelayError { kind: reason_of_kafka(code), detail: what, at: error.at };
        }
        let deadline = tokio::time::Instant::now() + CAUSE_WITHIN;
        loop {
            let mut acks = std::mem::take(&mut self.drained_acks);
            self.acks.take(&mut acks);
            let before = std::mem::take(&mut self.unprocessed_acks);
            for ack in before.into_iter().chain(acks) {
                let partition = ack.tag.partition();
                let position = self.in_flight.on_acked(partition).and_then(|sent| sent.position);
                let Err(code) = ack.outcome else { continue };
                let refused = self.on_refusal(partition, position, code);
                if fault_of(code) != Fault::Producer {
                    self.metrics.count_produce_error(code);
                    return refused;
                }
            }
            if tokio::time::timeout_at(deadline, self.acks.arrived()).await.is_err() {
                return error;
            }
        }
    }

    /// Says which row has to be delivered before `trouble` is over: one that could not go on when the session ended, or
    /// the oldest that Kafka has not acknowledged.
    pub fn on_session_error(&mut self, error: RelayError, blocked: bool) -> RelayError {
        if error.at.is_some() || !(blocked || error.kind.side() == "kafka") {
            return error;
        }
        let unfinished = match self.snapshot_cursor() {
            Some(seq) => Some((self.before_start(), seq.saturating_add(1).cast_unsigned())),
            None if blocked => Some((self.last_commit, 0)),
            None => self.ledger.commit_lsn(self.ledger.first_unconfirmed()).map(|commit| (commit, 0)),
        };
        let at = unfinished.map(|(commit, index)| self.lineage.position(commit, index));
        RelayError { at, ..error }
    }

    /// Whether delivery has got past a failure that ended a session before: the row at `at` is in Kafka. Where no row is
    /// known, or the server has it no longer, one acknowledgement will do, or that nothing is left to send and Kafka
    /// answers.
    pub fn is_past(&mut self, at: Option<Position>) -> bool {
        match at.filter(|position| self.lineage.is_on_line(*position)) {
            Some(position) => self.has_delivered(position),
            None => self.counts.acknowledged > 0 || self.is_caught_up(),
        }
    }

    fn has_delivered(&mut self, position: Position) -> bool {
        let commit = CommitLsn::new(position.commit_lsn.into());
        match self.snapshot_cursor() {
            Some(seq) if commit == self.before_start() => position.index.cast_signed() <= seq,
            _ => self.ledger.confirmed().covers(commit),
        }
    }

    fn is_caught_up(&self) -> bool {
        let answers = self.kafka_answers == Some(true) && self.partitions.all_verified();
        answers && self.snapshot.is_none() && self.ledger.confirmed() >= self.lineage.end()
    }

    /// A row that has no place because Kafka refused it is sent again now and then: the broker may take it by now.
    pub(super) fn try_refused_again(&mut self) {
        let due = self.refusals.waiting.take_if(|(_, since)| since.elapsed() >= TRY_AGAIN_EVERY);
        if let Some((position, _)) = due {
            self.refusals.tried_again = Some(position);
            self.routing.try_again(position);
        }
    }
}
