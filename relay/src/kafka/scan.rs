//! One reading of a partition, or of gaps in it: what is read, and what was found so far.

use std::sync::Arc;

use outbox::{Position, header};
use rdkafka::message::{BorrowedMessage, Message};

use crate::kafka::scanner::{PartitionScanner, value_of};
use crate::progress::fingerprints::{FoundRecords, fingerprint};
use crate::progress::partition_dedup::{OffsetGap, ScanResult};
use crate::progress::phantoms::Phantoms;

/// Records of ours in gaps that are remembered of one reading: there should be none.
const MAX_STRAYS: usize = 1024;

/// A record of ours where this process has sent none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stray {
    /// Its position.
    pub position: Position,
    /// Of its position and event id.
    pub fingerprint: u64,
}

/// How a turn of a reading ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Everything was read.
    Done,
    /// Others wait.
    GaveWay,
    /// The partition seems to end before what should be in it.
    Short,
    /// The offset to read from is gone.
    OutOfRange,
}

/// What is read.
#[derive(Clone, Debug)]
pub enum Range {
    /// Everything that was there when the search began, for rows of the time before this session.
    ToEnd,
    /// The gap before the probe. It was appended during this session, by a process that may know more of the log than the
    /// server had at the session's beginning.
    BeforeProbe(OffsetGap),
    /// Gaps between records of ours, in order: (first offset, first offset behind it).
    Gaps(Vec<(i64, i64)>),
}

/// See the module's text.
#[derive(Clone, Debug)]
pub struct Scan {
    /// Topic.
    pub topic: Arc<str>,
    /// Partition number.
    pub partition: i32,
    range: Range,
    /// The first offset that need not be read.
    pub until: i64,
    /// What was found.
    pub found: ScanResult,
    /// Which records of ours.
    pub records: FoundRecords,
    /// Records of another history.
    pub phantoms: Phantoms,
    /// Records of ours in gaps.
    pub strays: Vec<Stray>,
    /// How many more there were than are remembered.
    pub more_strays: u64,
}

impl Scan {
    /// A reading of `range`, which ends before `until`.
    pub fn new(topic: &Arc<str>, partition: i32, range: Range, from: i64, until: i64) -> Scan {
        Scan {
            topic: Arc::clone(topic),
            partition,
            range,
            until,
            found: ScanResult::nothing(from),
            records: FoundRecords::default(),
            phantoms: Phantoms::default(),
            strays: Vec::new(),
            more_strays: 0,
        }
    }

    /// The offset to read on from.
    pub fn end(&self) -> i64 {
        self.found.end
    }

    /// Retention has removed what lies before `low`. It was there, or the partition would not begin after it.
    pub fn skip_to(&mut self, low: i64) {
        if low > self.found.end {
            self.found.end = low;
            self.records.begins_late = true;
        }
    }

    pub(super) fn is_done(&self) -> bool {
        self.found.end >= self.until
    }

    /// Takes in a record; answers whether it is the last that counts.
    pub(super) fn on_record(&mut self, searcher: &PartitionScanner, message: &BorrowedMessage<'_>) -> bool {
        let offset = message.offset();
        self.records.has_missing_offsets |= offset > self.found.end;
        if offset >= self.until {
            self.found.end = self.until;
            return true;
        }
        self.found.end = offset + 1;
        if let Some(position) = searcher.position(message) {
            self.on_own_record(searcher, message, position);
        }
        self.is_done()
    }

    fn on_own_record(
        &mut self,
        searcher: &PartitionScanner,
        message: &BorrowedMessage<'_>,
        position: Position,
    ) {
        let is_on_line = searcher.lineage.is_on_line(position);
        let id = value_of(message, header::CE_ID);
        let known = match &self.range {
            Range::ToEnd if searcher.lineage.holds(position) => None,
            Range::ToEnd => return self.on_phantom(searcher, message, position, is_on_line),
            Range::BeforeProbe(hole) if is_on_line => hole.known,
            Range::Gaps(gaps) if is_on_line => {
                if is_within(gaps, message.offset()) {
                    self.on_stray(Stray { position, fingerprint: fingerprint(position, id) });
                }
                return;
            }
            Range::BeforeProbe(_) | Range::Gaps(_) => return,
        };
        self.found.highest = self.found.highest.max(Some(position));
        self.found.own_records += 1;
        self.found.repeated += u64::from(known.is_some_and(|known| position <= known));
        self.records.add(position, id);
    }

    fn on_stray(&mut self, stray: Stray) {
        if self.strays.len() < MAX_STRAYS {
            self.strays.push(stray);
        } else {
            self.more_strays += 1;
        }
    }

    fn on_phantom(
        &mut self,
        searcher: &PartitionScanner,
        message: &BorrowedMessage<'_>,
        position: Position,
        is_on_line: bool,
    ) {
        let id = value_of(message, header::CE_ID).map(|id| String::from_utf8_lossy(id).into_owned());
        self.phantoms.add(Phantoms {
            count: 1,
            ids: id.into_iter().collect(),
            ahead: is_on_line.then_some(position),
            by_another_server: is_on_line && searcher.is_of_this_run(message),
        });
    }

    /// The consumer has reached the end of the partition, and everything before `read_up_to`. Offsets without a record
    /// have been passed then.
    pub(super) fn on_partition_end(&mut self, read_up_to: Option<i64>) -> Step {
        if let Some(read_up_to) = read_up_to.filter(|offset| *offset > self.found.end) {
            self.records.has_missing_offsets = true;
            self.found.end = read_up_to;
        }
        if self.is_done() { Step::Done } else { Step::Short }
    }
}

fn is_within(gaps: &[(i64, i64)], offset: i64) -> bool {
    let next = gaps.partition_point(|(from, _)| *from <= offset);
    next.checked_sub(1).and_then(|at| gaps.get(at)).is_some_and(|(_, until)| offset < *until)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_offsets_in_gaps_count() {
        let gaps = [(3, 5), (8, 9)];
        let within: Vec<i64> = (0..12).filter(|offset| is_within(&gaps, *offset)).collect();
        assert_eq!(within, [3, 4, 8]);
    }

    #[test]
    fn a_partition_that_ends_too_early_is_no_end() {
        let mut scan = Scan::new(&"t".into(), 0, Range::ToEnd, 5, 10);
        assert_eq!(scan.on_partition_end(None), Step::Short);
        assert_eq!(scan.on_partition_end(Some(7)), Step::Short);
        assert_eq!((scan.on_partition_end(Some(10)), scan.end()), (Step::Done, 10));
        assert!(scan.records.has_missing_offsets, "control records");
    }

    #[test]
    fn what_retention_removed_is_passed_over() {
        let mut scan = Scan::new(&"t".into(), 0, Range::ToEnd, 5, 10);
        scan.skip_to(3);
        assert!(!scan.records.begins_late);
        scan.skip_to(8);
        assert!(scan.records.begins_late);
        assert_eq!(scan.end(), 8);
    }
}
