//! Rows that wait for their partition: until it is verified or scanned, or has acknowledged its probe.
//!
//! They are queued within the in-flight budget, so a partition without progress blocks no other until the budget is
//! used up. Each waiting row already has its ledger entry, and the rows of a partition keep their order.

use std::collections::{HashMap, VecDeque};
use std::time::Instant;

use outbox::Position;

use super::in_flight::SilentQueue;
use super::{Broker, Delivery};
use crate::error::RelayError;
use crate::event::record::Prepared;
use crate::kafka::query::{QueriedPartition, Query};
use crate::progress::ledger::EntryId;
use crate::progress::partition_dedup::Admission;
use crate::topics::partitions::PartitionId;

/// A row with the partition it is routed to.
#[derive(Clone, Copy, Debug)]
pub(super) struct Placed {
    pub(super) partition: PartitionId,
    pub(super) position: Position,
    pub(super) fingerprint: u64,
    /// The row goes to the dead-letter topic.
    pub(super) is_dead_letter: bool,
    /// The topic's current settings allow the row.
    pub(super) fits: bool,
}

impl Placed {
    /// Whether the row goes to this partition if Kafka does not have it there. Otherwise it is routed again, by the
    /// current version.
    pub(super) fn keeps_partition(&self) -> bool {
        self.is_dead_letter || self.fits
    }
}

/// A row that waits.
#[derive(Debug)]
pub(super) struct WaitingRow {
    pub(super) placed: Placed,
    pub(super) prepared: Prepared<'static>,
    pub(super) entry: EntryId,
}

#[derive(Debug)]
struct Queue {
    rows: VecDeque<WaitingRow>,
    /// When the first of them was queued.
    since: Instant,
}

/// See the module documentation.
#[derive(Debug, Default)]
pub(super) struct WaitingRows {
    pub(super) events: usize,
    pub(super) bytes: usize,
    queues: HashMap<PartitionId, Queue>,
}

impl WaitingRows {
    /// Whether rows wait for this partition. Later rows must then wait behind them.
    pub(super) fn has(&self, partition: PartitionId) -> bool {
        self.events > 0 && self.queues.contains_key(&partition)
    }

    pub(super) fn count(&self, partition: PartitionId) -> usize {
        self.queues.get(&partition).map_or(0, |queue| queue.rows.len())
    }

    pub(super) fn push(&mut self, row: WaitingRow, now: Instant) {
        self.events += 1;
        self.bytes += row.prepared.bytes;
        let empty = || Queue { rows: VecDeque::new(), since: now };
        self.queues.entry(row.placed.partition).or_insert_with(empty).rows.push_back(row);
    }

    fn front(&self, partition: PartitionId) -> Option<Placed> {
        self.queues.get(&partition)?.rows.front().map(|row| row.placed)
    }

    fn pop(&mut self, partition: PartitionId) -> Option<WaitingRow> {
        let queue = self.queues.get_mut(&partition)?;
        let row = queue.rows.pop_front()?;
        if queue.rows.is_empty() {
            self.queues.remove(&partition);
        }
        self.events -= 1;
        self.bytes -= row.prepared.bytes;
        Some(row)
    }

    /// The partitions that rows wait for, and since when.
    pub(super) fn silent(&self) -> impl Iterator<Item = SilentQueue> {
        self.queues.iter().map(|(partition, Queue { rows, since })| SilentQueue {
            partition: *partition,
            records: rows.len(),
            oldest: *since,
            since: *since,
        })
    }
}

impl<B: Broker> Delivery<B> {
    /// Whether a row must be sent to its partition, is there already, or has to wait.
    pub(super) fn admit(&mut self, row: Placed) -> Result<Admission, RelayError> {
        let Placed { partition, position, fingerprint, is_dead_letter, fits } = row;
        let replayed = self.lineage.holds(position);
        let dedup =
            self.partitions.is_verified(partition).then(|| self.partitions.dedup(partition)).flatten();
        let admission = dedup.map_or(Admission::Wait, |dedup| dedup.admit(position, replayed));
        if let Admission::Scan { from } = admission {
            self.scan(partition, from);
        }
        if admission != Admission::AlreadyThere || !self.partitions.lacks(partition, position, fingerprint) {
            return Ok(admission);
        }
        match (is_dead_letter, fits) {
            // Kafka may have refused the row before it became poison, while it accepted later dead letters.
            (true, _) => Ok(Admission::Send),
            // The row was sent to the partition of a later routing version.
            (false, false) => Ok(Admission::AlreadyThere),
            (false, true) => Err(self.missing_event_error(partition, position)),
        }
    }

    fn scan(&self, partition: PartitionId, from: i64) {
        let Some(partition) = self.queried(partition) else { return };
        let min_in_sync = self.min_in_sync(partition.topic);
        self.broker.query(Query::Scan { partition, from, min_in_sync });
    }

    pub(super) fn queried(&self, id: PartitionId) -> Option<QueriedPartition<'_>> {
        let (topic, number) = self.partitions.name_of(id)?;
        Some(QueriedPartition { id, topic, number })
    }

    pub(super) fn min_in_sync(&self, topic: &str) -> Option<usize> {
        self.partitions.settings(topic).and_then(|settings| settings.min_in_sync_replicas)
    }

    /// Sends rows that wait for a partition, as far as possible, after the partition's state has changed.
    pub(super) fn resume(&mut self, partition: PartitionId) -> Result<(), RelayError> {
        if self.waiting.events == 0 {
            return Ok(());
        }
        while let Some(placed) = self.waiting.front(partition) {
            let admission = self.admit(placed)?;
            if !matches!(admission, Admission::Send | Admission::AlreadyThere) {
                return Ok(());
            }
            let Some(WaitingRow { prepared, entry, .. }) = self.waiting.pop(partition) else {
                return Ok(());
            };
            if admission == Admission::Send {
                self.send(prepared, entry, placed)?;
            } else {
                self.count_suppressed();
                let completed = self.ledger.withdraw(entry)?;
                self.observe_latency(completed);
            }
        }
        Ok(())
    }
}
