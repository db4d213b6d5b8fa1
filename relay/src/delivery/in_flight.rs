//! The rows between routing and acknowledgement: admits a row to its partition, sends it, and sends the rows that waited
//! as soon as their partition accepts them.

use std::time::Instant;

use outbox::Position;
use pg_replication::PgTime;
use rdkafka::error::KafkaError;

use super::lanes::{Absence, Lanes, Load, Placed, SentContent, SentRecord};
use super::source_progress::SourceProgress;
use super::{Broker, code_of};
use crate::error::{ErrorKind, RelayError};
use crate::event::record::Prepared;
use crate::failpoint::{self, Boundary};
use crate::kafka;
use crate::kafka::producers::{ProducerRecord, Tag};
use crate::kafka::query::{QueriedPartition, Query, Verification};
use crate::progress::ledger::{Completed, EntryId};
use crate::progress::partition_dedup::Admission;
use crate::status::metrics::Metrics;
use crate::topics::kafka_time::KafkaTime;
use crate::topics::partitions::PartitionId;
use crate::topics::registry::{PartitionName, TopicId, TopicRegistry};

/// Maximum number of transactions that are read and not in the acknowledged prefix. An entry is small, but while one
/// partition makes no progress, the transactions after it must not fill the memory.
const MAX_UNACKNOWLEDGED_TRANSACTIONS: usize = 65_536;
/// Maximum number of acknowledged records that no checkpoint counts, one for each transaction and partition: about
/// 12 MB. While one partition makes no progress, transactions with many partitions must not fill the memory either.
const MAX_UNCONFIRMED_RECORDS: usize = 4 * MAX_UNACKNOWLEDGED_TRANSACTIONS;

/// Event counts of this session.
#[derive(Clone, Copy, Debug, Default)]
pub struct Counters {
    /// Rows read.
    pub received: u64,
    /// Records handed to a producer.
    pub sent: u64,
    /// Rows that were not sent because Kafka has them.
    pub suppressed: u64,
    /// Records acknowledged by Kafka.
    pub acknowledged: u64,
    /// Transactions whose rows are all in Kafka.
    pub transactions: u64,
}

pub(super) struct InFlight<B> {
    pub(super) broker: B,
    pub(super) topics: TopicRegistry,
    pub(super) lanes: Lanes,
    pub(super) progress: SourceProgress,
    pub(super) counts: Counters,
    /// `ce_source`.
    pub(super) source: String,
    budget: Load,
    /// The time of this turn of the event loop.
    now: KafkaTime,
    metrics: Metrics,
}

impl<B: Broker> InFlight<B> {
    /// Nothing is in flight yet. `budget` is the limit of what is.
    pub(super) fn new(
        broker: B,
        topics: TopicRegistry,
        progress: SourceProgress,
        source: String,
        budget: Load,
        metrics: Metrics,
    ) -> InFlight<B> {
        InFlight {
            broker,
            topics,
            lanes: Lanes::default(),
            progress,
            counts: Counters::default(),
            source,
            budget,
            now: PgTime::now().into(),
            metrics,
        }
    }

    /// A turn of the event loop begins.
    pub(super) fn on_turn(&mut self, now: Instant) {
        self.lanes.on_turn(now);
        self.now = PgTime::now().into();
    }

    /// Whether the budget allows another message. A single record may always be in flight, however large.
    pub(super) fn has_room(&self) -> bool {
        let Load { events, bytes } = self.lanes.load();
        let within_budget = events < self.budget.events && bytes < self.budget.bytes;
        let within = within_budget && self.topics.unconfirmed_count() < MAX_UNCONFIRMED_RECORDS;
        (within || events == 0) && self.progress.ledger.len() < MAX_UNACKNOWLEDGED_TRANSACTIONS
    }

    /// Whether a row must be sent to its partition, is there already, or has to wait, perhaps behind other rows.
    pub(super) fn admit(&mut self, row: Placed) -> Result<Admission, RelayError> {
        match self.lanes.has_waiting(row.partition) {
            true => Ok(Admission::Wait),
            false => self.admit_next(row),
        }
    }

