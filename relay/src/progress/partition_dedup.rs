//! High marks: how a restarted relay knows which rows Kafka already has, with no store besides Postgres and Kafka.
//!
//! Each partition holds a gap-free prefix of this relay's events in position order (idempotent producer, gapless
//! guarantee, explicit partitions). So the highest position found in a partition says it all: a replayed row at or
//! below it is there, a row above it is not. Rows committed beyond the *horizon*, the server's flush LSN at the
//! time the slot was acquired, cannot be in Kafka, so their partitions are never searched.
//!
//! One thing a search cannot see is a request the dead process had sent and the broker had not yet appended. So
//! after a search one row goes alone, as a probe: when its offset is the end the search saw, nothing came in
//! between; when it is not, the hole is read before anything else follows. Later holes are read as well; what is
//! found there is a duplicate already and is counted.
//!
//! The first record of a producer session in a partition goes alone for another reason, too: a broker that has no
//! state of a producer accepts any first sequence number (KAFKA-15591). If it refused the first record and then
//! received the second, which librdkafka sends without waiting, it would append the second, and the prefix would
//! have a gap. Once one record is acknowledged, the broker refuses whatever does not follow it. It forgets that after
//! `producer.id.expiration.ms` without a record, so a partition that was idle for [`MAX_IDLE`] starts over.

use std::time::{Duration, Instant};

use outbox::Position;
use pg_replication::{CommitLsn, EndLsn, Lsn};

/// What a search of a partition found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ScanResult {
    /// Highest position among our own records in the searched range.
    pub highest: Option<Position>,
    /// Number of our own records in the range.
    pub own_records: u64,
    /// Of them, those of a hole that lie at or below what was known before: [`OffsetGap::known`].
    pub repeated: u64,
    /// Offset the next record appended after the search would get.
    pub end: i64,
}

impl ScanResult {
    /// A search that begins at `start`.
    pub fn nothing(start: i64) -> ScanResult {
        ScanResult { highest: None, own_records: 0, repeated: 0, end: start }
    }
}

/// What to do with the next row of a partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Admission {
    /// Send it.
    Send,
    /// Kafka has it: drop it.
    AlreadyThere,
    /// The partition has to be searched from this offset on before anything can be said.
    Search {
        /// First offset to read.
        from: i64,
    },
    /// A search or a probe is under way: ask again later.
    Wait,
}

/// Where a record came to lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Landed {
    /// Where it was expected, or anywhere if nothing is known.
    InOrder,
    /// Behind a hole, which is to be read and given to [`PartitionDedup::on_gap_scanned`].
    AfterGap(OffsetGap),
    /// Before records that were there already: the partition was cut off or made anew.
    Backwards {
        /// The lowest offset it could have had.
        expected: i64,
    },
}

/// A range of offsets that somebody else filled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OffsetGap {
    /// First offset.
    pub from: i64,
    /// First offset after it.
    pub until: i64,
    /// The highest position that is known to be in the partition apart from it: records of ours at or below are there twice.
    pub known: Option<Position>,
}

/// After this long without an acknowledgement a broker is no longer trusted to know the producer: far below the
/// 24 h of `producer.id.expiration.ms`, because that is a setting. It costs one round trip for a partition that has
/// nothing in flight.
pub const MAX_IDLE: Duration = Duration::from_secs(60);

#[derive(Clone, Copy, Debug)]
enum State {
    Unsearched,
    Searching,
    /// Searched up to `end`; the next row sent is the probe.
    Searched {
        end: i64,
    },
    /// One record is in flight, and nothing may follow before it is acknowledged. `end` is where a search ended right
    /// before it.
    Probing {
        end: Option<i64>,
        probe: Position,
    },
    /// The probe came back with a hole before it, which is being read.
    ReadingHole {
        probe: Position,
    },
    Open,
}

/// One partition's mark.
#[derive(Debug)]
pub struct PartitionDedup {
    state: State,
    /// Where a search starts: everything before this offset is known to be confirmed or somebody else's.
    floor: i64,
    highest: Option<Position>,
    /// The offset our next record gets if nobody else writes here. Unknown before the first acknowledgement.
    next: Option<i64>,
    /// Records sent and not acknowledged.
    in_flight: usize,
    /// When a record was last acknowledged.
    acknowledged_at: Option<Instant>,
    /// The hole before the probe, and the highest position in it once it was read.
    before_probe: Option<(OffsetGap, Option<Position>)>,
}

