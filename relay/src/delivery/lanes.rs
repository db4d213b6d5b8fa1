//! The records of each partition between routing and acknowledgement. A row may wait in its lane: until the partition is
//! verified or scanned, or has acknowledged its probe. Then it is sent, and stays in the lane until Kafka acknowledges
//! it.
//!
//! Kafka acknowledges the records of a partition in the order of sending, and the rows of a partition keep their order.
//! Both count in the in-flight budget, so a partition without progress blocks no other until the budget is used up.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use outbox::Position;

use super::ingest::ReadFrom;
use crate::event::dead_letter::DeadLetterSummary;
use crate::event::record::Prepared;
use crate::kafka::producers::Tag;
use crate::progress::fingerprints::Fingerprint;
use crate::progress::ledger::{EntryId, Inconsistent};
use crate::topics::partitions::PartitionId;

/// A row with the partition it is routed to.
#[derive(Clone, Copy, Debug)]
pub(super) struct Placed {
    pub(super) partition: PartitionId,
    pub(super) position: Position,
    pub(super) read_from: ReadFrom,
    pub(super) fingerprint: Fingerprint,
    pub(super) absence: Absence,
}

/// What it means if the partition lacks a row although it has later ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Absence {
    /// An event cannot be absent.
    Impossible,
    /// Kafka may have refused the row before it became a dead letter, while it accepted later dead letters.
    NotSent,
    /// An earlier version of the routing chose the partition, and the row was sent to the one of a later version.
    SentElsewhere,
}

/// A row that waits. It has its ledger entry.
#[derive(Debug)]
pub(super) struct WaitingRow {
    pub(super) placed: Placed,
    pub(super) prepared: Prepared<'static>,
    pub(super) entry: EntryId,
}

/// A record that is sent but not acknowledged.
#[derive(Debug)]
pub(super) struct SentRecord {
    pub(super) tag: Tag,
    pub(super) bytes: usize,
    pub(super) content: SentContent,
}

/// What a sent record is.
#[derive(Debug)]
pub(super) enum SentContent {
    /// Of a row: its event or its dead letter.
    Row { position: Position, read_from: ReadFrom, dead_letter: Option<Box<DeadLetterSummary>> },
    /// A replayed dead letter, which has no position.
    Replay,
}

impl SentContent {
    pub(super) fn position(&self) -> Option<Position> {
        match self {
            SentContent::Row { position, .. } => Some(*position),
            SentContent::Replay => None,
        }
    }
}

/// A number of events and their bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Load {
    pub events: usize,
    pub bytes: usize,
}

impl Load {
    fn add(&mut self, bytes: usize) {
        self.events += 1;
        self.bytes += bytes;
    }

    fn remove(&mut self, bytes: usize) {
        self.events -= 1;
        self.bytes -= bytes;
    }
}

/// A partition with records and without progress.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct SilentLane {
    pub(super) partition: PartitionId,
    pub(super) records: usize,
    /// When the oldest of the records began to wait.
    pub(super) oldest: Instant,
    /// The time of the last progress.
    pub(super) since: Instant,
}

#[derive(Debug)]
struct Lane {
    waiting: VecDeque<WaitingRow>,
    /// When the first of them was queued.
    waiting_since: Instant,
    sent: VecDeque<(SentRecord, Instant)>,
    /// When the last acknowledgement arrived, or the first record was sent to the empty queue.
    last_progress: Instant,
}

#[derive(Debug)]
pub(super) struct Lanes {
    /// Of the records that are sent.
    pub(super) sent: Load,
    /// Of the rows that wait.
    pub(super) waiting: Load,
    /// By partition. A lane is added with its first record.
    lanes: Vec<Lane>,
    /// Set once per turn of the event loop, because reading the clock for each record would cost more than the rest.
    now: Instant,
}

impl Default for Lanes {
    fn default() -> Self {
        Lanes { sent: Load::default(), waiting: Load::default(), lanes: Vec::new(), now: Instant::now() }
    }
}

