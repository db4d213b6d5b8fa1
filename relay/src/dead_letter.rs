//! Rows that cannot become the record they were meant to be, and what becomes of them with
//! `delivery.onPoison: DeadLetter`: a record of the dead-letter topic that says why.
//!
//! A dead letter takes the way of any record: it has the row's position, lies in the partition its key selects,
//! is in the ledger, and so is there exactly once after a crash. It always fits: what does not is left out and named
//! in a header, with the table that has it.
//!
//! [`topic`] reads dead letters back, [`replay`] sends them again, whole again where [`restore`] finds their rows.

mod letter;
mod poison;
pub mod replay;
pub mod restore;
pub mod topic;

use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use outbox::Position;

pub use letter::DeadLetterEncoder;
pub use poison::{DecodedRow, Poison, PoisonKind};

use crate::status::Status;
use crate::status::metrics::Metrics;
use crate::topics::partitions::PartitionId;

/// One log line a second at most: a writer that went wrong produces thousands.
const LOG_EVERY: Duration = Duration::from_secs(1);

/// What `/status` and the log say of a dead letter: no payload.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeadLetterSummary {
    /// Why.
    pub kind: PoisonKind,
    /// The event's id, as far as it is known and not longer than an id should be.
    pub id: Option<String>,
    /// Where the row stands.
    pub position: Position,
    /// The topic it was meant for.
    pub topic: Option<Arc<str>>,
}

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

impl fmt::Display for DeadLetterSummary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let id = self.id.as_deref().unwrap_or("without an id");
        write!(f, "event {id} at {} is a dead letter", self.position)?;
        match &self.topic {
            Some(topic) => write!(f, "; it was meant for topic {topic}"),
            None => Ok(()),
        }
    }
}
