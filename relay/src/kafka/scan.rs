//! One scan of a partition, or of gaps in it: its range, and the result so far.

use std::sync::Arc;

use outbox::{Position, header};
use pg_replication::CommitLsn;
use rdkafka::message::Message;

use crate::kafka::evidence::EventKey;
use crate::kafka::own_records::{OwnRecords, value_of};
use crate::progress::fingerprints::{Fingerprint, RecordCollector};
use crate::progress::offset::{Offset, OffsetRange};
use crate::progress::partition_dedup::{OffsetGap, ScanResult};
use crate::progress::phantoms::Phantoms;
use crate::topics::partitions::PartitionNumber;

/// Maximum number of strays that one scan keeps. Normally there are none.
const MAX_STRAYS: usize = 1024;

/// Maximum number of the refill's own events that one scan keeps: 1 MB. A refill begins with the rows that a paused process
/// may have had in flight, so the first ones are enough to count those that are in Kafka twice.
pub const MAX_REFILLED: usize = 65_536;

/// A record with this outbox's `ce_source` that this process has not sent, between records that it has sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stray {
    pub position: Position,
    /// Identifies its position and event id.
    pub fingerprint: Fingerprint,
}

/// How one step of a scan ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    Done,
    /// The scan yielded to others that wait.
    Yielded,
    /// The partition seems to end before the end of the range.
    EndedEarly,
    /// The offset to read from no longer exists.
    OutOfRange,
}

/// The records that a scan looks for.
#[derive(Clone, Debug)]
pub enum Scope {
    /// Those of rows from before this session, up to the end of the partition when the scan began.
    ToEnd,
    /// Those in the gap before the probe. They were appended during this session, by a process that may have received
    /// more WAL than the server had when the session began.
    BeforeProbe(OffsetGap),
    /// Those in gaps between records of this process, in order.
    Gaps(Vec<OffsetRange>),
    /// Those of rows that a refill looks at, up to the end of the partition when the scan began.
    Evidence {
        /// Only events committed before it count.
        before: CommitLsn,
        /// The scan ends when it has found more events than this.
        room: usize,
    },
}

#[derive(Clone, Debug)]
pub struct Scan {
    pub topic: Arc<str>,
    pub partition: PartitionNumber,
    scope: Scope,
    /// The first offset that is not read.
    pub until: Offset,
    pub found: ScanResult,
    /// The records of this outbox.
    pub records: RecordCollector,
    /// Records whose rows the server does not have.
    pub phantoms: Phantoms,
    /// The strays in gaps, up to the maximum.
    pub strays: Vec<Stray>,
    /// The number of further strays.
    pub more_strays: u64,
    /// The events of a scan for evidence.
    pub events: Vec<EventKey>,
    /// The first ones that the refill itself has sent, up to the maximum.
    pub refilled: Vec<EventKey>,
}

impl Scan {
    /// A scan of `range`.
    pub fn new(topic: &Arc<str>, partition: PartitionNumber, scope: Scope, range: OffsetRange) -> Scan {
        Scan {
            topic: Arc::clone(topic),
            partition,
            scope,
            until: range.until,
            found: ScanResult::nothing(range.from),
            records: RecordCollector::default(),
            phantoms: Phantoms::default(),
            strays: Vec::new(),
            more_strays: 0,
            events: Vec::new(),
            refilled: Vec::new(),
        }
    }

    /// The offset to continue from.
    pub fn end(&self) -> Offset {
        self.found.end
    }

    /// Retention has removed the records before `low`. They existed, or the partition would not begin after them.
    pub fn skip_to(&mut self, low: Offset) {
        if low > self.found.end {
            self.found.end = low;
            self.records.begins_late = true;
        }
    }

    pub(super) fn is_done(&self) -> bool {
        self.found.end >= self.until
    }

    /// Processes a record. Returns whether the scan is complete.
    pub(crate) fn on_record(&mut self, own: &OwnRecords, message: &impl Message) -> bool {
        let offset = Offset(message.offset());
        self.records.has_missing_offsets |= offset > self.found.end;
        if offset >= self.until {
            self.found.end = self.until;
            return true;
        }
        self.found.end = offset.next();
        if let Some(position) = own.position(message) {
            self.on_own_record(own, message, position);
        }
        self.is_done()
    }

