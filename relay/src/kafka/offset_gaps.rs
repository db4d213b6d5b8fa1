//! Gaps in a partition's offsets: ranges between two records of this process that other producers have filled.
//!
//! Each gap may contain a record of this outbox that another relay process sent. But in a topic with other producers
//! there is a gap after nearly every batch, so scanning them is bounded: the queued gaps of a partition are scanned
//! together, one partition at a time, and for at most a tenth of the time. Gaps beyond the limits are skipped and
//! counted.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::progress::offset::OffsetRange;
use crate::topics::partitions::{PartitionId, PartitionNumber};

/// Maximum number of queued gaps of one partition: 16 kB.
const MAX_GAPS: usize = 1024;
/// Maximum number of offsets in the queued gaps of one partition.
const MAX_OFFSETS: i64 = 100_000;
/// After this time a scan of gaps yields to other scans that wait.
pub(super) const BRIEF_TURN: Duration = Duration::from_millis(250);
/// One tenth of the time may be spent on gaps.
const SHARE: u32 = 10;
/// Maximum unused scan time that is saved, so that a few gaps are scanned without delay.
const MOST_CREDIT: Duration = Duration::from_secs(3);
const LONGEST_PAUSE: Duration = Duration::from_secs(10);

/// The queued gaps of one partition.
#[derive(Debug)]
pub(super) struct PartitionGaps {
    pub(super) topic: Arc<str>,
    pub(super) number: PartitionNumber,
    /// In order.
    pub(super) gaps: VecDeque<OffsetRange>,
    offsets: i64,
}

#[derive(Debug)]
pub(super) struct OffsetGaps {
    waiting: BTreeMap<u32, PartitionGaps>,
    last: u32,
    is_scanning: bool,
    /// The scan time that is available without a pause, as of the given time.
    credit: (Duration, Instant),
}

/// The result of adding a gap.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Added {
    /// The number of gaps skipped because of the limits.
    pub(super) skipped: u64,
    /// Whether the caller has to start scanning.
    pub(super) must_start: bool,
}

impl OffsetGaps {
    pub(super) fn new(now: Instant) -> OffsetGaps {
        OffsetGaps { waiting: BTreeMap::new(), last: 0, is_scanning: false, credit: (MOST_CREDIT, now) }
    }

    /// A scan took `took` and ended at `now`. Returns how long to pause before the next one.
    pub(super) fn on_scanned(&mut self, took: Duration, now: Instant) -> Duration {
        let (credit, since) = self.credit;
        let earned = now.saturating_duration_since(since) / SHARE;
        let credit = (credit + earned).min(MOST_CREDIT);
        let pause = took.saturating_sub(credit).saturating_mul(SHARE).min(LONGEST_PAUSE);
        // The time earned during the pause is already spent.
        self.credit = (credit.saturating_sub(took), now + pause);
        pause
    }

    /// Adds a gap, which is after all queued gaps of the partition.
    pub(super) fn add(
        &mut self,
        id: PartitionId,
        topic: &str,
        number: PartitionNumber,
        gap: OffsetRange,
    ) -> Added {
        let new = || PartitionGaps { topic: topic.into(), number, gaps: VecDeque::new(), offsets: 0 };
        let partition = self.waiting.entry(id.0).or_insert_with(new);
        partition.gaps.push_back(gap);
        partition.offsets += gap.count();
        let mut skipped = 0;
        while partition.gaps.len() > MAX_GAPS || partition.offsets > MAX_OFFSETS {
            let Some(oldest) = partition.gaps.pop_front() else { break };
            partition.offsets -= oldest.count();
            skipped += 1;
        }
        Added { skipped, must_start: !std::mem::replace(&mut self.is_scanning, true) }
    }

    /// Takes the gaps to scan next, of each partition in turn. `None` ends the scanning.
    pub(super) fn take(&mut self) -> Option<(PartitionId, PartitionGaps)> {
        self.waiting.retain(|_, partition| !partition.gaps.is_empty());
        let next = self.waiting.range(self.last.saturating_add(1)..).next();
        let Some((id, _)) = next.or_else(|| self.waiting.iter().next()) else {
            self.is_scanning = false;
            return None;
        };
        self.last = *id;
        self.waiting.remove(&self.last).map(|partition| (PartitionId(self.last), partition))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::progress::offset::Offset;

    const ONE: PartitionId = PartitionId(1);
    const TWO: PartitionId = PartitionId(2);

    fn gap(from: i64, until: i64) -> OffsetRange {
        OffsetRange { from: Offset(from), until: Offset(until) }
    }

    fn add(gaps: &mut OffsetGaps, id: PartitionId, from: i64, until: i64) -> Added {
        gaps.add(id, "t", PartitionNumber(0), gap(from, until))
    }

    #[test]
    fn the_gaps_of_a_partition_are_scanned_together_one_partition_after_another() {
        let mut gaps = OffsetGaps::new(Instant::now());
        assert!(add(&mut gaps, ONE, 3, 5).must_start);
        assert!(!add(&mut gaps, ONE, 6, 7).must_start);
        assert!(!add(&mut gaps, TWO, 1, 2).must_start);
        let (id, taken) = gaps.take().unwrap();
        assert_eq!((id, taken.gaps), (ONE, VecDeque::from([gap(3, 5), gap(6, 7)])));
        assert!(!add(&mut gaps, ONE, 8, 9).must_start, "a scan is running");
        assert_eq!(gaps.take().unwrap().0, TWO, "each in turn");
        assert_eq!(gaps.take().unwrap().0, ONE);
        assert!(gaps.take().is_none());
        assert!(add(&mut gaps, ONE, 10, 11).must_start, "no scan is running");
    }

    #[test]
    fn the_oldest_gaps_are_skipped_when_too_many_wait() {
        let mut gaps = OffsetGaps::new(Instant::now());
        let skipped: u64 =
            (0..MAX_GAPS as i64 + 7).map(|n| add(&mut gaps, ONE, 2 * n, 2 * n + 1).skipped).sum();
        assert_eq!(skipped, 7);
        assert_eq!(gaps.take().unwrap().1.gaps.front(), Some(&gap(14, 15)));
    }

    #[test]
    fn a_gap_that_is_too_long_is_skipped_as_a_whole() {
        let mut gaps = OffsetGaps::new(Instant::now());
        assert_eq!(add(&mut gaps, ONE, 0, 10).skipped, 0);
        assert_eq!(add(&mut gaps, ONE, 11, MAX_OFFSETS + 12).skipped, 2);
        assert!(gaps.take().is_none());
    }

    #[test]
    fn a_few_gaps_are_scanned_immediately_and_many_for_a_tenth_of_the_time() {
        let (mut now, second) = (Instant::now(), Duration::from_secs(1));
        let mut gaps = OffsetGaps::new(now);
        let (mut read, began) = (Duration::ZERO, now);
        for _ in 0..100 {
            read += second;
            now += second + gaps.on_scanned(second, now + second);
        }
        let most = MOST_CREDIT + (now - began) / SHARE + second;
        assert!(read <= most, "{read:?} of {:?}", now - began);
        now += 60 * second;
        assert_eq!(gaps.on_scanned(second, now), Duration::ZERO, "after a while without gaps");
    }
}
