//! Deduplication per partition: how a restarted relay knows which rows Kafka already has, with no store besides
//! PostgreSQL and Kafka.
//!
//! Each partition holds a gap-free prefix of this relay's events in position order (idempotent producer, gapless
//! guarantee, explicit partitions). So the highest position found in a partition, its high-water mark, is enough: a row
//! that is read again is in Kafka if it is at or below the mark, and is not if it is above. Rows committed after the *horizon*, the server's
//! flush LSN at the time the slot was acquired, cannot be in Kafka, so partitions are never scanned for them.
//!
//! A scan cannot see a request that the dead process had sent and the broker had not yet appended. So after a scan one
//! row is sent alone, as a probe. If its offset is the end of the scan, nothing was appended in between. If not, the
//! gap is scanned before any other row is sent. Later gaps are scanned as well; a record of this outbox in one of them
//! is a duplicate, and is counted.
//!
//! The first record of a producer session in a partition is sent alone for another reason, too: a broker that has no
//! state of a producer accepts any first sequence number (KAFKA-15591). If it refused the first record and then
//! received the second, which librdkafka sends without waiting, it would append the second, and the prefix would have a
//! gap. Once one record is acknowledged, the broker refuses a record that does not follow it. It forgets that state
//! after `producer.id.expiration.ms` without a record, so a partition that was idle for [`MAX_IDLE`] starts again with
//! a probe.

use std::time::{Duration, Instant};

use outbox::Position;
use pg_replication::EndLsn;

use crate::progress::lineage::commit_lsn;
use crate::progress::offset::{Offset, OffsetRange};

/// The result of scanning a partition or a gap.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ScanResult {
    /// The highest position among this outbox's records in the range.
    pub highest: Option<Position>,
    /// The number of this outbox's records in the range.
    pub own_records: u64,
    /// How many of them are at or below the position known before the scan of a gap: [`OffsetGap::known`].
    pub repeated: u64,
    /// The offset of the next record appended after the scan.
    pub end: Offset,
}

impl ScanResult {
    /// The result of a scan from `start` that found no records.
    pub fn nothing(start: Offset) -> ScanResult {
        ScanResult { highest: None, own_records: 0, repeated: 0, end: start }
    }
}

/// What to do with the next row of a partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Admission {
    Send,
    /// Kafka has it: skip it.
    AlreadyThere,
    /// The partition must be scanned first.
    Scan {
        /// The first offset to read.
        from: Offset,
    },
    /// A scan or a probe is in progress: ask again later.
    Wait,
}

/// Where Kafka appended a record, compared with the expected offset.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Landed {
    /// At the expected offset, or at any offset if none was expected.
    InOrder,
    /// After a gap. Scan the gap and pass the result to [`PartitionDedup::on_gap_scanned`].
    AfterGap(OffsetGap),
    /// Before records that were already appended: the partition was truncated, or the topic was recreated.
    Backwards {
        /// The lowest possible offset.
        expected: Offset,
    },
}

/// A range of offsets that other producers filled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OffsetGap {
    pub range: OffsetRange,
    /// The highest position known to be in the partition outside of the gap. This outbox's records in the gap at or
    /// below it are duplicates.
    pub known: Option<Position>,
}

/// After this time without an acknowledgement the relay assumes that the broker may have forgotten the producer. It is
/// far below the default of `producer.id.expiration.ms`, 24 h, because that can be configured. The price is one round
/// trip for a partition that has nothing in flight.
pub const MAX_IDLE: Duration = Duration::from_secs(60);

#[derive(Clone, Copy, Debug)]
enum State {
    Unscanned,
    Scanning,
    /// Scanned up to `end`; the next row sent is the probe.
    Scanned {
        end: Offset,
    },
    /// One record is in flight, and nothing may be sent before it is acknowledged. `end` is the end of the scan right
    /// before it, if there was one.
    Probing {
        end: Option<Offset>,
        probe: Position,
    },
    /// The probe was appended after a gap, which is being scanned.
    ScanningGap {
        probe: Position,
    },
    Open,
}

/// The deduplication state of one partition.
#[derive(Debug)]
pub struct PartitionDedup {
    state: State,
    /// Where a scan starts: every record before this offset is confirmed, or of another producer.
    scan_from: Offset,
    highest: Option<Position>,
    /// The offset of the next record if no other producer writes. Unknown before the first acknowledgement.
    next: Option<Offset>,
    /// The number of records that are sent but not acknowledged.
    in_flight: usize,
    /// When a record was last acknowledged.
    acknowledged_at: Option<Instant>,
    /// The gap before the probe, and the highest position in it once it is scanned.
    before_probe: Option<(OffsetGap, Option<Position>)>,
}

