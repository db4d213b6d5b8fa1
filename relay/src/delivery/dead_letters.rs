//! Dead letters that are sent and not acknowledged.

use std::collections::{HashMap, VecDeque};
use std::time::{Duration, Instant};

use crate::event::dead_letter::DeadLetterSummary;
use crate::status::Status;
use crate::status::metrics::Metrics;
use crate::topics::partitions::PartitionId;

/// One log line a second at most: a writer that went wrong produces thousands.
const LOG_EVERY: Duration = Duration::from_secs(1);

/// Dead letters on their way: each is counted and shown when Kafka has it, not when it is sent.
pub struct InFlightDeadLetters {
    /// In the order in which they were sent, which is the order in which a partition acknowledges.
    sent: HashMap<PartitionId, VecDeque<DeadLetterSummary>>,
    metrics: Metrics,
    status: Status,
    logged: Option<Instant>,
    unlogged: u64,
}

impl InFlightDeadLetters {
    /// None yet.
    pub fn new(metrics: Metrics, status: Status) -> InFlightDeadLetters {
        InFlightDeadLetters { sent: HashMap::new(), metrics, status, logged: None, unlogged: 0 }
    }

    /// A dead letter was handed to a producer.
    pub fn on_sent(&mut self, partition: PartitionId, note: DeadLetterSummary) {
        self.sent.entry(partition).or_default().push_back(note);
    }

    /// A record of `partition` is in Kafka. Every record of a dead-letter topic is a dead letter.
    pub fn on_acknowledged(&mut self, partition: PartitionId) {
        let Some(note) = self.sent.get_mut(&partition).and_then(VecDeque::pop_front) else { return };
        self.metrics.dead_letters_total.with_label_values(&[note.kind.label()]).inc();
        self.log(&note);
        self.status.on_dead_letter(note);
    }

    fn log(&mut self, note: &DeadLetterSummary) {
        if self.logged.is_some_and(|at| at.elapsed() < LOG_EVERY) {
            self.unlogged += 1;
            return;
        }
        self.logged = Some(Instant::now());
        let unlogged = std::mem::take(&mut self.unlogged);
        tracing::warn!(reason = note.kind.label(), unlogged, "{note}");
    }
}
