//! What is sent and not acknowledged, in records and bytes: what the budget is about.

use std::collections::VecDeque;

use crate::topics::partitions::PartitionId;

/// See the module's text. A partition's records are acknowledged in the order in which they were sent, so sizes need no
/// names.
#[derive(Debug, Default)]
pub(super) struct InFlight {
    pub(super) events: usize,
    pub(super) bytes: usize,
    /// By partition.
    sizes: Vec<VecDeque<usize>>,
}

impl InFlight {
    pub(super) fn sent(&mut self, partition: PartitionId, bytes: usize) {
        let index = partition.0 as usize;
        if self.sizes.len() <= index {
            self.sizes.resize_with(index + 1, VecDeque::new);
        }
        if let Some(sizes) = self.sizes.get_mut(index) {
            sizes.push_back(bytes);
        }
        self.events += 1;
        self.bytes += bytes;
    }

    /// Answers how large the record was.
    pub(super) fn settled(&mut self, partition: PartitionId) -> usize {
        let bytes = self.sizes.get_mut(partition.0 as usize).and_then(VecDeque::pop_front).unwrap_or(0);
        self.events = self.events.saturating_sub(1);
        self.bytes = self.bytes.saturating_sub(bytes);
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_partition_gives_back_what_it_got_in_order() {
        let mut in_flight = InFlight::default();
        for (partition, bytes) in [(0, 10), (3, 30), (0, 11)] {
            in_flight.sent(PartitionId(partition), bytes);
        }
        assert_eq!((in_flight.events, in_flight.bytes), (3, 51));
        assert_eq!([0, 0, 3].map(|partition| in_flight.settled(PartitionId(partition))), [10, 11, 30]);
        assert_eq!((in_flight.events, in_flight.bytes), (0, 0));
    }
}
