//! What the session, the observer and the maintenance task report: phase, stall reasons, counters.

use std::time::{Duration, Instant, SystemTime};

use pg_replication::{EndLsn, PgTime};

use crate::topics::partitions::PartitionNumber;

named! {
    /// What the relay is doing.
    pub enum Phase {
        /// Connecting, checking, taking the slot.
        Starting = "starting",
        /// The stream is open but not read: the initial snapshot of the table is delivered first.
        Snapshot = "copying",
        /// The stream is open but not read: the rows that a lost slot would have streamed are delivered first.
        Refilling = "refilling",
        Streaming = "streaming",
        /// Another relay holds the slot.
        Standby = "standby",
        /// An error ended the session; the relay tries again later.
        Waiting = "waiting",
        /// An error needs a person.
        Stopped = "stopped",
        /// SIGTERM: what is in flight is completed.
        Draining = "draining",
    }
}

impl Phase {
    /// Whether rows are read and delivered.
    pub(super) fn delivers(self) -> bool {
        match self {
            Phase::Snapshot | Phase::Refilling | Phase::Streaming => true,
            Phase::Starting | Phase::Standby | Phase::Waiting | Phase::Stopped | Phase::Draining => false,
        }
    }

    /// Whether a stream is open.
    pub(super) fn has_stream(self) -> bool {
        self.delivers() || self == Phase::Draining
    }
}

/// Why nothing is read from the stream although it is open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StallReason {
    /// The in-flight limit is reached.
    Budget,
    /// A row waits until its topic exists.
    Topic,
    /// A row waits until a checkpoint has stored how rows are routed now.
    Checkpoint,
    /// A row waits for its partition, and must not wait in its lane.
    Partition,
    /// A row can never be delivered.
    PoisonRow,
    /// The rows from before the slot, the initial snapshot or a refill, are delivered first.
    Snapshot,
}

impl StallReason {
    pub(super) fn text(self) -> &'static str {
        match self {
            StallReason::Budget => "the in-flight limit is reached: Kafka has to acknowledge first",
            StallReason::Topic => "a row waits for its topic",
            StallReason::Checkpoint => "a row waits until a checkpoint has stored how rows are routed now",
            StallReason::Partition => {
                "a row waits for its partition and blocks the stream: the topic's settings are not read yet, Kafka \
                 rejected the row before, or it was re-routed"
            }
            StallReason::PoisonRow => "a row cannot be delivered",
            StallReason::Snapshot => "the rows from before the slot are delivered first",
        }
    }
}

/// Whether Kafka responds: it acknowledged something, or answered a query.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum KafkaAnswers {
    /// No query of this session has completed yet.
    #[default]
    Unknown,
    Yes,
    No,
}

/// Counters the session reports at every tick. Events are counted since the stream was opened.
#[derive(Clone, Copy, Debug, Default)]
pub struct SessionStats {
    /// Last LSN read from the stream.
    pub received: EndLsn,
    /// Rows read.
    pub received_events: u64,
    /// Records passed to a producer.
    pub sent_events: u64,
    /// Rows that were not sent because Kafka already had them.
    pub suppressed_events: u64,
    /// End of the contiguous acknowledged prefix.
    pub acknowledged: EndLsn,
    /// Records acknowledged by Kafka.
    pub acknowledged_events: u64,
    pub confirmed: EndLsn,
    /// Events sent or waiting for their partition, and not acknowledged.
    pub in_flight_events: usize,
    /// Their bytes.
    pub in_flight_bytes: usize,
    /// Commit time of the oldest transaction that is not acknowledged.
    pub oldest_commit: Option<PgTime>,
    /// Rows of the initial snapshot this process has delivered; `None` when there was no snapshot to deliver.
    pub snapshot_rows: Option<u64>,
    /// Why the stream is not read.
    pub stall_reason: Option<StallReason>,
    /// Since when a checkpoint write is in progress.
    pub writing_since: Option<Instant>,
}

/// What the rows of a partition wait for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WaitsFor {
    /// Records were sent and are not acknowledged.
    Acknowledgement,
    /// The partition is being scanned for rows that Kafka already has.
    Scan,
}

/// A partition without progress, even while others progress.
#[derive(Clone, Debug)]
pub struct SilentPartition {
    pub topic: String,
    pub partition: PartitionNumber,
    /// Records that are not acknowledged, or rows that wait for the scan.
    pub records: usize,
    /// Since when the oldest of them waits.
    pub oldest: Instant,
    /// Since when there is no progress.
    pub since: Instant,
    pub waits_for: WaitsFor,
    /// What is wrong with the partition, where that was diagnosed.
    pub cause: Option<String>,
}

impl SilentPartition {
    /// The sentence for `/readyz`.
    pub(super) fn text(&self, now: Instant) -> String {
        let (topic, partition, records) = (&self.topic, self.partition, self.records);
        let age = now.saturating_duration_since(self.oldest).as_secs();
        let cause = self.cause.as_ref().map(|cause| format!(": {cause}")).unwrap_or_default();
        match self.waits_for {
            WaitsFor::Acknowledgement => format!(
                "partition {topic}/{partition} does not acknowledge: {records} records wait, the oldest for {age} s{cause}"
            ),
            WaitsFor::Scan => format!(
                "{records} rows wait, the oldest for {age} s, until partition {topic}/{partition} has been scanned for rows that Kafka already has{cause}"
            ),
        }
    }
}

/// The result of the last maintenance of the table's partitions.
#[derive(Clone, Debug)]
pub struct Maintenance {
    /// When it ended.
    pub at: SystemTime,
    /// What was due and was not done, and why.
    pub held: Option<String>,
    /// Why the call failed.
    pub error: Option<String>,
}

/// The relay's row in the checkpoint table, as seen by the observer.
#[derive(Clone, Copy, Debug)]
pub struct ObservedCheckpoint {
    /// Every commit before this LSN is in Kafka.
    pub confirmed: Option<EndLsn>,
    /// How long ago the row was written, by the server's clock.
    pub age: Duration,
}
