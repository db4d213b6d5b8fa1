//! A partition that this relay writes to: its deduplication state, and what the checkpoint stores of it.

use std::collections::{BTreeMap, VecDeque};
use std::fmt;

use outbox::Position;
use pg_replication::EndLsn;
use serde::{Deserialize, Serialize};

use crate::progress::fingerprints::FoundRecords;
use crate::progress::ledger::EntryId;
use crate::progress::offset::Offset;
use crate::progress::partition_dedup::PartitionDedup;
use crate::topics::registry::TopicId;

/// What the checkpoint knows of partitions: topic -> partition number -> scan start.
pub type ScanStarts = BTreeMap<String, BTreeMap<PartitionNumber, ScanStart>>;

/// Where a scan of a partition starts, and how to verify that the records before it still exist.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ScanStart {
    /// The offset at which a scan starts: every record before it is confirmed, or of another producer.
    #[serde(rename = "search")]
    pub offset: Offset,
    /// This relay's last record before that offset.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last: Option<LastRecord>,
}

/// A record that Kafka acknowledged. If another record is found at its offset, Kafka has lost records, or the topic was
/// recreated. Offsets alone would not show this once the partition has grown again, and a topic's id would not show a
/// truncated partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LastRecord {
    pub offset: Offset,
    /// The timeline of its transaction.
    pub timeline: u32,
    /// The commit LSN of its transaction, the middle part of the position.
    pub commit: u64,
    /// The index in the transaction, which can have many records in a partition. Checkpoints of early versions lack it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub index: Option<u64>,
}

impl LastRecord {
    pub fn new(position: Position, offset: Offset) -> LastRecord {
        let Position { timeline, commit_lsn: commit, index } = position;
        LastRecord { offset, timeline, commit, index: Some(index) }
    }

    pub fn is_at(&self, position: Position) -> bool {
        let same_transaction = position.timeline == self.timeline && position.commit_lsn == self.commit;
        same_transaction && self.index.is_none_or(|index| index == position.index)
    }
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct PartitionNumber(pub i32);

impl fmt::Display for PartitionNumber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A partition of the [`registry`](super::registry), which never removes one. It is attached to each record in flight.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct PartitionId(pub u32);

/// A partition to compare with the checkpoint.
#[derive(Clone, Debug)]
pub struct ToVerify {
    pub id: PartitionId,
    pub number: PartitionNumber,
    /// The start of its scan, and the last record that must exist.
    pub start: ScanStart,
}

pub struct Partition {
    pub topic: TopicId,
    pub number: PartitionNumber,
    /// Which rows it has.
    pub dedup: PartitionDedup,
    /// The records of this outbox that the last scan found, if there was one. Only rows at or below the high-water mark are
    /// compared with them.
    pub found: Option<FoundRecords>,
    /// The scan start as of the acknowledged prefix.
    start: ScanStart,
    /// Records that are acknowledged but not yet in the acknowledged prefix, the last of each ledger entry. After a crash
    /// their rows would be read again, and the scan must then find the records.
    unconfirmed: VecDeque<(EntryId, LastRecord)>,
    /// The partition in Kafka was compared with the checkpoint.
    verified: bool,
}

impl Partition {
    pub(super) fn new(topic: TopicId, number: PartitionNumber, start: ScanStart) -> Partition {
        Partition {
            topic,
            number,
            dedup: PartitionDedup::new(start.offset),
            found: None,
            start,
            unconfirmed: VecDeque::new(),
            verified: false,
        }
    }

    /// Whether records may be sent to the partition.
    pub fn is_verified(&self) -> bool {
        self.verified
    }

    /// The partition matches the checkpoint, and its scan starts at `scan_from`.
    pub fn mark_verified(&mut self, scan_from: Offset) {
        if !std::mem::replace(&mut self.verified, true) && scan_from < self.start.offset {
            self.start.offset = scan_from;
            self.dedup = PartitionDedup::new(scan_from);
        }
    }

    /// Stops sending until the partition is verified again.
    pub(super) fn invalidate(&mut self) {
        self.verified = false;
    }

    /// What to verify: the last acknowledged record, confirmed or not.
    pub(super) fn to_verify(&self, id: PartitionId) -> ToVerify {
        let mut start = self.start.clone();
        start.last = self.unconfirmed.back().map(|(_, last)| *last).or(start.last);
        ToVerify { id, number: self.number, start }
    }

    /// The number of [`Partition::on_acknowledged`] records that are stored until a checkpoint counts them.
    pub(super) fn unconfirmed_count(&self) -> usize {
        self.unconfirmed.len()
    }

    /// The record at `position`, of ledger entry `entry`, was acknowledged at `offset`.
    pub(super) fn on_acknowledged(&mut self, entry: EntryId, position: Position, offset: Offset) {
        let record = LastRecord::new(position, offset);
        match self.unconfirmed.back_mut() {
            Some((last, known)) if *last == entry => *known = record,
            _ => self.unconfirmed.push_back((entry, record)),
        }
    }

    /// Moves the scan start to a checkpoint at `confirmed`, and returns what to store with it. `first_unacknowledged` is the
    /// oldest ledger entry after it.
    pub(super) fn advance_scan_start(
        &mut self,
        first_unacknowledged: EntryId,
        confirmed: EndLsn,
    ) -> ScanStart {
        let is_confirmed = |(entry, _): &mut (EntryId, LastRecord)| *entry < first_unacknowledged;
        while let Some((_, last)) = self.unconfirmed.pop_front_if(is_confirmed) {
            let offset = self.start.offset.max(last.offset.next());
            self.start = ScanStart { offset, last: Some(last) };
        }
        let mut start = self.start.clone();
        let retained = self.dedup.retain_from(confirmed);
        start.offset = retained.map_or(start.offset, |from| from.min(start.offset));
        start
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_last_record_stored_by_an_early_version_has_no_index() {
        let stored = r#"{"search": 12, "last": {"offset": 11, "timeline": 1, "commit": 100}}"#;
        let start: ScanStart = serde_json::from_str(stored).unwrap();
        let at = |commit_lsn, index| Position { timeline: 1, commit_lsn, index };
        assert!(start.last.unwrap().is_at(at(100, 7)) && !start.last.unwrap().is_at(at(101, 7)));
        let record = LastRecord::new(at(100, 7), Offset(11));
        assert!(record.is_at(at(100, 7)) && !record.is_at(at(100, 6)));
    }
}
