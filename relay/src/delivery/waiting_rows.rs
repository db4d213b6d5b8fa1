//! Whether a row may be sent to its partition, and the rows that wait for that.

use super::lanes::{Absence, Placed, WaitingRow};
use super::{Broker, Delivery};
use crate::error::RelayError;
use crate::kafka::query::{QueriedPartition, Query};
use crate::progress::partition_dedup::Admission;
use crate::topics::partitions::PartitionId;
use crate::topics::registry::PartitionName;

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
        while let Some(placed) = self.lanes.first_waiting(partition) {
            let admission = self.admit(placed)?;
            if !matches!(admission, Admission::Send | Admission::AlreadyThere) {
                return Ok(());
            }
            let Some(WaitingRow { prepared, entry, .. }) = self.lanes.pop_waiting(partition) else {
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
