//! Counters of each partition's topic.

use prometheus::IntCounter;

use crate::topics::partitions::PartitionId;

/// `events_total` of each partition's topic: to look a series up by its labels costs more than to count.
#[derive(Default)]
pub struct TopicCounters(Vec<Option<IntCounter>>);

impl TopicCounters {
    /// One event more; `find` looks the counter up the first time.
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
