//! What session, observer and maintenance tell: phase, hold-ups, numbers.

use std::time::{Duration, Instant, SystemTime};

use pg_replication::{EndLsn, PgTime};

/// What the relay is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Connecting, checking, taking the slot.
    Starting,
    /// The stream is open and waits; the rows that were there before it are delivered.
    Copying,
    /// The stream is open.
    Streaming,
    /// Another relay holds the slot.
    Standby,
    /// A trouble ended the session; another is tried later.
    Waiting,
    /// A trouble needs a person.
    Stopped,
    /// SIGTERM: what is under way is finished.
    Draining,
}

impl Phase {
    pub(super) fn name(self) -> &'static str {
        match self {
            Phase::Starting => "starting",
            Phase::Copying => "copying",
            Phase::Streaming => "streaming",
            Phase::Standby => "standby",
            Phase::Waiting => "waiting",
            Phase::Stopped => "stopped",
            Phase::Draining => "draining",
        }
    }
}

/// Why nothing is read from the stream although it is open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StallReason {
    /// As much is sent and not acknowledged as may be.
    Budget,
    /// A row waits for its topic to exist.
    Topic,
    /// A row waits for its partition and cannot be set aside, or until its topic is in the checkpoint.
    Search,
    /// A row can never be delivered.
    PoisonRow,
    /// The rows that were there before the slot are delivered first.
    Copy,
}

impl StallReason {
    pub(super) fn text(self) -> &'static str {
        match self {
            StallReason::Budget => "the budget is used up: Kafka has to acknowledge first",
            StallReason::Topic => "a row waits for its topic",
            StallReason::Search => {
                "a row waits for its partition, and cannot be set aside: Kafka refused it before, or it goes elsewhere than its mapping said"
            }
            StallReason::PoisonRow => "a row cannot be delivered",
            StallReason::Copy => "the rows that were there before the slot are delivered first",
        }
    }
}

/// Numbers the session reports at every tick. Events are counted since the stream was opened.
#[derive(Clone, Copy, Debug, Default)]
pub struct SessionStats {
    /// Last LSN read from the stream.
    pub received: EndLsn,
    /// Rows read.
    pub received_events: u64,
    /// Records handed to a producer.
    pub sent_events: u64,
    /// Rows that were not sent, because Kafka had them.
    pub suppressed_events: u64,
    /// End of the contiguous acknowledged prefix.
    pub acknowledged: EndLsn,
    /// Records acknowledged by Kafka.
    pub acknowledged_events: u64,
    /// What the server was told.
    pub confirmed: EndLsn,
    /// Events sent and not acknowledged.
    pub in_flight_events: usize,
    /// Their bytes.
    pub in_flight_bytes: usize,
    /// Commit time of the oldest transaction that waits.
    pub oldest_commit: Option<PgTime>,
    /// Rows of the first copy this process has delivered; `None` when it had none to do.
    pub copied_rows: Option<u64>,
    /// Why nothing is read.
    pub hold_up: Option<StallReason>,
    /// Since when a checkpoint is being written.
    pub writing_since: Option<Instant>,
}

/// What the rows of a partition wait for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WaitsFor {
    /// Records are sent, and not acknowledged.
    Acknowledgement,
    /// What Kafka has already is not known yet.
    Search,
}

/// A partition that makes no progress, whatever the others do.
#[derive(Clone, Debug)]
pub struct SilentPartition {
    /// Topic.
    pub topic: String,
    /// Partition number.
    pub partition: i32,
    /// Records that wait to be acknowledged.
    pub records: usize,
    /// Since when the oldest of them waits.
    pub oldest: Instant,
    /// Since when there is no progress.
    pub since: Instant,
    /// For what.
    pub waits_for: WaitsFor,
    /// What is wrong with the partition, where that was found out.
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
                "partition {topic}/{partition} acknowledges nothing, {records} records wait, the oldest for {age} s{cause}"
            ),
            WaitsFor::Search => format!(
                "{records} rows wait, the oldest for {age} s, until partition {topic}/{partition} was searched for what Kafka has already{cause}"
            ),
        }
    }
}

/// How the last maintenance of the table's partitions went.
#[derive(Clone, Debug)]
pub struct Maintenance {
    /// When it ended.
    pub at: SystemTime,
    /// What is due and was not done, and why.
    pub held: Option<String>,
    /// Why the call failed.
    pub error: Option<String>,
}

/// The relay's row in the checkpoint table, as seen by the observer.
#[derive(Clone, Copy, Debug)]
pub struct ObservedCheckpoint {
    /// Every commit before it is in Kafka.
    pub confirmed: Option<EndLsn>,
    /// How long ago it was written, by the server's clock.
    pub age: Duration,
}