    /// The same for a row that no other row waits before.
    fn admit_next(&mut self, row: Placed) -> Result<Admission, RelayError> {
        let Placed { partition, position, fingerprint, absence, .. } = row;
        let before_horizon = self.progress.lineage.holds(position);
        let admission = match self.topics.partition_mut(partition) {
            verified if verified.is_verified() => verified.dedup.admit(position, before_horizon),
            _ => Admission::Wait,
        };
        if let Admission::Scan { from } = admission {
            let min_in_sync = self.topics.topic_of(partition).min_in_sync_replicas();
            self.broker.query(Query::Scan { partition: self.queried(partition), from, min_in_sync });
        }
        if admission != Admission::AlreadyThere || !self.topics.lacks(partition, position, fingerprint) {
            return Ok(admission);
        }
        match absence {
            Absence::NotSent => Ok(Admission::Send),
            Absence::SentElsewhere => Ok(Admission::AlreadyThere),
            Absence::Impossible => Err(self.missing_event_error(partition, position)),
        }
    }

    /// A partition has events after a row's position, but not the row's own event.
    fn missing_event_error(&self, partition: PartitionId, position: Position) -> RelayError {
        let (name, source) = (self.topics.name_of(partition), &self.source);
        let what = format!(
            "{name} has events of source {source} after {position}, but not the event of that position: \
             another outbox writes to the topic under the same source name, or Kafka has lost records"
        );
        RelayError::new(ErrorKind::EventSourceShared, what)
    }

    /// Sends rows that wait for a partition, as far as possible, after the partition's state has changed.
    pub(super) fn resume(&mut self, partition: PartitionId) -> Result<(), RelayError> {
        while let Some(row) = self.lanes.pop_waiting(partition) {
            match self.admit_next(row.placed)? {
                Admission::Send => self.send(row.prepared, row.entry, row.placed)?,
                Admission::AlreadyThere => {
                    self.count_suppressed();
                    let completed = self.progress.ledger.withdraw(row.entry)?;
                    self.on_completed(completed);
                }
                Admission::Wait | Admission::Scan { .. } => {
                    self.lanes.put_back(row);
                    return Ok(());
                }
            }
        }
        Ok(())
    }

    /// Sends the record of a row.
    pub(super) fn send(
        &mut self,
        mut prepared: Prepared<'_>,
        entry: EntryId,
        placed: Placed,
    ) -> Result<(), RelayError> {
        let Placed { partition, position, read_from, .. } = placed;
        let dead_letter = prepared.dead.take().map(Box::new);
        let is_dead_letter = dead_letter.is_some();
        let content = SentContent::Row { position, read_from, dead_letter };
        self.produce(prepared, Tag::new(entry, partition), content)
            .map_err(|error| produce_failed(&format!("the event at {position}"), &error))?;
        if is_dead_letter {
            failpoint::pass(Boundary::DeadLetterSent);
        }
        self.topics.partition_mut(partition).dedup.on_sent(position, self.lanes.now());
        Ok(())
    }

    /// Sends a dead letter again, which has neither a position nor a ledger entry.
    pub(super) fn send_replay(
        &mut self,
        prepared: Prepared<'_>,
        partition: PartitionId,
    ) -> Result<(), RelayError> {
        self.produce(prepared, Tag::replay(partition), SentContent::Replay)
            .map_err(|error| produce_failed("a dead letter", &error))
    }

    fn produce(&mut self, prepared: Prepared<'_>, tag: Tag, content: SentContent) -> Result<(), KafkaError> {
        let name = self.topics.name_of(tag.partition());
        let (now, time) = (self.now, KafkaTime::from(prepared.time));
        let keeps_time = self.topics.topic_of(tag.partition()).accepts_timestamp(time, now);
        if !keeps_time {
            self.metrics.timestamps_replaced_total.inc();
        }
        let record = ProducerRecord {
            topic: name.topic,
            partition: name.number,
            key: prepared.key.as_deref(),
            value: prepared.value.as_deref(),
            headers: prepared.headers,
            timestamp: if keeps_time { time } else { now },
        };
        let sent = self.broker.produce(record, tag);
        // A producer accepts nothing after a refused record, so this call may be the first sign of the refusal.
        sent.inspect_err(|error| self.metrics.count_produce_error(code_of(error)))?;
        self.counts.sent += 1;
        self.lanes.on_sent(SentRecord { tag, bytes: prepared.bytes, content });
        Ok(())
    }