impl PartitionDedup {
    /// The mark of a partition whose records before offset `floor` need no search.
    pub fn new(floor: i64) -> Self {
        PartitionDedup {
            state: State::Unsearched,
            floor,
            highest: None,
            next: None,
            in_flight: 0,
            acknowledged_at: None,
            before_probe: None,
        }
    }

    /// Where the hole before the probe begins, while it holds rows, or may hold some, that are not confirmed by `confirmed`. This process
    /// does not send them, and one that follows it has to find them.
    pub fn retain_from(&self, confirmed: EndLsn) -> Option<i64> {
        let (hole, highest) = self.before_probe?;
        let is_over = |position: Position| confirmed.covers(CommitLsn::new(Lsn::from(position.commit_lsn)));
        (!highest.is_some_and(is_over)).then_some(hole.from)
    }

    /// Judges the next row for this partition. Rows come in position order; `replayed` says whether the row was
    /// committed before the horizon. A row that is sent then is to be given to [`PartitionDedup::on_sent`].
    pub fn admit(&mut self, position: Position, replayed: bool) -> Admission {
        match self.state {
            State::Unsearched if replayed => {
                self.state = State::Searching;
                Admission::Search { from: self.floor }
            }
            State::Unsearched => Admission::Send,
            State::Searching | State::Probing { .. } | State::ReadingHole { .. } => Admission::Wait,
            State::Searched { .. } | State::Open if self.highest >= Some(position) => Admission::AlreadyThere,
            State::Searched { .. } | State::Open => Admission::Send,
        }
    }

