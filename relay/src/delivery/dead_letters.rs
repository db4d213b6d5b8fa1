//! Dead letters that are sent but not acknowledged.

use std::collections::{HashMap, VecDeque};
use std::time::{Duration, Instant};

use crate::event::dead_letter::DeadLetterSummary;
use crate::status::Status;
use crate::status::metrics::Metrics;
use crate::topics::partitions::PartitionId;

/// At most one log line per second, because a faulty writer produces thousands of dead letters.
const LOG_EVERY: Duration = Duration::from_secs(1);

/// Dead letters in flight. Each is counted and shown when Kafka has acknowledged it, not when it is sent.
pub struct InFlightDeadLetters {
    /// In the order of sending, which is the order in which a partition acknowledges.
    sent: HashMap<PartitionId, VecDeque<DeadLetterSummary>>,
    metrics: Metrics,
    status: Status,
    logged: Option<Instant>,
    unlogged: u64,
}

impl InFlightDeadLetters {
    /// No dead letters yet.
    pub fn new(metrics: Metrics, status: Status) -> InFlightDeadLetters {
        InFlightDeadLetters { sent: HashMap::new(), metrics, status, logged: None, unlogged: 0 }
    }

    /// A dead letter was passed to a producer.
    pub fn on_sent(&mut self, partition: PartitionId, summary: DeadLetterSummary) {
        self.sent.entry(partition).or_default().push_back(summary);
    }

    /// A record of `partition` is in Kafka. If the partition is of a dead-letter topic, the record is a dead letter.
    pub fn on_acknowledged(&mut self, partition: PartitionId) {
        let Some(summary) = self.sent.get_mut(&partition).and_then(VecDeque::pop_front) else { return };
        self.metrics.dead_letters_total.with_label_values(&[summary.kind.label()]).inc();
        self.log(&summary);
        self.status.on_dead_letter(summary);
    }

    fn log(&mut self, summary: &DeadLetterSummary) {
        if self.logged.is_some_and(|at| at.elapsed() < LOG_EVERY) {
            self.unlogged += 1;
            return;
        }
        self.logged = Some(Instant::now());
        let unlogged = std::mem::take(&mut self.unlogged);
        tracing::warn!(reason = summary.kind.label(), unlogged, "{summary}");
    }
}
