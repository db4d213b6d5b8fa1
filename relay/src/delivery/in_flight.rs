//! What is sent and not acknowledged, in records and bytes: what the budget is about. And which partition makes no progress.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use outbox::Position;

use crate::topics::partitions::PartitionId;

/// A record that is sent and not acknowledged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct SentRecord {
    pub(super) bytes: usize,
    /// `None` for a dead letter that is sent again.
    pub(super) position: Option<Position>,
    at: Instant,
}

/// A partition of which nothing is acknowledged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct SilentQueue {
    pub(super) partition: PartitionId,
    pub(super) records: usize,
    /// Since when the oldest of them waits.
    pub(super) oldest: Instant,
    /// Since when there is no progress.
    pub(super) since: Instant,
}

#[derive(Debug)]
struct Queue {
    records: VecDeque<SentRecord>,
    /// Of the last acknowledgement, or of the first record that was sent after it.
    moved: Instant,
}

/// See the module's text. A partition's records are acknowledged in the order in which they were sent.
#[derive(Debug)]
pub(super) struct InFlight {
    pub(super) events: usize,
    pub(super) bytes: usize,
    /// By partition.
    queues: Vec<Queue>,
    /// Set at each turn of the loop: a clock for each record would cost more than the rest.
    now: Instant,
}

impl Default for InFlight {
    fn default() -> Self {
        InFlight { events: 0, bytes: 0, queues: Vec::new(), now: Instant::now() }
    }
}

impl InFlight {
    /// What follows happens at `now`.
    pub(super) fn on_turn(&mut self, now: Instant) {
        self.now = now;
    }

    /// When this turn began.
    pub(super) fn now(&self) -> Instant {
        self.now
    }

    pub(super) fn on_sent(&mut self, partition: PartitionId, bytes: usize, position: Option<Position>) {
        let (index, now) = (partition.0 as usize, self.now);
        if self.queues.len() <= index {
            self.queues.resize_with(index + 1, || Queue { records: VecDeque::new(), moved: now });
        }
        if let Some(queue) = self.queues.get_mut(index) {
            if queue.records.is_empty() {
                queue.moved = now;
            }
            queue.records.push_back(SentRecord { bytes, position, at: now });
        }
        self.events += 1;
        self.bytes += bytes;
    }

    /// Answers which record it was.
    pub(super) fn on_acked(&mut self, partition: PartitionId) -> Option<SentRecord> {
        let queue = self.queues.get_mut(partition.0 as usize)?;
        let record = queue.records.pop_front()?;
        queue.moved = self.now;
        self.events = self.events.saturating_sub(1);
        self.bytes = self.bytes.saturating_sub(record.bytes);
        Some(record)
    }

    /// Whether nothing of a partition is in flight.
    pub(super) fn is_empty(&self, partition: PartitionId) -> bool {
        self.queues.get(partition.0 as usize).is_none_or(|queue| queue.records.is_empty())
    }

    /// The partitions of which nothing was acknowledged for `within`, though something waits.
    pub(super) fn silent(&self, within: Duration) -> Vec<SilentQueue> {
        let waiting = self.queues.iter().enumerate().filter_map(|(index, queue)| {
            let partition = PartitionId(u32::try_from(index).ok()?);
            let (oldest, since) = (queue.records.front()?.at, queue.moved);
            Some(SilentQueue { partition, records: queue.records.len(), oldest, since })
        });
        waiting.filter(|silent| self.now.saturating_duration_since(silent.since) >= within).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WITHIN: Duration = Duration::from_secs(5);

    #[test]
    fn each_partition_gives_back_what_it_got_in_order() {
        let mut in_flight = InFlight::default();
        for (partition, bytes) in [(0, 10), (3, 30), (0, 11)] {
            in_flight.on_sent(PartitionId(partition), bytes, None);
        }
        assert_eq!((in_flight.events, in_flight.bytes), (3, 51));
        let settled =
            [0, 0, 3].map(|partition| in_flight.on_acked(PartitionId(partition)).map(|record| record.bytes));
        assert_eq!(settled, [Some(10), Some(11), Some(30)]);
        assert_eq!((in_flight.events, in_flight.bytes), (0, 0));
        assert!(in_flight.is_empty(PartitionId(0)) && in_flight.is_empty(PartitionId(9)));
    }

    #[test]
    fn a_partition_is_silent_whatever_the_others_do() {
        let (mut in_flight, start) = (InFlight::default(), Instant::now());
        let second = |n| start + Duration::from_secs(n);
        in_flight.on_turn(start);
        in_flight.on_sent(PartitionId(1), 1, None);
        in_flight.on_sent(PartitionId(1), 1, None);
        for n in 0..=5 {
            assert_eq!(in_flight.silent(WITHIN), []);
            in_flight.on_turn(second(n));
            in_flight.on_sent(PartitionId(0), 1, None);
            in_flight.on_acked(PartitionId(0));
        }
        let (oldest, since) = (start, start);
        let silent = SilentQueue { partition: PartitionId(1), records: 2, oldest, since };
        assert_eq!(in_flight.silent(WITHIN), [silent]);
        in_flight.on_acked(PartitionId(1));
        assert_eq!(in_flight.silent(WITHIN), [], "slow, but not silent");
        in_flight.on_turn(second(10));
        let since = second(5);
        assert_eq!(
            in_flight.silent(WITHIN),
            [SilentQueue { partition: PartitionId(1), records: 1, oldest, since }]
        );
        in_flight.on_acked(PartitionId(1));
        in_flight.on_turn(second(60));
        in_flight.on_sent(PartitionId(1), 1, None);
        assert_eq!(in_flight.silent(WITHIN), [], "it was idle meanwhile");
    }
}
