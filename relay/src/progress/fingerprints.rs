//! Identifies events by position and event id: those a scan found in a partition, and the last rows of the stream.
//!
//! A position alone does not identify the writer of a record: another outbox may write to the same topic under the same
//! `ce_source`, from another database with overlapping LSNs. The event id does.

use std::collections::VecDeque;
use std::hash::{DefaultHasher, Hash, Hasher};

use outbox::Position;

use crate::progress::offset::Offset;

/// Maximum number of records that a scan of one partition remembers: 2 MB. With more, only positions are compared.
const MAX_FOUND: usize = 250_000;

/// Number of rows of the stream that are remembered: 1 MB.
const MAX_RECENT: usize = 32_768;

/// Identifies one event at one position.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Fingerprint(u64);

impl Fingerprint {
    /// `id` is `None` for a record without an id, which a dead letter can be.
    pub fn of(position: Position, id: Option<&[u8]>) -> Fingerprint {
        let mut hasher = DefaultHasher::new();
        (position, id).hash(&mut hasher);
        Fingerprint(hasher.finish())
    }
}

/// Collects this outbox's records while a scan reads a range of a partition.
#[derive(Clone, Debug, Default)]
pub struct RecordCollector {
    fingerprints: Vec<Fingerprint>,
    lowest: Option<Position>,
    overflowed: bool,
    /// The last of these records.
    pub last: Option<Offset>,
    /// Retention removed the start of the range.
    pub begins_late: bool,
    /// Some offsets of the range have no record: control records, or records that compaction removed.
    pub has_missing_offsets: bool,
}

impl RecordCollector {
    /// A record of this outbox was found.
    pub fn add(&mut self, position: Position, id: Option<&[u8]>) {
        if self.fingerprints.len() >= MAX_FOUND {
            self.overflowed = true;
            return;
        }
        self.fingerprints.push(Fingerprint::of(position, id));
        self.lowest = Some(self.lowest.map_or(position, |lowest| lowest.min(position)));
    }

    /// The records, once the whole range was read.
    pub fn finish(mut self) -> FoundRecords {
        self.fingerprints.sort_unstable();
        self.fingerprints.shrink_to_fit();
        FoundRecords(self)
    }
}

/// This outbox's records in a range of a partition. Their fingerprints are sorted.
#[derive(Clone, Debug)]
pub struct FoundRecords(RecordCollector);

impl FoundRecords {
    /// The offset of the last of them.
    pub fn last(&self) -> Option<Offset> {
        self.0.last
    }

    /// Whether the row at `position` with the fingerprint `row`, which is at or below the highest position of the
    /// range, is certainly not in it. `compacted` is the topic's policy, if known.
    pub fn lacks(&self, position: Position, row: Fingerprint, compacted: Option<bool>) -> bool {
        let FoundRecords(range) = self;
        let removed_by_compaction = range.has_missing_offsets && compacted != Some(false);
        let removed_by_retention = range.begins_late && range.lowest.is_none_or(|lowest| position < lowest);
        if range.overflowed || removed_by_compaction || removed_by_retention {
            return false;
        }
        let contains = |fingerprint| range.fingerprints.binary_search(&fingerprint).is_ok();
        !contains(row) && !contains(Fingerprint::of(position, None))
    }
}

/// The last rows of the stream, in its order.
#[derive(Debug, Default)]
pub struct RecentRows(VecDeque<(Position, Fingerprint)>);

/// The writer of a record at a position on the server's timelines.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WrittenBy {
    /// The record is a row of this database.
    ThisOutbox,
    /// The stream has passed the position and has no such row.
    AnotherOutbox,
    /// The stream passed the position too long ago to know.
    Unknown,
    /// The stream has not reached the position.
    NotReached,
}

impl RecentRows {
    /// A row was read from the stream.
    pub fn on_row(&mut self, position: Position, fingerprint: Fingerprint) {
        if self.0.len() >= MAX_RECENT {
            self.0.pop_front();
        }
        self.0.push_back((position, fingerprint));
    }

