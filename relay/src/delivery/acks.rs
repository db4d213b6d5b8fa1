//! Kafka's acknowledgements, and what follows when there are none.

use std::time::{Duration, Instant};

use pg_replication::{EndLsn, PgTime};
use rdkafka::error::RDKafkaErrorCode;

use super::lanes::{SentContent, SentRecord};
use super::replays::complete_replay;
use super::{Broker, CAUSE_START, Delivery, LostRecords};
use crate::error::{ErrorKind, RelayError};
use crate::event::record::kafka_timestamp;
use crate::failpoint::{self, Boundary};
use crate::kafka::producers::Ack;
use crate::kafka::query::Query;
use crate::kafka::watchdog::{Activity, WatchdogAction};
use crate::progress::ledger::Completed;
use crate::progress::partition_dedup::{Landed, OffsetGap};
use crate::topics::partitions::PartitionId;

/// How often to log that authentication with a broker fails.
const WARN_EVERY: Duration = Duration::from_secs(60);

impl<B: Broker> Delivery<B> {
    /// Processes the acknowledgements that have arrived. A failed delivery ends the session.
    pub fn process_acks(&mut self, now: Instant) -> Result<(), RelayError> {
        let mut drained = std::mem::take(&mut self.drained_acks);
        let reports = self.broker.take_reports(&mut drained);
        self.acked_since_tick += drained.len();
        self.brokers_down |= reports.brokers_down;
        self.lanes.on_turn(now);
        self.now_millis = kafka_timestamp(PgTime::now());
        let mut acks = drained.drain(..);
        let processed = acks.try_for_each(|ack| self.on_ack(ack, now));
        self.unprocessed_acks.extend(acks);
        self.drained_acks = drained;
        processed?;
        if let Some(why) = reports.auth_error {
            self.on_auth_error(why, now);
        }
        if reports.failed {
            self.metrics.count_produce_error(RDKafkaErrorCode::Fatal);
            return Err(RelayError::new(ErrorKind::DeliveryFailed, "a producer has failed permanently"));
        }
        Ok(())
    }

    /// TLS or SASL with one broker failed. If no other broker responds either, the result of the query started here
    /// ends the session.
    fn on_auth_error(&mut self, why: String, now: Instant) {
        if self.auth_error_logged.is_none_or(|at| now.saturating_duration_since(at) >= WARN_EVERY) {
            self.auth_error_logged = Some(now);
            tracing::warn!(
                "authentication with a Kafka broker failed: {why}; check the broker's certificate and the relay's \
                 Kafka credentials"
            );
        }
        self.auth_error = Some(why);
        if self.watchdog.claim_probe() {
            self.broker.query(Query::Reachability { of_producers: false });
        }
    }

    fn on_ack(&mut self, ack: Ack, now: Instant) -> Result<(), RelayError> {
        let (entry, partition) = (ack.tag.entry(), ack.tag.partition());
        if ack.tag.is_replay() {
            complete_replay(self.replay.take(), self.topics.name_of(partition), &ack.outcome);
        }
        let offset = match ack.outcome {
            Ok(offset) => offset,
            Err(code) => {
                let position = self.lanes.on_ended(partition).and_then(|sent| sent.content.position());
                self.metrics.count_produce_error(code);
                return Err(self.on_refusal(partition, position, code));
            }
        };
        let SentRecord { bytes, content, .. } = self.lanes.on_acked(ack.tag)?;
        let Some(position) = content.position() else { return Ok(()) };
        self.counts.acknowledged += 1;
        let completed = self.ledger.acknowledge(entry)?;
        failpoint::pass(match completed {
            None => Boundary::PartlyAcknowledged,
            Some(_) => Boundary::AllAcknowledged,
        });
        if self.snapshot.is_some() {
            self.metrics.refilled_rows_total.with_label_values(&[CAUSE_START]).inc();
        } else {
            self.observe_latency(completed);
        }
        let counter = || {
            let topic = &self.topics.topic_of(partition).name;
            self.metrics.events_total.with_label_values(&[topic])
        };
        self.counters.count(partition, counter);
        self.metrics.bytes_total.inc_by(bytes as u64);
        if let SentContent::DeadLetter(summary) = content {
            self.metrics.dead_letters_total.with_label_values(&[summary.kind.label()]).inc();
            self.dead_letters.on_acknowledged(&summary);
            self.status.on_dead_letter(*summary);
        }
        match self.topics.partition_mut(partition).dedup.on_acknowledged(offset, now) {
            Landed::AfterGap(gap) => self.on_gap(partition, gap),
            Landed::Backwards { expected } => {
                let name = self.topics.name_of(partition);
                let what = format!(
                    "{name} stored a record at offset {offset}, but it had already reached offset \
                     {expected}, so Kafka has lost records; the relay sends all unconfirmed rows again"
                );
                let (topic, partition) = (name.topic.to_owned(), name.number);
                self.lost = Some(LostRecords { topic, partition, offset });
                self.metrics.duplicates_detected_total.inc();
                return Err(RelayError::new(ErrorKind::KafkaLostRecords, what));
            }
            Landed::InOrder => {}
        }
        self.topics.partition_mut(partition).on_acknowledged(entry, position, offset);
        self.resume(partition)
    }

    /// There is a gap of offsets before a record of this process: other producers wrote there. Rows wait only for the
    /// scan of the gap before the probe.
    fn on_gap(&mut self, partition: PartitionId, gap: OffsetGap) {
        let dedup = &self.topics.partition(partition).dedup;
        let is_before_probe = dedup.retain_from(EndLsn::ZERO) == Some(gap.from);
        let partition = self.queried(partition);
        self.broker.query(match is_before_probe {
            true => Query::GapBeforeProbe(partition, gap),
            false => Query::Gap(partition, gap),
        });
    }

    pub(super) fn observe_latency(&self, completed: Option<Completed>) {
        let Some(Completed { commit_time }) = completed else { return };
        let micros = PgTime::now().as_micros().saturating_sub(commit_time.as_micros());
        self.metrics.transactions_total.inc();
        // Negative when the database's clock is ahead of this machine's.
        self.metrics.commit_to_ack_seconds.observe(micros.max(0) as f64 / 1e6);
    }

    pub(super) fn watch_producers(&mut self, now: Instant) -> Result<(), RelayError> {
        let activity = match std::mem::take(&mut self.acked_since_tick) {
            0 if self.lanes.sent.events == 0 => Activity::Idle,
            0 => Activity::Waiting,
            _ => Activity::Acknowledged,
        };
        if activity == Activity::Acknowledged {
            self.kafka_answers = Some(true);
        }
        match self.watchdog.tick(now, activity, std::mem::take(&mut self.brokers_down)) {
            WatchdogAction::None => Ok(()),
            WatchdogAction::Probe => {
                // A stranded producer matters only while it has records to send and gets no acknowledgements.
                let of_producers = activity == Activity::Waiting;
                self.broker.query(Query::Reachability { of_producers });
                Ok(())
            }
            WatchdogAction::Rebuild => {
                let what = "Kafka is reachable, but acknowledges none of the records in flight";
                Err(RelayError::new(ErrorKind::DeliveryFailed, what))
            }
        }
    }
}
