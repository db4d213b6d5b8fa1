//! The series of `events_total`, by partition.

use prometheus::IntCounter;

use crate::topics::partitions::PartitionId;

/// The `events_total` series of each partition's topic. Finding a series by its labels for each event would cost more
/// than counting.
#[derive(Default)]
pub struct TopicCounters(Vec<Option<IntCounter>>);

impl TopicCounters {
    /// Counts one event. `find` is called the first time for each partition.
    pub fn count(&mut self, partition: PartitionId, find: impl FnOnce() -> IntCounter) {
        let index = partition.0 as usize;
        if self.0.len() <= index {
            self.0.resize_with(index + 1, || None);
        }
        if let Some(counter) = self.0.get_mut(index) {
            counter.get_or_insert_with(find).inc();
        }
    }
}
