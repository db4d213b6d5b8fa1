//! Records that are sent but not acknowledged: their number and bytes, for the budget, and which partitions make no
//! progress.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use outbox::Position;

use crate::topics::partitions::PartitionId;

/// A record that is sent but not acknowledged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct SentRecord {
    pub(super) bytes: usize,
    /// `None` for a replayed dead letter.
    pub(super) position: Option<Position>,
    at: Instant,
}

/// A partition with records waiting and without progress.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct SilentQueue {
    pub(super) partition: PartitionId,
    pub(super) records: usize,
    /// When the oldest of the records began to wait.
    pub(super) oldest: Instant,
    /// The time of the last progress.
    pub(super) since: Instant,
}

#[derive(Debug)]
struct Queue {
    records: VecDeque<SentRecord>,
    /// When the last acknowledgement arrived, or the first record was sent to the empty queue.
    last_progress: Instant,
}

/// See the module documentation. Kafka acknowledges the records of a partition in the order of sending.
#[derive(Debug)]
pub(super) struct InFlight {
    pub(super) events: usize,
    pub(super) bytes: usize,
    /// By partition.
    queues: Vec<Queue>,
    /// Set once per turn of the event loop, because reading the clock for each record would cost more than the rest.
    now: Instant,
}

impl Default for InFlight {
    fn default() -> Self {
        InFlight { events: 0, bytes: 0, queues: Vec::new(), now: Instant::now() }
    }
}

impl InFlight {
    /// A turn of the event loop begins at `now`.
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
            self.queues.resize_with(index + 1, || Queue { records: VecDeque::new(), last_progress: now });
        }
        if let Some(queue) = self.queues.get_mut(index) {
            if queue.records.is_empty() {
                queue.last_progress = now;
            }
            queue.records.push_back(SentRecord { bytes, position, at: now });
        }
        self.events += 1;
        self.bytes += bytes;
    }

    /// Returns the acknowledged record.
    pub(super) fn on_acked(&mut self, partition: PartitionId) -> Option<SentRecord> {
        let queue = self.queues.get_mut(partition.0 as usize)?;
        let record = queue.records.pop_front()?;
        queue.last_progress = self.now;
        self.events = self.events.saturating_sub(1);
        self.bytes = self.bytes.saturating_sub(record.bytes);
        Some(record)
    }

    /// Whether no record of the partition is in flight.
    pub(super) fn is_empty(&self, partition: PartitionId) -> bool {
        self.queues.get(partition.0 as usize).is_none_or(|queue| queue.records.is_empty())
    }

    /// The partitions with records in flight that have acknowledged nothing for `duration`.
    pub(super) fn silent(&self, duration: Duration) -> Vec<SilentQueue> {
        let waiting = self.queues.iter().enumerate().filter_map(|(index, queue)| {
            let partition = PartitionId(u32::try_from(index).ok()?);
            let (oldest, since) = (queue.records.front()?.at, queue.last_progress);
            Some(SilentQueue { partition, records: queue.records.len(), oldest, since })
        });
        waiting.filter(|silent| self.now.saturating_duration_since(silent.since) >= duration).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WITHIN: Duration = Duration::from_secs(5);

    #[test]
    fn each_partition_is_acknowledged_in_the_order_of_sending() {
        let mut in_flight = InFlight::default();
        for (partition, bytes) in [(0, 10), (3, 30), (0, 11)] {
            in_flight.on_sent(PartitionId(partition), bytes, None);
        }
        assert_eq!((in_flight.events, in_flight.bytes), (3, 51));
        let acked =
            [0, 0, 3].map(|partition| in_flight.on_acked(PartitionId(partition)).map(|record| record.bytes));
        assert_eq!(acked, [Some(10), Some(11), Some(30)]);
        assert_eq!((in_flight.events, in_flight.bytes), (0, 0));
        assert!(in_flight.is_empty(PartitionId(0)) && in_flight.is_empty(PartitionId(9)));
    }

    #[test]
    fn a_partition_is_silent_even_while_others_make_progress() {
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
        assert_eq!(in_flight.silent(WITHIN), [], "the partition was idle in between");
    }
}