    /// A partition, as queries name it.
    pub(super) fn queried(&self, id: PartitionId) -> QueriedPartition<'_> {
        let PartitionName { topic, number } = self.topics.name_of(id);
        QueriedPartition { id, topic, number }
    }

    /// Compares the partitions of a topic with what this session knows.
    pub(super) fn verify(&self, topic: TopicId, when: Verification) {
        let partitions = self.topics.to_verify(topic);
        let topic = &self.topics.topic(topic).name;
        self.broker.query(Query::Verify { topic, partitions, when });
    }

    /// A row was not sent because Kafka has it.
    pub(super) fn count_suppressed(&mut self) {
        self.counts.suppressed += 1;
        self.metrics.duplicates_suppressed_total.inc();
    }

    pub(super) fn count_duplicates(&self, duplicates: u64) {
        if duplicates > 0 {
            self.metrics.duplicates_detected_total.inc_by(duplicates);
            tracing::warn!(
                events = duplicates,
                "events are in a partition twice: another relay process was still sending"
            );
        }
    }

    /// All rows of a transaction are in Kafka, if there is one.
    pub(super) fn on_completed(&mut self, completed: Option<Completed>) {
        let Some(Completed { commit_time }) = completed else { return };
        self.counts.transactions += 1;
        let micros = PgTime::now().as_micros().saturating_sub(commit_time.as_micros());
        self.metrics.transactions_total.inc();
        // Negative when the database's clock is ahead of this machine's.
        self.metrics.commit_to_ack_seconds.observe(micros.max(0) as f64 / 1e6);
    }
}

fn produce_failed(what: &str, error: &KafkaError) -> RelayError {
    kafka::error_codes::error_of(&format!("the producer did not accept {what}"), code_of(error))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use pg_replication::{EndLsn, TimelineHistory};

    use super::*;
    use crate::delivery::model::MemoryKafka;
    use crate::progress::lineage::Lineage;
    use crate::progress::offset::Offset;
    use crate::topics::partitions::PartitionNumber;

    #[test]
    fn acknowledged_records_of_many_partitions_are_bounded_while_another_one_is_stuck() {
        let mut topics = TopicRegistry::default();
        let topic = topics.add("t", 5, &BTreeMap::new());
        let [stuck, others @ ..] =
            [0, 1, 2, 3, 4].map(|number| topics.partition_at(topic, PartitionNumber(number)).unwrap());
        let lineage = Lineage::new(TimelineHistory::parse(1, "").unwrap(), EndLsn::ZERO);
        let progress = SourceProgress::new(EndLsn::ZERO, lineage, None);
        let (kafka, budget) = (MemoryKafka::new(5), Load { events: 10, bytes: 10_000 });
        let metrics = Metrics::new().unwrap();
        let mut in_flight = InFlight::new(kafka, topics, progress, String::new(), budget, metrics);
        let sent = SentRecord { tag: Tag::new(EntryId(0), stuck), bytes: 1, content: SentContent::Replay };
        in_flight.lanes.on_sent(sent);
        let mut entry = 0;
        while in_flight.has_room() && entry < 1_000_000 {
            entry += 1;
            let position = Position { timeline: 1, commit_lsn: entry, index: 0 };
            for partition in others {
                in_flight.topics.on_acknowledged(partition, EntryId(entry), position, Offset(7));
            }
        }
        assert_eq!(in_flight.topics.unconfirmed_count(), MAX_UNCONFIRMED_RECORDS);
        in_flight.topics.advance_scan_starts(EntryId(entry + 1), EndLsn::ZERO);
        assert!(in_flight.has_room(), "a checkpoint makes room");
    }
}