    /// The writer of the record with this position and fingerprint. `passed` is whether the stream has passed the
    /// position.
    pub fn writer_of(&self, position: Position, fingerprint: Fingerprint, passed: bool) -> WrittenBy {
        let Some((first, _)) = self.0.front() else {
            return if passed { WrittenBy::Unknown } else { WrittenBy::NotReached };
        };
        if position < *first {
            return WrittenBy::Unknown;
        }
        let at = self.0.partition_point(|(row, _)| *row < position);
        match self.0.get(at) {
            Some((row, known)) if *row == position && *known == fingerprint => WrittenBy::ThisOutbox,
            None if !passed => WrittenBy::NotReached,
            _ => WrittenBy::AnotherOutbox,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::at;

    fn collected(records: &[(u64, &[u8])]) -> RecordCollector {
        let mut collected = RecordCollector::default();
        records.iter().for_each(|(lsn, id)| collected.add(at(*lsn), Some(id)));
        collected
    }

    #[test]
    fn a_row_is_found_only_by_its_own_id() {
        let found = collected(&[(10, b"a"), (30, b"b")]).finish();
        assert!(!found.lacks(at(10), Fingerprint::of(at(10), Some(b"a")), Some(false)));
        assert!(
            found.lacks(at(10), Fingerprint::of(at(10), Some(b"x")), Some(false)),
            "another event at its position"
        );
        assert!(
            found.lacks(at(20), Fingerprint::of(at(20), Some(b"c")), Some(false)),
            "the later record is of another outbox"
        );
    }

    #[test]
    fn a_record_without_an_id_is_recognised_by_its_position() {
        let mut collected = RecordCollector::default();
        collected.add(at(10), None);
        let found = collected.finish();
        assert!(!found.lacks(at(10), Fingerprint::of(at(10), Some(b"a")), Some(false)));
        assert!(found.lacks(at(11), Fingerprint::of(at(11), Some(b"a")), Some(false)));
    }

    #[test]
    fn a_row_that_compaction_or_retention_may_have_removed_is_not_reported_missing() {
        let collected = collected(&[(10, b"a"), (30, b"b")]);
        let whole = collected.clone().finish();
        let compacted = RecordCollector { has_missing_offsets: true, ..collected.clone() }.finish();
        assert!(
            whole.lacks(at(20), Fingerprint::of(at(20), Some(b"c")), Some(true)),
            "every offset has a record"
        );
        assert!(!compacted.lacks(at(20), Fingerprint::of(at(20), Some(b"c")), Some(true)));
        assert!(
            !compacted.lacks(at(20), Fingerprint::of(at(20), Some(b"c")), None),
            "the policy is not known"
        );
        assert!(
            compacted.lacks(at(20), Fingerprint::of(at(20), Some(b"c")), Some(false)),
            "control records only"
        );
        let late = RecordCollector { begins_late: true, ..collected }.finish();
        assert!(!late.lacks(at(5), Fingerprint::of(at(5), Some(b"z")), Some(false)));
        assert!(late.lacks(at(20), Fingerprint::of(at(20), Some(b"c")), Some(false)));
    }

    #[test]
    fn a_scan_beyond_the_limit_proves_nothing() {
        let mut collected = RecordCollector::default();
        (0..=MAX_FOUND as u64).for_each(|lsn| collected.add(at(lsn), Some(b"a")));
        let found = collected.finish();
        assert!(!found.lacks(at(1), Fingerprint::of(at(1), Some(b"x")), Some(false)));
    }

    #[test]
    fn the_writer_of_a_record_is_known_while_its_row_is_remembered() {
        let mut rows = RecentRows::default();
        assert_eq!(rows.writer_of(at(5), Fingerprint(0), false), WrittenBy::NotReached);
        for lsn in 0..MAX_RECENT as u64 + 10 {
            rows.on_row(at(2 * lsn), Fingerprint(lsn));
        }
        let last = 2 * (MAX_RECENT as u64 + 9);
        assert_eq!(rows.writer_of(at(4), Fingerprint(2), true), WrittenBy::Unknown, "forgotten");
        assert_eq!(rows.writer_of(at(last), Fingerprint(last / 2), true), WrittenBy::ThisOutbox);
        assert_eq!(rows.writer_of(at(last), Fingerprint(0), true), WrittenBy::AnotherOutbox, "another id");
        assert_eq!(
            rows.writer_of(at(last - 1), Fingerprint(0), true),
            WrittenBy::AnotherOutbox,
            "no row there"
        );
        assert_eq!(rows.writer_of(at(last + 1), Fingerprint(0), false), WrittenBy::NotReached);
        assert_eq!(rows.writer_of(at(last + 1), Fingerprint(0), true), WrittenBy::AnotherOutbox);
    }
}