impl Lanes {
    /// A turn of the event loop begins at `now`.
    pub(super) fn on_turn(&mut self, now: Instant) {
        self.now = now;
    }

    /// When this turn began.
    pub(super) fn now(&self) -> Instant {
        self.now
    }

    /// What is in flight: sent or waiting.
    pub(super) fn load(&self) -> Load {
        Load { events: self.sent.events + self.waiting.events, bytes: self.sent.bytes + self.waiting.bytes }
    }

    pub(super) fn on_sent(&mut self, record: SentRecord) {
        let now = self.now;
        self.sent.add(record.bytes);
        let lane = self.lane_mut(record.tag.partition());
        if lane.sent.is_empty() {
            lane.last_progress = now;
        }
        lane.sent.push_back((record, now));
    }

    /// Returns the record that Kafka acknowledged.
    pub(super) fn on_acked(&mut self, tag: Tag) -> Result<SentRecord, Inconsistent> {
        let record = self.on_ended(tag.partition()).filter(|record| record.tag == tag);
        record.ok_or(Inconsistent::NotOldest(tag.entry()))
    }

    /// Returns the oldest sent record of a partition, which is not in flight any more. The outcomes of failed records may
    /// arrive in any order.
    pub(super) fn on_ended(&mut self, partition: PartitionId) -> Option<SentRecord> {
        let lane = self.lanes.get_mut(partition.0 as usize)?;
        let (record, _) = lane.sent.pop_front()?;
        lane.last_progress = self.now;
        self.sent.remove(record.bytes);
        Some(record)
    }

    pub(super) fn push_waiting(&mut self, row: WaitingRow) {
        let now = self.now;
        self.waiting.add(row.prepared.bytes);
        let lane = self.lane_mut(row.placed.partition);
        if lane.waiting.is_empty() {
            lane.waiting_since = now;
        }
        lane.waiting.push_back(row);
    }

    /// Takes the row that waits longest.
    pub(super) fn pop_waiting(&mut self, partition: PartitionId) -> Option<WaitingRow> {
        let row = self.lanes.get_mut(partition.0 as usize)?.waiting.pop_front()?;
        self.waiting.remove(row.prepared.bytes);
        Some(row)
    }

    /// The row that was taken last has to wait longer.
    pub(super) fn put_back(&mut self, row: WaitingRow) {
        self.waiting.add(row.prepared.bytes);
        self.lane_mut(row.placed.partition).waiting.push_front(row);
    }

    /// Whether rows wait for this partition. Later rows must then wait behind them.
    pub(super) fn has_waiting(&self, partition: PartitionId) -> bool {
        self.waiting.events > 0 && self.lane(partition).is_some_and(|lane| !lane.waiting.is_empty())
    }

    pub(super) fn waiting_count(&self, partition: PartitionId) -> usize {
        self.lane(partition).map_or(0, |lane| lane.waiting.len())
    }

    /// Whether no record of the partition is sent and not acknowledged.
    pub(super) fn has_nothing_sent(&self, partition: PartitionId) -> bool {
        self.lane(partition).is_none_or(|lane| lane.sent.is_empty())
    }

    /// The partitions with sent records that have acknowledged nothing for `duration`.
    pub(super) fn silent(&self, duration: Duration) -> Vec<SilentLane> {
        let sent = self.by_partition().filter_map(|(partition, lane)| {
            let (oldest, since) = (lane.sent.front()?.1, lane.last_progress);
            Some(SilentLane { partition, records: lane.sent.len(), oldest, since })
        });
        sent.filter(|silent| self.now.saturating_duration_since(silent.since) >= duration).collect()
    }

    /// The partitions that rows wait for, and since when.
    pub(super) fn with_waiting(&self) -> impl Iterator<Item = SilentLane> {
        let waiting = self.by_partition().filter(|(_, lane)| !lane.waiting.is_empty());
        waiting.map(|(partition, lane)| SilentLane {
            partition,
            records: lane.waiting.len(),
            oldest: lane.waiting_since,
            since: lane.waiting_since,
        })
    }

