//! The topics and partitions this relay writes to: their high marks, and the offsets the checkpoint keeps.
//!
//! A topic's partition count is part of the state: it is written to the checkpoint before the first record, and
//! events stay spread over that many partitions, because a key must not change its partition while replayed rows
//! are judged by what the partition holds.

use std::collections::{BTreeMap, HashMap, VecDeque};

use crate::high_mark::HighMark;
use crate::ledger::EntryId;

/// topic -> partition -> offset at which a search for our records starts.
pub type Offsets = BTreeMap<String, BTreeMap<i32, i64>>;
/// topic -> number of partitions events are spread over.
pub type PartitionCounts = BTreeMap<String, i32>;

/// Index of a partition among all this process knows. It travels with each record in flight.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct PartitionId(pub u32);

/// Index of a topic among all this process knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct TopicId(usize);

impl TopicId {
    /// Topics are numbered from 0 in the order in which they became known.
    pub fn index(self) -> usize {
        self.0
    }
}

struct Topic {
    name: String,
    first: u32,
    count: i32,
}

struct Partition {
    topic: TopicId,
    number: i32,
    mark: HighMark,
    /// Where the next search starts, as of the confirmed prefix.
    floor: i64,
    /// (entry, offset after its last record here), for entries not yet in the confirmed prefix. A record that is
    /// acknowledged but replayed after a crash must still be found by the search.
    ahead: VecDeque<(EntryId, i64)>,
}

/// See the module's text.
#[derive(Default)]
pub struct Partitions {
    topics: Vec<Topic>,
    by_name: HashMap<String, TopicId>,
    partitions: Vec<Partition>,
}

impl Partitions {
    /// What the checkpoint knows: topics, their partition counts, and where to search.
    pub fn from_checkpoint(counts: &PartitionCounts, offsets: &Offsets) -> Self {
        let mut partitions = Partitions::default();
        let none = BTreeMap::new();
        for (name, count) in counts {
            partitions.add(name, *count, offsets.get(name).unwrap_or(&none));
        }
        partitions
    }

    /// Adds a topic; a partition without an offset is searched from its beginning.
    pub fn add(&mut self, name: &str, count: i32, offsets: &BTreeMap<i32, i64>) -> TopicId {
        let id = TopicId(self.topics.len());
        let first = u32::try_from(self.partitions.len()).unwrap_or(u32::MAX);
        self.topics.push(Topic { name: name.into(), first, count });
        self.by_name.insert(name.into(), id);
        self.partitions.extend((0..count).map(|number| {
            let floor = offsets.get(&number).copied().unwrap_or(0);
            Partition { topic: id, number, mark: HighMark::new(floor), floor, ahead: VecDeque::new() }
        }));
        id
    }

    /// The topic of that name, if it is known.
    pub fn topic(&self, name: &str) -> Option<TopicId> {
        self.by_name.get(name).copied()
    }

    /// Name of a topic.
    pub fn topic_name(&self, topic: TopicId) -> &str {
        self.topics.get(topic.0).map_or("", |topic| &topic.name)
    }

    /// The partition of `topic` for a key.
    pub fn for_key(&self, topic: TopicId, key: &[u8]) -> PartitionId {
        let (first, count) = self.topics.get(topic.0).map_or((0, 1), |topic| (topic.first, topic.count));
        PartitionId(first + crate::routing::partition(key, count).unsigned_abs())
    }

    /// Topic and partition number.
    pub fn place(&self, id: PartitionId) -> Option<(TopicId, i32)> {
        self.partitions.get(id.0 as usize).map(|partition| (partition.topic, partition.number))
    }

    /// The high mark of a partition.
    pub fn mark(&mut self, id: PartitionId) -> Option<&mut HighMark> {
        self.partitions.get_mut(id.0 as usize).map(|partition| &mut partition.mark)
    }

    /// The number of a partition and its high mark.
    pub fn number_and_mark(&mut self, id: PartitionId) -> Option<(i32, &mut HighMark)> {
        self.partitions.get_mut(id.0 as usize).map(|partition| (partition.number, &mut partition.mark))
    }

    /// A record of ledger entry `entry` was acknowledged at `offset`.
    pub fn acknowledged(&mut self, id: PartitionId, entry: EntryId, offset: i64) {
        let Some(partition) = self.partitions.get_mut(id.0 as usize) else { return };
        match partition.ahead.back_mut() {
            Some((last, next)) if *last == entry => *next = (*next).max(offset + 1),
            _ => partition.ahead.push_back((entry, offset + 1)),
        }
    }

    /// The offsets to store with a checkpoint: `first_unconfirmed` is the oldest entry not confirmed by it.
    pub fn offsets(&mut self, first_unconfirmed: EntryId) -> Offsets {
        let mut offsets = Offsets::new();
        for partition in &mut self.partitions {
            while let Some((_, next)) = partition.ahead.pop_front_if(|(entry, _)| *entry < first_unconfirmed)
            {
                partition.floor = partition.floor.max(next);
            }
            let topic =
                self.topics.get(partition.topic.0).map(|topic| topic.name.clone()).unwrap_or_default();
            offsets.entry(topic).or_default().insert(partition.number, partition.floor);
        }
        offsets
    }

    /// Partition counts, to store with a checkpoint.
    pub fn counts(&self) -> PartitionCounts {
        self.topics.iter().map(|topic| (topic.name.clone(), topic.count)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn offsets_move_only_with_the_confirmed_prefix() {
        let mut partitions = Partitions::default();
        let topic = partitions.add("t", 1, &BTreeMap::from([(0, 10)]));
        let id = partitions.for_key(topic, b"k");
        partitions.acknowledged(id, 0, 10);
        partitions.acknowledged(id, 0, 11);
        partitions.acknowledged(id, 2, 12);
        assert_eq!(partitions.offsets(0)["t"][&0], 10, "entry 0 is not confirmed");
        assert_eq!(partitions.offsets(1)["t"][&0], 12);
        assert_eq!(partitions.offsets(2)["t"][&0], 12, "entry 2 would be replayed and must be found");
        assert_eq!(partitions.offsets(3)["t"][&0], 13);
    }

    #[test]
    fn what_the_checkpoint_knew_is_restored() {
        let counts = PartitionCounts::from([("a".into(), 2), ("b".into(), 3)]);
        let offsets = Offsets::from([("b".into(), BTreeMap::from([(2, 7)]))]);
        let mut partitions = Partitions::from_checkpoint(&counts, &offsets);
        assert_eq!(partitions.counts(), counts);
        assert_eq!(partitions.offsets(0)["b"], BTreeMap::from([(0, 0), (1, 0), (2, 7)]));
    }
}
