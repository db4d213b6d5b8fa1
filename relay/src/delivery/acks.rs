//! Kafka's acknowledgements: from the record in flight to the ledger, the partition and the rows that wait for it.

use std::time::Instant;

use pg_replication::EndLsn;
use prometheus::IntCounter;

use super::dead_letter_log::DeadLetterLog;
use super::in_flight::InFlight;
use super::ingest::ReadFrom;
use super::lanes::{SentContent, SentRecord};
use super::refusals::RefusalWatch;
use super::replays::Replays;
use super::topic_counters::TopicCounters;
use super::{Broker, LostRecords, ProducerReports};
use crate::error::{ErrorKind, RefillCause, RelayError};
use crate::event::dead_letter::DeadLetterSummary;
use crate::failpoint::{self, Boundary};
use crate::kafka::producers::Ack;
use crate::kafka::query::Query;
use crate::progress::offset::Offset;
use crate::progress::partition_dedup::{Landed, OffsetGap};
use crate::status::Status;
use crate::status::metrics::Metrics;
use crate::topics::partitions::PartitionId;

pub(super) struct Acks {
    drained: Vec<Ack>,
    /// Acknowledgements that were drained but not processed, because one before them was a failure.
    unprocessed: Vec<Ack>,
    counters: TopicCounters,
    dead_letters: DeadLetterLog,
    lost: Option<LostRecords>,
    status: Status,
    metrics: Metrics,
}

impl Acks {
    pub(super) fn new(status: Status, metrics: Metrics) -> Acks {
        Acks {
            drained: Vec::new(),
            unprocessed: Vec::new(),
            counters: TopicCounters::default(),
            dead_letters: DeadLetterLog::default(),
            lost: None,
            status,
            metrics,
        }
    }

    /// Takes what the producers have reported. Returns their reports, and the number of outcomes to process.
    pub(super) fn take_reports(&mut self, broker: &impl Broker) -> (ProducerReports, usize) {
        let reports = broker.take_reports(&mut self.drained);
        (reports, self.drained.len())
    }

    /// Processes the outcomes that were taken, up to the first failure.
    pub(super) fn process<B: Broker>(
        &mut self,
        now: Instant,
        in_flight: &mut InFlight<B>,
        replays: &mut Replays,
        refusals: &mut RefusalWatch,
    ) -> Result<(), RelayError> {
        let mut drained = std::mem::take(&mut self.drained);
        let mut acks = drained.drain(..);
        let processed = acks.try_for_each(|ack| {
            let partition = ack.tag.partition();
            if ack.tag.is_replay() {
                replays.on_outcome(in_flight.topics.name_of(partition), &ack.outcome);
            }
            match ack.outcome {
                Ok(offset) => self.on_acknowledged(&ack, offset, now, in_flight),
                Err(code) => {
                    self.metrics.count_produce_error(code);
                    let position =
                        in_flight.lanes.on_ended(partition).and_then(|sent| sent.content.position());
                    Err(refusals.on_refusal(partition, position, code, in_flight))
                }
            }
        });
        self.unprocessed.extend(acks);
        self.drained = drained;
        processed
    }

    fn on_acknowledged<B: Broker>(
        &mut self,
        ack: &Ack,
        offset: Offset,
        now: Instant,
        in_flight: &mut InFlight<B>,
    ) -> Result<(), RelayError> {
        let (entry, partition) = (ack.tag.entry(), ack.tag.partition());
        let SentRecord { bytes, content, .. } = in_flight.lanes.on_acked(ack.tag)?;
        let SentContent::Row { position, read_from, dead_letter } = content else { return Ok(()) };
        in_flight.counts.acknowledged += 1;
        let completed = in_flight.progress.ledger.acknowledge(entry)?;
        failpoint::pass(match completed {
            None => Boundary::PartlyAcknowledged,
            Some(_) => Boundary::AllAcknowledged,
        });
        match read_from {
            ReadFrom::Stream => in_flight.on_completed(completed),
            ReadFrom::Table(refill) => snapshot_rows(&self.metrics, refill).inc(),
        }
        self.count(partition, bytes, dead_letter, in_flight);
        match in_flight.topics.partition_mut(partition).dedup.on_acknowledged(offset, now) {
            Landed::InOrder => {}
            Landed::AfterGap(gap) => on_gap(partition, gap, in_flight),
            Landed::Backwards { expected } => {
                return Err(self.on_lost_records(partition, offset, expected, in_flight));
            }
        }
        in_flight.topics.on_acknowledged(partition, entry, position, offset);
        in_flight.resume(partition)
    }

    fn count<B>(
        &mut self,
        partition: PartitionId,
        bytes: usize,
        dead_letter: Option<Box<DeadLetterSummary>>,
        in_flight: &InFlight<B>,
    ) {
        let counter = || {
            let topic = &in_flight.topics.topic_of(partition).name;
            self.metrics.events_total.with_label_values(&[topic])
        };
        self.counters.count(partition, counter);
        self.metrics.bytes_total.inc_by(bytes as u64);
        if let Some(summary) = dead_letter {
            self.metrics.dead_letters_total.with_label_values(&[summary.kind.name()]).inc();
            self.dead_letters.on_acknowledged(&summary);
            self.status.on_dead_letter(*summary);
        }
    }

    /// A record was stored before offsets that the partition had already reached.
    fn on_lost_records<B>(
        &mut self,
        partition: PartitionId,
        offset: Offset,
        expected: Offset,
        in_flight: &InFlight<B>,
    ) -> RelayError {
        let name = in_flight.topics.name_of(partition);
        let what = format!(
            "{name} stored a record at offset {offset}, but it had already reached offset {expected}, so Kafka has \
             lost records; the relay sends all unconfirmed rows again"
        );
        self.lost = Some(LostRecords { topic: name.topic.to_owned(), partition: name.number, offset });
        self.metrics.duplicates_detected_total.inc();
        RelayError::new(ErrorKind::KafkaLostRecords, what)
    }

    /// The records that Kafka lost, if that ended the session.
    pub(super) fn take_lost_records(&mut self) -> Option<LostRecords> {
        self.lost.take()
    }

    /// The outcomes that were taken but not processed.
    pub(super) fn take_unprocessed(&mut self) -> Vec<Ack> {
        std::mem::take(&mut self.unprocessed)
    }
}

/// Counts the rows that were in the table before the slot: those of the initial snapshot, or of a refill.
pub(super) fn snapshot_rows(metrics: &Metrics, refill: Option<RefillCause>) -> IntCounter {
    metrics.refilled_rows_total.with_label_values(&[refill.map_or("start", RefillCause::name)])
}

/// There is a gap of offsets before a record of this process: other producers wrote there. Rows wait only for the scan
/// of the gap before the probe.
fn on_gap<B: Broker>(partition: PartitionId, gap: OffsetGap, in_flight: &InFlight<B>) {
    let dedup = &in_flight.topics.partition(partition).dedup;
    let is_before_probe = dedup.retain_from(EndLsn::ZERO) == Some(gap.range.from);
    let partition = in_flight.queried(partition);
    in_flight.broker.query(match is_before_probe {
        true => Query::GapBeforeProbe(partition, gap),
        false => Query::Gap(partition, gap),
    });
}
