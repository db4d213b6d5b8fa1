//! Gaps in a partition's offsets: ranges between two records of ours that other producers have filled.
//!
//! Each may hold a record of ours that another relay process sent. But in a topic that others write to there is one behind
//! nearly every batch, so what is read of them is bounded, whatever the others write: gaps of a partition that wait are read
//! together, one partition at a time, and for a tenth of the time at most. What does not fit is skipped and counted.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::topics::partitions::PartitionId;

/// Gaps of one partition that may wait: 16 kB.
const MAX_GAPS: usize = 1024;
/// Offsets in all gaps of one partition that may wait.
const MAX_OFFSETS: i64 = 100_000;
/// How long one reading keeps others from theirs.
pub(super) const BRIEF_TURN: Duration = Duration::from_millis(250);
/// Of ten seconds, one may be spent on gaps.
const SHARE: u32 = 10;
/// What may be saved up, so that a few gaps are read without delay.
const MOST_CREDIT: Duration = Duration::from_secs(3);
const LONGEST_PAUSE: Duration = Duration::from_secs(10);

/// The gaps of one partition that wait to be read.
#[derive(Debug)]
pub(super) struct PartitionGaps {
    pub(super) topic: Arc<str>,
    pub(super) number: i32,
    /// In order: (first offset, first offset behind it).
    pub(super) gaps: VecDeque<(i64, i64)>,
    offsets: i64,
}

/// See the module's text.
#[derive(Debug)]
pub(super) struct OffsetGaps {
    waiting: BTreeMap<u32, PartitionGaps>,
    last: u32,
    is_read: bool,
    /// How long may be read without a pause, as of a time.
    credit: (Duration, Instant),
}

/// What became of a gap that was added.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Added {
    /// How many gaps are skipped in exchange.
    pub(super) skipped: u64,
    /// Whether the caller has to begin to read.
    pub(super) begins: bool,
}

impl OffsetGaps {
    pub(super) fn new(now: Instant) -> OffsetGaps {
        OffsetGaps { waiting: BTreeMap::new(), last: 0, is_read: false, credit: (MOST_CREDIT, now) }
    }

    /// How long to pause after a reading that took so long and ended at `now`.
    pub(super) fn pause_after(&mut self, took: Duration, now: Instant) -> Duration {
        let (credit, since) = self.credit;
        let earned = now.saturating_duration_since(since) / SHARE;
        let credit = (credit + earned).min(MOST_CREDIT);
        let pause = took.saturating_sub(credit).saturating_mul(SHARE).min(LONGEST_PAUSE);
        // The pause is paid for by what is earned in it.
        self.credit = (credit.saturating_sub(took), now + pause);
        pause
    }

    /// Adds a gap, which lies behind all that the partition has waiting.
    pub(super) fn add(&mut self, id: PartitionId, topic: &str, number: i32, gap: (i64, i64)) -> Added {
        let new = || PartitionGaps { topic: topic.into(), number, gaps: VecDeque::new(), offsets: 0 };
        let partition = self.waiting.entry(id.0).or_insert_with(new);
        partition.gaps.push_back(gap);
        partition.offsets += gap.1 - gap.0;
        let mut skipped = 0;
        while partition.gaps.len() > MAX_GAPS || partition.offsets > MAX_OFFSETS {
            let Some((from, until)) = partition.gaps.pop_front() else { break };
            partition.offsets -= until - from;
            skipped += 1;
        }
        Added { skipped, begins: !std::mem::replace(&mut self.is_read, true) }
    }

    /// The gaps to read next, of each partition in turn. With `None` the reading has ended.
    pub(super) fn take(&mut self) -> Option<(PartitionId, PartitionGaps)> {
        self.waiting.retain(|_, partition| !partition.gaps.is_empty());
        let next = self.waiting.range(self.last.saturating_add(1)..).next();
        let Some((id, _)) = next.or_else(|| self.waiting.iter().next()) else {
            self.is_read = false;
            return None;
        };
        self.last = *id;
        self.waiting.remove(&self.last).map(|partition| (PartitionId(self.last), partition))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: PartitionId = PartitionId(1);
    const TWO: PartitionId = PartitionId(2);

    #[test]
    fn gaps_are_read_together_one_partition_after_another_by_one_reader() {
        let mut gaps = OffsetGaps::new(Instant::now());
        assert!(gaps.add(ONE, "t", 0, (3, 5)).begins);
        assert!(!gaps.add(ONE, "t", 0, (6, 7)).begins);
        assert!(!gaps.add(TWO, "t", 1, (1, 2)).begins);
        let (id, taken) = gaps.take().unwrap();
        assert_eq!((id, taken.gaps), (ONE, VecDeque::from([(3, 5), (6, 7)])));
        assert!(!gaps.add(ONE, "t", 0, (8, 9)).begins, "somebody reads");
        assert_eq!(gaps.take().unwrap().0, TWO, "each in turn");
        assert_eq!(gaps.take().unwrap().0, ONE);
        assert!(gaps.take().is_none());
        assert!(gaps.add(ONE, "t", 0, (10, 11)).begins, "nobody reads any more");
    }

    #[test]
    fn the_oldest_are_skipped_when_too_many_wait() {
        let mut gaps = OffsetGaps::new(Instant::now());
        let skipped: u64 =
            (0..MAX_GAPS as i64 + 7).map(|n| gaps.add(ONE, "t", 0, (2 * n, 2 * n + 1)).skipped).sum();
        assert_eq!(skipped, 7);
        assert_eq!(gaps.take().unwrap().1.gaps.front(), Some(&(14, 15)));
    }

    #[test]
    fn a_gap_that_is_too_long_is_skipped_as_a_whole() {
        let mut gaps = OffsetGaps::new(Instant::now());
        assert_eq!(gaps.add(ONE, "t", 0, (0, 10)).skipped, 0);
        assert_eq!(gaps.add(ONE, "t", 0, (11, MAX_OFFSETS + 12)).skipped, 2);
        assert!(gaps.take().is_none());
    }

    #[test]
    fn a_few_gaps_are_read_at_once_and_many_for_a_tenth_of_the_time() {
        let (mut now, second) = (Instant::now(), Duration::from_secs(1));
        let mut gaps = OffsetGaps::new(now);
        let (mut read, began) = (Duration::ZERO, now);
        for _ in 0..100 {
            read += second;
            now += second + gaps.pause_after(second, now + second);
        }
        let most = MOST_CREDIT + (now - began) / SHARE + second;
        assert!(read <= most, "{read:?} of {:?}", now - began);
        now += 60 * second;
        assert_eq!(gaps.pause_after(second, now), Duration::ZERO, "after a while without gaps");
    }
}