    fn on_own_record(&mut self, own: &OwnRecords, message: &impl Message, position: Position) {
        let is_on_line = own.lineage.is_on_line(position);
        let id = value_of(message, header::CE_ID);
        let known = match &self.scope {
            Scope::ToEnd if own.lineage.holds(position) => None,
            Scope::ToEnd => return self.on_phantom(own, message, position, is_on_line),
            Scope::BeforeProbe(gap) if is_on_line => gap.known,
            Scope::Gaps(gaps) if is_on_line => {
                if is_within(gaps, Offset(message.offset())) {
                    self.on_stray(Stray { position, fingerprint: Fingerprint::of(position, id) });
                }
                return;
            }
            Scope::Evidence { before, room } => {
                let (before, room) = (*before, *room);
                if is_on_line {
                    self.on_event(message, position.commit_lsn < before.lsn().as_u64(), room);
                }
                return;
            }
            Scope::BeforeProbe(_) | Scope::Gaps(_) => return,
        };
        self.found.highest = self.found.highest.max(Some(position));
        self.found.own_records += 1;
        self.found.repeated += u64::from(known.is_some_and(|known| position <= known));
        self.records.add(position, id);
        self.records.last = Some(Offset(message.offset()));
    }

    /// A dead letter without an id proves nothing.
    fn on_event(&mut self, message: &impl Message, is_evidence: bool, room: usize) {
        let (id, time) = (value_of(message, header::CE_ID), value_of(message, header::CE_TIME));
        let Some((id, time)) = id.zip(time) else { return };
        let event = EventKey::new(id, time);
        if is_evidence {
            self.events.push(event);
        } else if self.refilled.len() < MAX_REFILLED {
            self.refilled.push(event);
        }
        if self.events.len() > room {
            self.found.end = self.until;
        }
    }

    fn on_stray(&mut self, stray: Stray) {
        if self.strays.len() < MAX_STRAYS {
            self.strays.push(stray);
        } else {
            self.more_strays += 1;
        }
    }

    fn on_phantom(&mut self, own: &OwnRecords, message: &impl Message, position: Position, is_on_line: bool) {
        let id = value_of(message, header::CE_ID).map(|id| String::from_utf8_lossy(id).into_owned());
        self.phantoms.add(Phantoms {
            count: 1,
            ids: id.into_iter().collect(),
            ahead: is_on_line.then_some(position),
            by_another_server: is_on_line && own.is_after_server_start(message),
        });
    }

    /// The consumer has reached the end of the partition, and has read everything before `read_up_to`, including
    /// offsets without a record.
    pub(super) fn on_partition_end(&mut self, read_up_to: Option<Offset>) -> Step {
        if let Some(read_up_to) = read_up_to.filter(|offset| *offset > self.found.end) {
            self.records.has_missing_offsets = true;
            self.found.end = read_up_to;
        }
        if self.is_done() { Step::Done } else { Step::EndedEarly }
    }
}

fn is_within(gaps: &[OffsetRange], offset: Offset) -> bool {
    let next = gaps.partition_point(|gap| gap.from <= offset);
    next.checked_sub(1).and_then(|at| gaps.get(at)).is_some_and(|gap| gap.contains(offset))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(from: i64, until: i64) -> OffsetRange {
        OffsetRange { from: Offset(from), until: Offset(until) }
    }

    fn to_end(from: i64, until: i64) -> Scan {
        Scan::new(&"t".into(), PartitionNumber(0), Scope::ToEnd, range(from, until))
    }

    #[test]
    fn only_offsets_within_gaps_count() {
        let gaps = [range(3, 5), range(8, 9)];
        let within: Vec<i64> = (0..12).filter(|offset| is_within(&gaps, Offset(*offset))).collect();
        assert_eq!(within, [3, 4, 8]);
    }

    #[test]
    fn a_scan_is_not_done_if_the_partition_ends_too_early() {
        let mut scan = to_end(5, 10);
        assert_eq!(scan.on_partition_end(None), Step::EndedEarly);
        assert_eq!(scan.on_partition_end(Some(Offset(7))), Step::EndedEarly);
        assert_eq!((scan.on_partition_end(Some(Offset(10))), scan.end()), (Step::Done, Offset(10)));
        assert!(scan.records.has_missing_offsets, "control records");
    }

    #[test]
    fn records_that_retention_removed_are_skipped() {
        let mut scan = to_end(5, 10);
        scan.skip_to(Offset(3));
        assert!(!scan.records.begins_late);
        scan.skip_to(Offset(8));
        assert!(scan.records.begins_late);
        assert_eq!(scan.end(), Offset(8));
    }
}
