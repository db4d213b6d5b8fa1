//! What is sent and not acknowledged, in records and bytes: what the budget is about.

use std::collections::VecDeque;

use outbox::Position;

use crate::topics::partitions::PartitionId;

/// See the module's text. A partition's records are acknowledged in the order in which they were sent, so sizes need no
/// names.
#[derive(Debug, Default)]
pub(super) struct InFlight {
    pub(super) events: usize,
    pub(super) bytes: usize,
    /// By partition.
    records: Vec<VecDeque<Sent>>,
}

/// A record in flight.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Sent {
    pub(super) bytes: usize,
    /// Of its row; a dead letter that is sent again has none.
    pub(super) position: Option<Position>,
}

impl InFlight {
    pub(super) fn sent(&mut self, partition: PartitionId, bytes: usize, position: Option<Position>) {
        let index = partition.0 as usize;
        if self.records.len() <= index {
            self.records.resize_with(index + 1, VecDeque::new);
        }
        if let Some(records) = self.records.get_mut(index) {
            records.push_back(Sent { bytes, position });
        }
        self.events += 1;
        self.bytes += bytes;
    }

    /// Answers which record it was.
    pub(super) fn settled(&mut self, partition: PartitionId) -> Sent {
        let sent = self.records.get_mut(partition.0 as usize).and_then(VecDeque::pop_front);
        let sent = sent.unwrap_or_default();
        self.events = self.events.saturating_sub(1);
        self.bytes = self.bytes.saturating_sub(sent.bytes);
        sent
    }

    /// Whether nothing of a partition is in flight.
    pub(super) fn is_empty(&self, partition: PartitionId) -> bool {
        self.records.get(partition.0 as usize).is_none_or(VecDeque::is_empty)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_partition_gives_back_what_it_got_in_order() {
        let mut in_flight = InFlight::default();
        for (partition, bytes) in [(0, 10), (3, 30), (0, 11)] {
            in_flight.sent(PartitionId(partition), bytes, None);
        }
        assert_eq!((in_flight.events, in_flight.bytes), (3, 51));
        assert_eq!([0, 0, 3].map(|partition| in_flight.settled(PartitionId(partition)).bytes), [10, 11, 30]);
        assert_eq!((in_flight.events, in_flight.bytes), (0, 0));
        assert!(in_flight.is_empty(PartitionId(0)) && in_flight.is_empty(PartitionId(9)));
    }
}