impl PartitionDedup {
    /// The state of a partition whose records before offset `scan_from` need no scan.
    pub fn new(scan_from: Offset) -> Self {
        PartitionDedup {
            state: State::Unscanned,
            scan_from,
            highest: None,
            next: None,
            in_flight: 0,
            acknowledged_at: None,
            before_probe: None,
        }
    }

    /// The offset that the checkpoint must not advance past: the start of the gap before the probe, until every row in
    /// it is confirmed. This process will not send those rows, so its successor must be able to find them.
    pub fn retain_from(&self, confirmed: EndLsn) -> Option<Offset> {
        let (gap, highest) = self.before_probe?;
        let is_confirmed = |position: Position| confirmed.covers(commit_lsn(position));
        (!highest.is_some_and(is_confirmed)).then_some(gap.range.from)
    }

    /// Decides what to do with the next row of this partition. Rows arrive in position order. `before_horizon` is whether
    /// the row may be in Kafka. After sending the row, call [`PartitionDedup::on_sent`].
    pub fn admit(&mut self, position: Position, before_horizon: bool) -> Admission {
        match self.state {
            State::Unscanned if before_horizon => {
                self.state = State::Scanning;
                Admission::Scan { from: self.scan_from }
            }
            State::Unscanned => Admission::Send,
            State::Scanning | State::Probing { .. } | State::ScanningGap { .. } => Admission::Wait,
            State::Scanned { .. } | State::Open if self.highest >= Some(position) => Admission::AlreadyThere,
            State::Scanned { .. } | State::Open => Admission::Send,
        }
    }

    /// The last admitted row was passed to a producer.
    pub fn on_sent(&mut self, position: Position, now: Instant) {
        self.state = match self.state {
            State::Scanned { end } => State::Probing { end: Some(end), probe: position },
            State::Unscanned => State::Probing { end: None, probe: position },
            State::Open if self.is_idle(now) => State::Probing { end: None, probe: position },
            state => state,
        };
        self.in_flight += 1;
    }

    /// Whether the broker may have forgotten the producer.
    fn is_idle(&self, now: Instant) -> bool {
        let since = self.acknowledged_at.map(|at| now.saturating_duration_since(at));
        self.in_flight == 0 && since.is_none_or(|since| since >= MAX_IDLE)
    }

    /// The scan that `admit` requested is complete.
    pub fn on_scanned(&mut self, found: ScanResult) {
        if matches!(self.state, State::Scanning) {
            self.highest = self.highest.max(found.highest);
            self.state = State::Scanned { end: found.end };
        }
    }

    /// A record of this process was acknowledged at `offset`.
    pub fn on_acknowledged(&mut self, offset: Offset, now: Instant) -> Landed {
        let expected = match self.state {
            State::Probing { end: Some(end), .. } => Some(end),
            _ => self.next,
        };
        let lowest = expected.unwrap_or(self.scan_from);
        if offset < lowest {
            return Landed::Backwards { expected: lowest };
        }
        self.in_flight = self.in_flight.saturating_sub(1);
        self.acknowledged_at = Some(now);
        self.next = Some(offset.next());
        let gap = expected.filter(|from| *from < offset);
        let gap =
            gap.map(|from| OffsetGap { range: OffsetRange { from, until: offset }, known: self.highest });
        if let State::Probing { end, probe } = self.state {
            // A gap before a probe without a preceding scan is treated like a later gap.
            let after_scan = gap.filter(|_| end.is_some());
            if let Some(gap) = after_scan {
                self.before_probe = Some((gap, None));
            }
            self.state = if after_scan.is_some() { State::ScanningGap { probe } } else { State::Open };
        }
        gap.map_or(Landed::InOrder, Landed::AfterGap)
    }