    /// The row that was admitted last was handed to a producer.
    pub fn on_sent(&mut self, position: Position, now: Instant) {
        self.state = match self.state {
            State::Searched { end } => State::Probing { end: Some(end), probe: position },
            State::Unsearched => State::Probing { end: None, probe: position },
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

    /// The search that `admit` asked for is done.
    pub fn on_scanned(&mut self, found: ScanResult) {
        if matches!(self.state, State::Searching) {
            self.highest = self.highest.max(found.highest);
            self.state = State::Searched { end: found.end };
        }
    }

    /// A record of ours was acknowledged at `offset`.
    pub fn on_acknowledged(&mut self, offset: i64, now: Instant) -> Landed {
        let expected = match self.state {
            State::Probing { end: Some(end), .. } => Some(end),
            _ => self.next,
        };
        let lowest = expected.unwrap_or(self.floor);
        if offset < lowest {
            return Landed::Backwards { expected: lowest };
        }
        self.in_flight = self.in_flight.saturating_sub(1);
        self.acknowledged_at = Some(now);
        self.next = Some(offset + 1);
        let hole = expected.filter(|from| *from < offset);
        let hole = hole.map(|from| OffsetGap { from, until: offset, known: self.highest });
        if let State::Probing { end, probe } = self.state {
            // A hole before a probe that no search preceded is like any later one.
            let searched = hole.filter(|_| end.is_some());
            if let Some(hole) = searched {
                self.before_probe = Some((hole, None));
            }
            self.state = if searched.is_some() { State::ReadingHole { probe } } else { State::Open };
        }
        hole.map_or(Landed::InOrder, Landed::AfterGap)
    }

    /// A hole was read. Returns how many events it shows to be in the partition twice.
    pub fn on_gap_scanned(&mut self, hole: OffsetGap, found: ScanResult) -> u64 {
        let State::ReadingHole { probe } = self.state else {
            // Our records in a hole behind the probe were sent by another process, after this one sent them or
            // before it will: either way they are there twice. They do not raise the mark: who else is writing may
            // be behind or ahead of this process, and what lies between was sent by neither.
            return found.own_records;
        };
        self.highest = self.highest.max(found.highest);
        self.before_probe = found.highest.map(|highest| (hole, Some(highest)));
        self.state = State::Open;
        // Between what the search saw and the probe they are rows that this process has not sent, and will now drop. Those before, and
        // the probe itself if it is in the hole, are there twice.
        found.repeated + u64::from(found.highest >= Some(probe))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn at(lsn: u64) -> Position {
        Position { timeline: 1, commit_lsn: lsn, index: 0 }
    }
    fn end(lsn: u64) -> EndLsn {
        EndLsn::new(Lsn::from(lsn))
    }
    /// Admits, and sends what may be sent.
    fn offer(mark: &mut PartitionDedup, lsn: u64, replayed: bool) -> Admission {
        let admission = mark.admit(at(lsn), replayed);
        if admission == Admission::Send {
            mark.on_sent(at(lsn), Instant::now());
        }
        admission
    }
    fn found(highest: Option<u64>, own_records: u64, end: i64) -> ScanResult {
        ScanResult { highest: highest.map(at), own_records, repeated: 0, end }
    }

    #[test]
    fn rows_beyond_the_horizon_need_no_search_and_the_first_goes_alone() {
        let mut mark = PartitionDedup::new(0);
        assert_eq!(offer(&mut mark, 10, false), Admission::Send);
        assert_eq!(offer(&mut mark, 20, false), Admission::Wait, "the broker may not know the producer");
        assert_eq!(mark.on_acknowledged(3, Instant::now()), Landed::InOrder);
        assert_eq!(offer(&mut mark, 20, false), Admission::Send);
        assert_eq!(offer(&mut mark, 30, false), Admission::Send);
    }

    #[test]
    fn after_an_idle_time_one_record_goes_alone_again() {
        let mut mark = PartitionDedup::new(0);
        let start = Instant::now();
        mark.on_sent(at(10), start);
        mark.on_acknowledged(3, start);
        mark.on_sent(at(20), start + MAX_IDLE / 2);
        assert_eq!(mark.admit(at(30), false), Admission::Send, "it is not idle");
        mark.on_acknowledged(4, start + MAX_IDLE / 2);
        mark.on_sent(at(30), start + MAX_IDLE * 2);
        assert_eq!(mark.admit(at(40), false), Admission::Wait, "the broker may have forgotten the producer");
        let hole = OffsetGap { from: 5, until: 9, known: None };
        assert_eq!(mark.on_acknowledged(9, start + MAX_IDLE * 2), Landed::AfterGap(hole));
        assert_eq!(
            mark.admit(at(40), false),
            Admission::Send,
            "a hole that no search preceded holds up nothing"
        );
        assert_eq!(mark.retain_from(end(0)), None);
    }

    #[test]
    fn what_is_in_flight_for_long_is_not_idle() {
        let mut mark = PartitionDedup::new(0);
        let start = Instant::now();
        mark.on_sent(at(10), start);
        mark.on_acknowledged(3, start);
        mark.on_sent(at(20), start);
        mark.on_sent(at(30), start + MAX_IDLE * 2);
        assert_eq!(
            mark.admit(at(40), false),
            Admission::Send,
            "librdkafka sends both, whatever is asked for here"
        );
    }

    #[test]
    fn replayed_rows_wait_for_the_search_and_one_probe() {
        let mut mark = PartitionDedup::new(7);
        assert_eq!(offer(&mut mark, 10, true), Admission::Search { from: 7 });
        assert_eq!(offer(&mut mark, 10, true), Admission::Wait);
        mark.on_scanned(found(Some(10), 3, 42));
        assert_eq!(offer(&mut mark, 10, true), Admission::AlreadyThere);
        assert_eq!(offer(&mut mark, 20, true), Admission::Send);
        assert_eq!(offer(&mut mark, 30, false), Admission::Wait);
        assert_eq!(mark.on_acknowledged(42, Instant::now()), Landed::InOrder);
        assert_eq!(offer(&mut mark, 30, false), Admission::Send);
    }

    #[test]
    fn a_hole_before_the_probe_is_read_before_anything_follows() {
        let mut mark = PartitionDedup::new(0);
        offer(&mut mark, 10, true);
        mark.on_scanned(found(None, 0, 5));
        assert_eq!(offer(&mut mark, 10, true), Admission::Send);
        let hole = OffsetGap { from: 5, until: 8, known: None };
        assert_eq!(mark.on_acknowledged(8, Instant::now()), Landed::AfterGap(hole));
        assert_eq!(mark.retain_from(end(90)), Some(5), "nobody knows what is in it");
        assert_eq!(offer(&mut mark, 20, true), Admission::Wait);
        // The dead process's last request: rows 10, 20 and 30. The probe, row 10, is there twice.
        assert_eq!(mark.on_gap_scanned(hole, found(Some(30), 3, 8)), 1);
        assert_eq!(mark.retain_from(end(25)), Some(5), "row 30 is in it, and not confirmed");
        assert_eq!(mark.retain_from(end(35)), None);
        assert_eq!(offer(&mut mark, 20, true), Admission::AlreadyThere);
        assert_eq!(offer(&mut mark, 30, true), Admission::AlreadyThere);
        assert_eq!(offer(&mut mark, 40, true), Admission::Send);
    }

    #[test]
    fn what_the_search_had_seen_already_is_there_twice() {
        let mut mark = PartitionDedup::new(0);
        offer(&mut mark, 10, true);
        mark.on_scanned(found(Some(20), 2, 5));
        assert_eq!(offer(&mut mark, 30, true), Admission::Send);
        let hole = OffsetGap { from: 5, until: 7, known: Some(at(20)) };
        assert_eq!(mark.on_acknowledged(7, Instant::now()), Landed::AfterGap(hole));
        // Row 20 once more, and row 25, which is new.
        let read = ScanResult { repeated: 1, ..found(Some(25), 2, 7) };
        assert_eq!(mark.on_gap_scanned(hole, read), 1);
    }

    #[test]
    fn our_records_in_a_later_hole_are_counted() {
        let mut mark = PartitionDedup::new(0);
        offer(&mut mark, 10, false);
        assert_eq!(mark.on_acknowledged(3, Instant::now()), Landed::InOrder);
        let hole = OffsetGap { from: 4, until: 6, known: None };
        assert_eq!(mark.on_acknowledged(6, Instant::now()), Landed::AfterGap(hole));
        assert_eq!(mark.on_gap_scanned(hole, found(Some(50), 1, 6)), 1);
        assert_eq!(mark.admit(at(20), false), Admission::Send, "nobody has sent it");
    }

    #[test]
    fn an_offset_that_goes_back_is_noticed() {
        let mut mark = PartitionDedup::new(10);
        offer(&mut mark, 10, false);
        assert_eq!(
            mark.on_acknowledged(0, Instant::now()),
            Landed::Backwards { expected: 10 },
            "below the floor"
        );
        assert_eq!(mark.on_acknowledged(10, Instant::now()), Landed::InOrder);
        assert_eq!(mark.on_acknowledged(10, Instant::now()), Landed::Backwards { expected: 11 });
    }

    #[test]
    fn what_is_not_sent_after_all_leaves_the_mark_as_it_was() {
        let mut mark = PartitionDedup::new(0);
        assert_eq!(mark.admit(at(10), true), Admission::Search { from: 0 });
        mark.on_scanned(found(None, 0, 5));
        assert_eq!(mark.admit(at(10), true), Admission::Send);
        assert_eq!(mark.admit(at(10), true), Admission::Send, "no probe is under way");
    }

    proptest! {
        /// A process dies after its first `appended` of `rows` records were appended; the next one replays from the
        /// start. However much was appended, every row is in the partition once, in order.
        #[test]
        fn a_replay_appends_exactly_what_is_missing(rows in 1u64..30, appended in 0u64..30, horizon in 0u64..40) {
            let appended = appended.min(rows);
            // Nothing beyond the horizon can be in Kafka.
            let horizon = horizon.max(appended);
            let mut log: Vec<u64> = (0..appended).collect();
            let mut mark = PartitionDedup::new(0);
            for row in 0..rows {
                loop {
                    match offer(&mut mark, row, row < horizon) {
                        Admission::Send => {
                            log.push(row);
                            let hole = mark.on_acknowledged(log.len() as i64 - 1, Instant::now());
                            prop_assert_eq!(hole, Landed::InOrder);
                            break;
                        }
                        Admission::AlreadyThere => break,
                        Admission::Search { from } => {
                            let range = &log[from as usize..];
                            mark.on_scanned(found(range.iter().max().copied(), range.len() as u64, log.len() as i64));
                        }
                        Admission::Wait => prop_assert!(false, "nothing is under way"),
                    }
                }
            }
            prop_assert_eq!(log, (0..rows).collect::<Vec<_>>());
        }
    }
}
