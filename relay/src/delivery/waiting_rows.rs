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
use crate::topics::registry::PartitionName;

/// A row with the partition it is routed to.
#[derive(Clone, Copy, Debug)]
pub(super) struct Placed {
    pub(super) partition: PartitionId,
    pub(super) position: Position,
    pub(super) fingerprint: u64,
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
        let Placed { partition, position, fingerprint, absence } = row;
        let replayed = self.lineage.holds(position);
        let admission = match self.topics.partition_mut(partition) {
            verified if verified.is_verified() => verified.dedup.admit(position, replayed),
            _ => Admission::Wait,
        };
        if let Admission::Scan { from } = admission {
            self.scan(partition, from);
        }
        if admission != Admission::AlreadyThere || !self.topics.lacks(partition, position, fingerprint) {
            return Ok(admission);
        }
        match absence {
            Absence::NotSent => Ok(Admission::Send),
            Absence::SentElsewhere => Ok(Admission::AlreadyThere),
            Absence::Impossible => Err(self.missing_event_error(partition, position)),
        }
    }

    fn scan(&self, partition: PartitionId, from: i64) {
        let min_in_sync = self.topics.topic_of(partition).min_in_sync_replicas();
        self.broker.query(Query::Scan { partition: self.queried(partition), from, min_in_sync });
    }

    pub(super) fn queried(&self, id: PartitionId) -> QueriedPartition<'_> {
        let PartitionName { topic, number } = self.topics.name_of(id);
        QueriedPartition { id, topic, number }
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
