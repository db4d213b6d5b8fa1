//! How old what was not acknowledged is, as far as it can be told without having read it: since when the server's
//! log has been seen to go beyond what Kafka has.

use std::time::{Duration, Instant};

use pg_replication::EndLsn;

/// One look a second: an hour of them is plenty, and the oldest is the one that counts.
const MOST_SAMPLES: usize = 3600;

#[derive(Clone, Copy, Debug)]
struct Sample {
    lsn: EndLsn,
    seen: Instant,
    /// It is known to have been waiting for so long before it was seen.
    before: Duration,
}

/// See the module's text.
#[derive(Debug, Default)]
pub(super) struct UnreadLag {
    samples: Vec<Sample>,
    acknowledged: EndLsn,
    /// Something was acknowledged, or seen, in this process's life.
    begun: bool,
}

impl UnreadLag {
    /// The server's log was at `lsn` at `now`. `checkpoint_age` is how long ago the relay stored that it had delivered
    /// all there was: what was there before the first look of this process is at most that old, and taken to be.
    pub(super) fn on_observed(&mut self, lsn: EndLsn, now: Instant, checkpoint_age: Option<Duration>) {
        let before = if self.begun { Duration::ZERO } else { checkpoint_age.unwrap_or_default() };
        self.begun = true;
        let news = self.samples.last().is_none_or(|last| last.lsn < lsn);
        if news && lsn > self.acknowledged {
            self.samples.push(Sample { lsn, seen: now, before });
        }
        if self.samples.len() > MOST_SAMPLES {
            self.samples.remove(1);
        }
    }

    /// Everything up to `lsn` is in Kafka, sent by this relay or by the one that holds the slot.
    pub(super) fn on_acknowledged(&mut self, lsn: EndLsn) {
        self.acknowledged = self.acknowledged.max(lsn);
        let acknowledged = self.acknowledged;
        self.samples.retain(|sample| sample.lsn > acknowledged);
    }

    /// Age of the oldest that is not acknowledged.
    pub(super) fn age(&self, now: Instant) -> Duration {
        let oldest = self.samples.first();
        oldest.map_or(Duration::ZERO, |sample| now.saturating_duration_since(sample.seen) + sample.before)
    }

    /// For how long the server has had more than `received`.
    pub(super) fn beyond(&self, received: EndLsn, now: Instant) -> Duration {
        let oldest = self.samples.iter().find(|sample| sample.lsn > received);
        oldest.map_or(Duration::ZERO, |sample| now.saturating_duration_since(sample.seen))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn lsn(value: u64) -> EndLsn {
        EndLsn::new(pg_replication::Lsn::from(value))
    }

    #[test]
    fn it_is_as_old_as_the_first_look_that_found_it_and_gone_when_acknowledged() {
        let start = Instant::now();
        let mut unread = UnreadLag::default();
        unread.on_acknowledged(lsn(100));
        unread.on_observed(lsn(100), start, None);
        assert_eq!(unread.age(start + SECOND), Duration::ZERO, "caught up");
        unread.on_observed(lsn(200), start + SECOND, None);
        unread.on_observed(lsn(300), start + 2 * SECOND, None);
        assert_eq!(unread.age(start + 4 * SECOND), 3 * SECOND);
        assert_eq!(unread.beyond(lsn(200), start + 4 * SECOND), 2 * SECOND);
        unread.on_acknowledged(lsn(200));
        assert_eq!(unread.age(start + 4 * SECOND), 2 * SECOND);
        unread.on_acknowledged(lsn(300));
        assert_eq!(unread.age(start + 4 * SECOND), Duration::ZERO);
    }

    #[test]
    fn what_was_there_before_the_process_is_as_old_as_the_checkpoint() {
        let start = Instant::now();
        let mut unread = UnreadLag::default();
        unread.on_observed(lsn(100), start, Some(3600 * SECOND));
        unread.on_observed(lsn(200), start + SECOND, Some(3601 * SECOND));
        assert_eq!(unread.age(start + SECOND), 3601 * SECOND);
        assert_eq!(unread.beyond(lsn(0), start + SECOND), SECOND, "it could not be read before");
        unread.on_acknowledged(lsn(100));
        assert_eq!(unread.age(start + SECOND), Duration::ZERO);
    }

    #[test]
    fn memory_is_bounded_and_the_oldest_is_kept() {
        let start = Instant::now();
        let mut unread = UnreadLag::default();
        for second in 0..2 * MOST_SAMPLES as u32 {
            unread.on_observed(lsn(u64::from(second) + 1), start + second * SECOND, None);
        }
        assert_eq!(unread.samples.len(), MOST_SAMPLES);
        assert_eq!(unread.age(start + 10_000 * SECOND), 10_000 * SECOND);
    }
}
