//! The age of what is not acknowledged, as far as it is known without reading it: the time since the server's WAL was
//! first seen beyond what Kafka has.

use std::time::{Duration, Instant};

use pg_replication::EndLsn;

/// One sample per second: an hour of them is enough, and only the oldest decides.
const MAX_SAMPLES: usize = 3600;

#[derive(Clone, Copy, Debug)]
struct Sample {
    lsn: EndLsn,
    seen: Instant,
    /// How long it is known to have waited before it was seen.
    before: Duration,
}

#[derive(Debug, Default)]
pub(super) struct UnreadLag {
    samples: Vec<Sample>,
    acknowledged: EndLsn,
    /// Whether this process has seen an acknowledged or an observed LSN.
    begun: bool,
}

impl UnreadLag {
    /// The server's WAL ended at `lsn` at `now`. `checkpoint_age` is the time since the relay stored that it had
    /// delivered everything: WAL from before this process's first observation is at most that old, and is reported as
    /// that old.
    pub(super) fn on_observed(&mut self, lsn: EndLsn, now: Instant, checkpoint_age: Option<Duration>) {
        let before = if self.begun { Duration::ZERO } else { checkpoint_age.unwrap_or_default() };
        self.begun = true;
        let is_newer = self.samples.last().is_none_or(|last| last.lsn < lsn);
        if is_newer && lsn > self.acknowledged {
            self.samples.push(Sample { lsn, seen: now, before });
        }
        if self.samples.len() > MAX_SAMPLES {
            self.samples.remove(1);
        }
    }

    /// Everything up to `lsn` is in Kafka, sent by this relay or by the one that holds the slot.
    pub(super) fn on_acknowledged(&mut self, lsn: EndLsn) {
        self.acknowledged = self.acknowledged.max(lsn);
        let acknowledged = self.acknowledged;
        self.samples.retain(|sample| sample.lsn > acknowledged);
    }

    /// Age of the oldest WAL that is not acknowledged.
    pub(super) fn age(&self, now: Instant) -> Duration {
        let oldest = self.samples.first();
        oldest.map_or(Duration::ZERO, |sample| now.saturating_duration_since(sample.seen) + sample.before)
    }

    /// For how long the server has had WAL beyond `received`.
    pub(super) fn beyond(&self, received: EndLsn, now: Instant) -> Duration {
        let oldest = self.samples.iter().find(|sample| sample.lsn > received);
        oldest.map_or(Duration::ZERO, |sample| now.saturating_duration_since(sample.seen))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::end;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn its_age_counts_from_the_first_observation_and_ends_with_the_acknowledgement() {
        let start = Instant::now();
        let mut unread = UnreadLag::default();
        unread.on_acknowledged(end(100));
        unread.on_observed(end(100), start, None);
        assert_eq!(unread.age(start + SECOND), Duration::ZERO, "caught up");
        unread.on_observed(end(200), start + SECOND, None);
        unread.on_observed(end(300), start + 2 * SECOND, None);
        assert_eq!(unread.age(start + 4 * SECOND), 3 * SECOND);
        assert_eq!(unread.beyond(end(200), start + 4 * SECOND), 2 * SECOND);
        unread.on_acknowledged(end(200));
        assert_eq!(unread.age(start + 4 * SECOND), 2 * SECOND);
        unread.on_acknowledged(end(300));
        assert_eq!(unread.age(start + 4 * SECOND), Duration::ZERO);
    }

    #[test]
    fn wal_from_before_the_process_is_as_old_as_the_checkpoint() {
        let start = Instant::now();
        let mut unread = UnreadLag::default();
        unread.on_observed(end(100), start, Some(3600 * SECOND));
        unread.on_observed(end(200), start + SECOND, Some(3601 * SECOND));
        assert_eq!(unread.age(start + SECOND), 3601 * SECOND);
        assert_eq!(unread.beyond(end(0), start + SECOND), SECOND, "the process could not read it before");
        unread.on_acknowledged(end(100));
        assert_eq!(unread.age(start + SECOND), Duration::ZERO);
    }

    #[test]
    fn the_number_of_samples_is_bounded_and_the_oldest_is_kept() {
        let start = Instant::now();
        let mut unread = UnreadLag::default();
        for second in 0..2 * MAX_SAMPLES as u32 {
            unread.on_observed(end(u64::from(second) + 1), start + second * SECOND, None);
        }
        assert_eq!(unread.samples.len(), MAX_SAMPLES);
        assert_eq!(unread.age(start + 10_000 * SECOND), 10_000 * SECOND);
    }
}