    fn by_partition(&self) -> impl Iterator<Item = (PartitionId, &Lane)> {
        (0..).map(PartitionId).zip(&self.lanes)
    }

    fn lane(&self, partition: PartitionId) -> Option<&Lane> {
        self.lanes.get(partition.0 as usize)
    }

    #[expect(clippy::indexing_slicing, reason = "the lane was added in the line before")]
    fn lane_mut(&mut self, partition: PartitionId) -> &mut Lane {
        let (index, now) = (partition.0 as usize, self.now);
        if self.lanes.len() <= index {
            self.lanes.resize_with(index + 1, || Lane {
                waiting: VecDeque::new(),
                waiting_since: now,
                sent: VecDeque::new(),
                last_progress: now,
            });
        }
        &mut self.lanes[index]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WITHIN: Duration = Duration::from_secs(5);

    fn tag(entry: u64, partition: u32) -> Tag {
        Tag::new(EntryId(entry), PartitionId(partition))
    }

    fn send(lanes: &mut Lanes, tag: Tag, bytes: usize) {
        lanes.on_sent(SentRecord { tag, bytes, content: SentContent::Replay });
    }

    #[test]
    fn each_partition_is_acknowledged_in_the_order_of_sending() {
        let mut lanes = Lanes::default();
        let tags = [tag(0, 0), tag(1, 3), tag(2, 0)];
        for (tag, bytes) in tags.into_iter().zip([10, 30, 11]) {
            send(&mut lanes, tag, bytes);
        }
        assert_eq!(lanes.load(), Load { events: 3, bytes: 51 });
        let acked = [tags[0], tags[2], tags[1]].map(|tag| lanes.on_acked(tag).unwrap().bytes);
        assert_eq!(acked, [10, 11, 30]);
        assert_eq!(lanes.load(), Load::default());
        assert!(lanes.has_nothing_sent(PartitionId(0)) && lanes.has_nothing_sent(PartitionId(9)));
    }

    #[test]
    fn an_acknowledgement_out_of_order_is_an_error() {
        let mut lanes = Lanes::default();
        send(&mut lanes, tag(0, 0), 1);
        send(&mut lanes, tag(1, 0), 1);
        assert_eq!(lanes.on_acked(tag(1, 0)).unwrap_err(), Inconsistent::NotOldest(EntryId(1)));
        assert_eq!(lanes.on_acked(tag(7, 5)).unwrap_err(), Inconsistent::NotOldest(EntryId(7)));
    }

    #[test]
    fn a_partition_is_silent_even_while_others_make_progress() {
        let (mut lanes, start) = (Lanes::default(), Instant::now());
        let second = |n| start + Duration::from_secs(n);
        lanes.on_turn(start);
        send(&mut lanes, tag(0, 1), 1);
        send(&mut lanes, tag(1, 1), 1);
        for n in 0..=5 {
            assert_eq!(lanes.silent(WITHIN), []);
            lanes.on_turn(second(n));
            send(&mut lanes, tag(n, 0), 1);
            lanes.on_acked(tag(n, 0)).unwrap();
        }
        let (oldest, since) = (start, start);
        let silent = SilentLane { partition: PartitionId(1), records: 2, oldest, since };
        assert_eq!(lanes.silent(WITHIN), [silent]);
        lanes.on_acked(tag(0, 1)).unwrap();
        assert_eq!(lanes.silent(WITHIN), [], "slow, but not silent");
        lanes.on_turn(second(10));
        let since = second(5);
        assert_eq!(
            lanes.silent(WITHIN),
            [SilentLane { partition: PartitionId(1), records: 1, oldest, since }]
        );
        lanes.on_acked(tag(1, 1)).unwrap();
        lanes.on_turn(second(60));
        send(&mut lanes, tag(2, 1), 1);
        assert_eq!(lanes.silent(WITHIN), [], "the partition was idle in between");
    }
}