    /// A gap was scanned. Returns the number of duplicates that it reveals.
    pub fn on_gap_scanned(&mut self, gap: OffsetGap, found: ScanResult) -> u64 {
        let State::ScanningGap { probe } = self.state else {
            // This outbox's records in a gap after the probe were sent by another process. This process has sent the
            // same rows or will send them, so they are duplicates. They do not raise the high-water mark: the other
            // process may be behind or ahead of this one, and neither has sent the rows in between.
            return found.own_records;
        };
        self.highest = self.highest.max(found.highest);
        self.before_probe = found.highest.map(|highest| (gap, Some(highest)));
        self.state = State::Open;
        // Records between the scan's highest position and the probe are rows that this process has not sent, and will
        // now skip. Records at or below that position are duplicates, and so is the probe if the gap contains it.
        found.repeated + u64::from(found.highest >= Some(probe))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{at, end};
    use proptest::prelude::*;

    /// Admits a row, and sends it if it may be sent.
    fn offer(dedup: &mut PartitionDedup, lsn: u64, before_horizon: bool) -> Admission {
        let admission = dedup.admit(at(lsn), before_horizon);
        if admission == Admission::Send {
            dedup.on_sent(at(lsn), Instant::now());
        }
        admission
    }
    fn found(highest: Option<u64>, own_records: u64, end: i64) -> ScanResult {
        ScanResult { highest: highest.map(at), own_records, repeated: 0, end: Offset(end) }
    }

    fn gap(from: i64, until: i64, known: Option<Position>) -> OffsetGap {
        OffsetGap { range: OffsetRange { from: Offset(from), until: Offset(until) }, known }
    }

    #[test]
    fn rows_beyond_the_horizon_need_no_scan_and_the_first_is_sent_alone() {
        let mut dedup = PartitionDedup::new(Offset(0));
        assert_eq!(offer(&mut dedup, 10, false), Admission::Send);
        assert_eq!(offer(&mut dedup, 20, false), Admission::Wait, "the broker may not know the producer");
        assert_eq!(dedup.on_acknowledged(Offset(3), Instant::now()), Landed::InOrder);
        assert_eq!(offer(&mut dedup, 20, false), Admission::Send);
        assert_eq!(offer(&mut dedup, 30, false), Admission::Send);
    }

    #[test]
    fn after_an_idle_time_one_record_is_sent_alone_again() {
        let mut dedup = PartitionDedup::new(Offset(0));
        let start = Instant::now();
        dedup.on_sent(at(10), start);
        dedup.on_acknowledged(Offset(3), start);
        dedup.on_sent(at(20), start + MAX_IDLE / 2);
        assert_eq!(dedup.admit(at(30), false), Admission::Send, "the partition is not idle");
        dedup.on_acknowledged(Offset(4), start + MAX_IDLE / 2);
        dedup.on_sent(at(30), start + MAX_IDLE * 2);
        assert_eq!(dedup.admit(at(40), false), Admission::Wait, "the broker may have forgotten the producer");
        let gap = gap(5, 9, None);
        assert_eq!(dedup.on_acknowledged(Offset(9), start + MAX_IDLE * 2), Landed::AfterGap(gap));
        assert_eq!(
            dedup.admit(at(40), false),
            Admission::Send,
            "a gap without a preceding scan blocks nothing"
        );
        assert_eq!(dedup.retain_from(end(0)), None);
    }

    #[test]
    fn a_partition_with_a_record_in_flight_for_long_is_not_idle() {
        let mut dedup = PartitionDedup::new(Offset(0));
        let start = Instant::now();
        dedup.on_sent(at(10), start);
        dedup.on_acknowledged(Offset(3), start);
        dedup.on_sent(at(20), start);
        dedup.on_sent(at(30), start + MAX_IDLE * 2);
        assert_eq!(
            dedup.admit(at(40), false),
            Admission::Send,
            "librdkafka already has both records and sends them"
        );
    }

    #[test]
    fn rows_before_the_horizon_wait_for_the_scan_and_one_probe() {
        let mut dedup = PartitionDedup::new(Offset(7));
        assert_eq!(offer(&mut dedup, 10, true), Admission::Scan { from: Offset(7) });
        assert_eq!(offer(&mut dedup, 10, true), Admission::Wait);
        dedup.on_scanned(found(Some(10), 3, 42));
        assert_eq!(offer(&mut dedup, 10, true), Admission::AlreadyThere);
        assert_eq!(offer(&mut dedup, 20, true), Admission::Send);
        assert_eq!(offer(&mut dedup, 30, false), Admission::Wait);
        assert_eq!(dedup.on_acknowledged(Offset(42), Instant::now()), Landed::InOrder);
        assert_eq!(offer(&mut dedup, 30, false), Admission::Send);
    }

    #[test]
    fn a_gap_before_the_probe_is_scanned_before_anything_is_sent() {
        let mut dedup = PartitionDedup::new(Offset(0));
        offer(&mut dedup, 10, true);
        dedup.on_scanned(found(None, 0, 5));
        assert_eq!(offer(&mut dedup, 10, true), Admission::Send);
        let gap = gap(5, 8, None);
        assert_eq!(dedup.on_acknowledged(Offset(8), Instant::now()), Landed::AfterGap(gap));
        assert_eq!(dedup.retain_from(end(90)), Some(Offset(5)), "the gap is not scanned yet");
        assert_eq!(offer(&mut dedup, 20, true), Admission::Wait);
        // The dead process's last request: rows 10, 20 and 30. The probe, row 10, is in Kafka twice.
        assert_eq!(dedup.on_gap_scanned(gap, found(Some(30), 3, 8)), 1);
        assert_eq!(
            dedup.retain_from(end(25)),
            Some(Offset(5)),
            "the gap contains row 30, which is not confirmed"
        );
        assert_eq!(dedup.retain_from(end(35)), None);
        assert_eq!(offer(&mut dedup, 20, true), Admission::AlreadyThere);
        assert_eq!(offer(&mut dedup, 30, true), Admission::AlreadyThere);
        assert_eq!(offer(&mut dedup, 40, true), Admission::Send);
    }

    #[test]
    fn a_record_in_the_gap_that_the_scan_had_seen_is_a_duplicate() {
        let mut dedup = PartitionDedup::new(Offset(0));
        offer(&mut dedup, 10, true);
        dedup.on_scanned(found(Some(20), 2, 5));
        assert_eq!(offer(&mut dedup, 30, true), Admission::Send);
        let gap = gap(5, 7, Some(at(20)));
        assert_eq!(dedup.on_acknowledged(Offset(7), Instant::now()), Landed::AfterGap(gap));
        // The gap contains row 20 again, and row 25, which is new.
        let read = ScanResult { repeated: 1, ..found(Some(25), 2, 7) };
        assert_eq!(dedup.on_gap_scanned(gap, read), 1);
    }

    #[test]
    fn own_records_in_a_later_gap_are_counted() {
        let mut dedup = PartitionDedup::new(Offset(0));
        offer(&mut dedup, 10, false);
        assert_eq!(dedup.on_acknowledged(Offset(3), Instant::now()), Landed::InOrder);
        let gap = gap(4, 6, None);
        assert_eq!(dedup.on_acknowledged(Offset(6), Instant::now()), Landed::AfterGap(gap));
        assert_eq!(dedup.on_gap_scanned(gap, found(Some(50), 1, 6)), 1);
        assert_eq!(dedup.admit(at(20), false), Admission::Send, "no process has sent it");
    }

    #[test]
    fn an_offset_that_goes_back_is_detected() {
        let mut dedup = PartitionDedup::new(Offset(10));
        offer(&mut dedup, 10, false);
        assert_eq!(
            dedup.on_acknowledged(Offset(0), Instant::now()),
            Landed::Backwards { expected: Offset(10) },
            "below the start of the scan"
        );
        assert_eq!(dedup.on_acknowledged(Offset(10), Instant::now()), Landed::InOrder);
        assert_eq!(
            dedup.on_acknowledged(Offset(10), Instant::now()),
            Landed::Backwards { expected: Offset(11) }
        );
    }

    #[test]
    fn admitting_a_row_without_sending_it_changes_nothing() {
        let mut dedup = PartitionDedup::new(Offset(0));
        assert_eq!(dedup.admit(at(10), true), Admission::Scan { from: Offset(0) });
        dedup.on_scanned(found(None, 0, 5));
        assert_eq!(dedup.admit(at(10), true), Admission::Send);
        assert_eq!(dedup.admit(at(10), true), Admission::Send, "no probe is in flight");
    }

    proptest! {
        /// A process dies after its first `appended` of `rows` records were appended, and the next one reads from the
        /// start. For any number of appended records, every row is in the partition once, in order.
        #[test]
        fn a_restart_appends_exactly_the_missing_records(rows in 1u64..30, appended in 0u64..30, horizon in 0u64..40) {
            let appended = appended.min(rows);
            // Nothing beyond the horizon can be in Kafka.
            let horizon = horizon.max(appended);
            let mut log: Vec<u64> = (0..appended).collect();
            let mut dedup = PartitionDedup::new(Offset(0));
            for row in 0..rows {
                loop {
                    match offer(&mut dedup, row, row < horizon) {
                        Admission::Send => {
                            log.push(row);
                            let landed = dedup.on_acknowledged(Offset(log.len() as i64 - 1), Instant::now());
                            prop_assert_eq!(landed, Landed::InOrder);
                            break;
                        }
                        Admission::AlreadyThere => break,
                        Admission::Scan { from } => {
                            let range = &log[from.0 as usize..];
                            dedup.on_scanned(found(range.iter().max().copied(), range.len() as u64, log.len() as i64));
                        }
                        Admission::Wait => prop_assert!(false, "nothing is in flight"),
                    }
                }
            }
            prop_assert_eq!(log, (0..rows).collect::<Vec<_>>());
        }
    }
}
