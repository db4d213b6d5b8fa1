//! What the event loop shows in status and metrics.

use pg_replication::EndLsn;

use super::EventLoop;
use super::snapshot::RowSource;
use crate::status::{KafkaAnswers, SessionStats, StallReason};

impl EventLoop {
    /// Why the stream is not read at the moment.
    pub(super) fn stall_reason(&self) -> Option<StallReason> {
        if self.input.is_poisoned() {
            Some(StallReason::PoisonRow)
        } else if self.is_in_snapshot() {
            Some(StallReason::Snapshot)
        } else if !self.delivery.has_room() {
            Some(StallReason::Budget)
        } else if self.input.is_blocked() {
            Some(if self.delivery.waits_for_topic() {
                StallReason::Topic
            } else if self.delivery.waits_for_partition() {
                StallReason::Partition
            } else {
                StallReason::Checkpoint
            })
        } else {
            None
        }
    }

    fn is_in_snapshot(&self) -> bool {
        matches!(self.source, RowSource::Snapshot(_))
    }

    pub(super) fn report(&self) {
        let load = self.delivery.load();
        let ledger = self.delivery.ledger();
        let counts = self.delivery.counts();
        let numbers = SessionStats {
            received: EndLsn::new(self.stream.received()),
            received_events: counts.received,
            sent_events: counts.sent,
            suppressed_events: counts.suppressed,
            acknowledged: ledger.acknowledged(),
            acknowledged_events: counts.acknowledged,
            confirmed: self.stream.confirmed_sent(),
            in_flight_events: load.events,
            in_flight_bytes: load.bytes,
            oldest_commit: ledger.oldest_commit_time(),
            snapshot_rows: (self.snapshot_rows.get() > 0 || self.is_in_snapshot())
                .then(|| self.snapshot_rows.get()),
            stall_reason: self.stall_reason(),
            writing_since: self.writer.waits_since(),
        };
        self.status.set_session_stats(numbers);
        let metrics = &self.metrics;
        metrics.in_flight_events.set(gauge(load.events as u64));
        metrics.in_flight_bytes.set(gauge(load.bytes as u64));
        metrics.received_lsn.set(gauge(numbers.received.lsn().as_u64()));
        metrics.acknowledged_lsn.set(gauge(numbers.acknowledged.lsn().as_u64()));
        metrics.confirmed_lsn.set(gauge(numbers.confirmed.lsn().as_u64()));
        let kafka = self.delivery.kafka_answers();
        self.status.set_kafka_answers(kafka, self.acks.last_connection_error());
        metrics.connected.with_label_values(&["kafka"]).set(i64::from(kafka == KafkaAnswers::Yes));
    }
}

fn gauge(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}
