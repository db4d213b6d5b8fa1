//! Rows that wait for their partition: until it is inspected or searched, or has taken the record that goes alone.
//!
//! They are set aside within the budget, so that a partition that takes nothing holds up no other until the budget is used up. Each has its
//! entry in the ledger already, and a partition's rows stay in their order.

use std::collections::{HashMap, VecDeque};
use std::time::Instant;

use outbox::Position;

use super::Delivery;
use super::in_flight::SilentQueue;
use crate::error::RelayError;
use crate::event::record::Prepared;
use crate::progress::ledger::EntryId;
use crate::progress::partition_dedup::Admission;
use crate::topics::partitions::PartitionId;

/// A row with the place where it goes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Placed {
    pub(super) partition: PartitionId,
    pub(super) position: Position,
    pub(super) fingerprint: u64,
    /// It goes to the dead-letter topic.
    pub(super) is_dead: bool,
    /// Its topic takes it by the settings of now.
    pub(super) fits: bool,
}

impl Placed {
    /// Whether it goes to that partition if Kafka does not have it: otherwise to another, by the mapping of now.
    pub(super) fn goes_there(&self) -> bool {
        self.is_dead || self.fits
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
    /// When the first of them was set aside.
    since: Instant,
}

/// See the module's text.
#[derive(Debug, Default)]
pub(super) struct WaitingRows {
    pub(super) events: usize,
    pub(super) bytes: usize,
    queues: HashMap<PartitionId, Queue>,
}

impl WaitingRows {
    /// Whether rows wait for this partition: what comes later has to wait behind them.
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

impl Delivery {
    /// Whether a row can go to its partition now, and has to.
    pub(super) fn admit(&mut self, row: Placed) -> Result<Admission, RelayError> {
        let Placed { partition, position, fingerprint, is_dead, fits } = row;
        let replayed = self.lineage.holds(position);
        let mark = self.partitions.is_verified(partition).then(|| self.partitions.dedup(partition)).flatten();
        let admission = mark.map_or(Admission::Wait, |mark| mark.admit(position, replayed));
        if let Admission::Search { from } = admission {
            self.scan(partition, from);
        }
        if admission != Admission::AlreadyThere || !self.partitions.lacks(partition, position, fingerprint) {
            return Ok(admission);
        }
        match (is_dead, fits) {
            // Kafka may have refused it before it became poison, while later dead letters were taken.
            (true, _) => Ok(Admission::Send),
            // It went where a later mapping sends it.
            (false, false) => Ok(Admission::AlreadyThere),
            (false, true) => Err(self.not_ours(partition, position)),
        }
    }

    fn scan(&self, partition: PartitionId, from: i64) {
        let Some((topic, number)) = self.partitions.name_of(partition) else { return };
        let min_in_sync = self.partitions.settings(topic).and_then(|settings| settings.min_in_sync_replicas);
        self.jobs.scan(partition, topic, number, from, min_in_sync);
    }

    /// Something has changed for a partition: rows that wait for it go on as far as they can.
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
