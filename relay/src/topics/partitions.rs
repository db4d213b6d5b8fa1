//! The topics and partitions this relay writes to: their high marks, and what the checkpoint keeps of them.

use std::collections::{BTreeMap, HashMap, VecDeque};

use outbox::Position;
use pg_replication::EndLsn;
use serde::{Deserialize, Serialize};

use crate::progress::fingerprints::FoundRecords;
use crate::progress::ledger::EntryId;
use crate::progress::partition_dedup::PartitionDedup;
use crate::routing::mapping::RoutingHistory;
use crate::topics::settings::TopicSettings;

/// topic -> partition -> what is stored of it.
pub type Offsets = BTreeMap<String, BTreeMap<i32, ScanStart>>;

/// The part of a partition that no search needs to read, and how to see that it is still there.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ScanStart {
    /// Where a search for our records starts: everything before it is confirmed or somebody else's.
    pub search: i64,
    /// Our last record before it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last: Option<LastRecord>,
}

/// A record of ours that Kafka acknowledged. If another is found in its place, Kafka has lost records, or the topic
/// is another one under the same name: offsets alone would not show it once it has grown again, and a topic's id
/// would not show a partition that was cut off.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LastRecord {
    /// Its offset.
    pub offset: i64,
    /// Timeline of its transaction.
    pub timeline: u32,
    /// Where its transaction's commit record begins: the middle part of its position.
    pub commit: u64,
    /// Its index in the transaction: a transaction can have many records in a partition. Checkpoints of early versions do
    /// not have it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub index: Option<u64>,
}

impl LastRecord {
    /// The record at `position` was acknowledged at `offset`.
    pub fn new(position: Position, offset: i64) -> LastRecord {
        let Position { timeline, commit_lsn: commit, index } = position;
        LastRecord { offset, timeline, commit, index: Some(index) }
    }

    /// Whether it is the record at `position`.
    pub fn is_at(&self, position: Position) -> bool {
        let of_transaction = position.timeline == self.timeline && position.commit_lsn == self.commit;
        of_transaction && self.index.is_none_or(|index| index == position.index)
    }
}

/// Index of a partition among all this process knows. It travels with each record in flight.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct PartitionId(pub u32);

#[derive(Default)]
struct Topic {
    name: String,
    partitions: Vec<PartitionId>,
    settings: Option<TopicSettings>,
}

struct Partition {
    topic: usize,
    number: i32,
    mark: PartitionDedup,
    /// As of the confirmed prefix.
    floor: ScanStart,
    /// Records acknowledged and not yet in the confirmed prefix, the last of each entry. They would be replayed
    /// after a crash, and must then be found by the search.
    ahead: VecDeque<(EntryId, LastRecord)>,
    /// What Kafka holds of it was compared with what is remembered.
    inspected: bool,
    /// Which records of ours were found in what was read of it last: only rows at or below the high mark are looked up.
    found: FoundRecords,
}

/// A partition to be compared with what is remembered of it.
#[derive(Clone, Debug)]
pub struct ToVerify {
    /// Which.
    pub id: PartitionId,
    /// Its number.
    pub number: i32,
    /// What is remembered.
    pub floor: ScanStart,
}

/// See the module's text.
#[derive(Default)]
pub struct Partitions {
    topics: Vec<Topic>,
    by_name: HashMap<String, usize>,
    partitions: Vec<Partition>,
}

impl Partitions {
    /// What the checkpoint knows.
    pub fn from_checkpoint(mappings: &RoutingHistory, offsets: &Offsets) -> Self {
        let mut partitions = Partitions::default();
        let none = BTreeMap::new();
        for (name, count) in mappings.topics() {
            partitions.add(name, count, offsets.get(name).unwrap_or(&none));
        }
        partitions
    }

    /// Adds a topic, or those of its partitions that are not known yet. One without a floor is searched from its
    /// beginning.
    pub fn add(&mut self, name: &str, count: i32, floors: &BTreeMap<i32, ScanStart>) {
        let index = match self.by_name.get(name) {
            Some(index) => *index,
            None => {
                self.topics.push(Topic { name: name.to_owned(), ..Topic::default() });
                self.by_name.insert(name.to_owned(), self.topics.len() - 1);
                self.topics.len() - 1
            }
        };
        let Some(topic) = self.topics.get_mut(index) else { return };
        for number in topic.partitions.len()..usize::try_from(count).unwrap_or(0) {
            let id = PartitionId(u32::try_from(self.partitions.len()).unwrap_or(u32::MAX));
            let number = i32::try_from(number).unwrap_or(i32::MAX);
            let floor = floors.get(&number).cloned().unwrap_or_default();
            let mark = PartitionDedup::new(floor.search);
            topic.partitions.push(id);
            self.partitions.push(Partition {
                topic: index,
                number,
                mark,
                floor,
                ahead: VecDeque::new(),
                inspected: false,
                found: FoundRecords::default(),
            });
        }
    }

    /// The partition of that topic and number.
    pub fn id(&self, topic: &str, number: i32) -> Option<PartitionId> {
        let number = usize::try_from(number).ok()?;
        self.topic(topic)?.partitions.get(number).copied()
    }

    /// How many partitions of a topic are known.
    pub fn count(&self, topic: &str) -> usize {
        self.topic(topic).map_or(0, |topic| topic.partitions.len())
    }

    /// Topic and partition number.
    pub fn name_of(&self, id: PartitionId) -> Option<(&str, i32)> {
        let partition = self.partitions.get(id.0 as usize)?;
        Some((&self.topics.get(partition.topic)?.name, partition.number))
    }

    /// The high mark of a partition.
    pub fn dedup(&mut self, id: PartitionId) -> Option<&mut PartitionDedup> {
        self.partitions.get_mut(id.0 as usize).map(|partition| &mut partition.mark)
    }

    /// Records of ours were found in a partition.
    pub fn set_found(&mut self, id: PartitionId, found: FoundRecords) {
        if let Some(partition) = self.partitions.get_mut(id.0 as usize) {
            partition.found = found;
        }
    }

    /// Whether a partition lacks a row that lies at or below its high mark.
    pub fn lacks(&self, id: PartitionId, position: Position, fingerprint: u64) -> bool {
        let Some(partition) = self.partitions.get(id.0 as usize) else { return false };
        let settings = self.topics.get(partition.topic).and_then(|topic| topic.settings.as_ref());
        partition.found.lacks(position, fingerprint, settings.map(|settings| settings.compacted))
    }

    /// The settings of a topic, where they are known.
    pub fn settings(&self, topic: &str) -> Option<&TopicSettings> {
        self.topic(topic)?.settings.as_ref()
    }

    /// Takes in the settings of a topic.
    pub fn set_settings(&mut self, topic: &str, settings: Option<TopicSettings>) {
        let index = self.by_name.get(topic).copied();
        if let Some(topic) = index.and_then(|index| self.topics.get_mut(index)) {
            topic.settings = settings;
        }
    }

    /// Whether the partition may get records.
    pub fn is_verified(&self, id: PartitionId) -> bool {
        self.partitions.get(id.0 as usize).is_some_and(|partition| partition.inspected)
    }

    /// The partition is what is remembered, and is searched from offset `search`.
    pub fn mark_verified(&mut self, id: PartitionId, search: i64) {
        let Some(partition) = self.partitions.get_mut(id.0 as usize) else { return };
        if !std::mem::replace(&mut partition.inspected, true) && search < partition.floor.search {
            partition.floor.search = search;
            partition.mark = PartitionDedup::new(search);
        }
    }

    /// Whether every partition may get records.
    pub fn all_verified(&self) -> bool {
        self.partitions.iter().all(|partition| partition.inspected)
    }

    /// Lets a topic get nothing more until it was inspected.
    pub fn invalidate(&mut self, topic: &str) {
        let ids = self.topic(topic).map(|topic| topic.partitions.clone()).unwrap_or_default();
        for id in ids {
            if let Some(partition) = self.partitions.get_mut(id.0 as usize) {
                partition.inspected = false;
            }
        }
    }

    /// What to compare a topic with: for each partition the last record that was acknowledged, confirmed or not.
    pub fn to_verify(&self, topic: &str) -> Vec<ToVerify> {
        let ids = self.topic(topic).map_or(&[][..], |topic| &topic.partitions).iter();
        ids.filter_map(|id| {
            let partition = self.partitions.get(id.0 as usize)?;
            let mut floor = partition.floor.clone();
            floor.last = partition.ahead.back().map(|(_, last)| *last).or(floor.last);
            Some(ToVerify { id: *id, number: partition.number, floor })
        })
        .collect()
    }

    /// The record at `position`, of ledger entry `entry`, was acknowledged at `offset`.
    pub fn on_acknowledged(&mut self, id: PartitionId, entry: EntryId, position: Position, offset: i64) {
        let Some(partition) = self.partitions.get_mut(id.0 as usize) else { return };
        let evidence = LastRecord::new(position, offset);
        match partition.ahead.back_mut() {
            Some((last, seen)) if *last == entry => *seen = evidence,
            _ => partition.ahead.push_back((entry, evidence)),
        }
    }

    /// What to store with a checkpoint that says `confirmed`: `first_unconfirmed` is the oldest entry not confirmed by it.
    pub fn take_offsets(&mut self, first_unconfirmed: EntryId, confirmed: EndLsn) -> Offsets {
        let mut offsets = Offsets::new();
        for partition in &mut self.partitions {
            while let Some((_, last)) = partition.ahead.pop_front_if(|(entry, _)| *entry < first_unconfirmed)
            {
                let search = partition.floor.search.max(last.offset + 1);
                partition.floor = ScanStart { search, last: Some(last) };
            }
            let topic = self.topics.get(partition.topic).map(|topic| topic.name.clone()).unwrap_or_default();
            let mut floor = partition.floor.clone();
            let held = partition.mark.retain_from(confirmed);
            floor.search = held.map_or(floor.search, |from| from.min(floor.search));
            offsets.entry(topic).or_default().insert(partition.number, floor);
        }
        offsets
    }

    fn topic(&self, name: &str) -> Option<&Topic> {
        self.topics.get(*self.by_name.get(name)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::routing::mapping::TopicShape;
    use crate::routing::rule::Rule;

    fn at(search: i64) -> ScanStart {
        ScanStart { search, last: None }
    }

    #[test]
    fn floors_move_only_with_the_confirmed_prefix() {
        let mut partitions = Partitions::default();
        partitions.add("t", 1, &BTreeMap::from([(0, at(10))]));
        let id = partitions.id("t", 0).unwrap();
        for (entry, offset) in [(0, 10), (0, 11), (2, 12)] {
            let position = Position { timeline: 1, commit_lsn: 100 + entry, index: 4 };
            partitions.on_acknowledged(id, entry, position, offset);
        }
        assert_eq!(partitions.take_offsets(0, EndLsn::ZERO)["t"][&0], at(10), "entry 0 is not confirmed");
        let last = Some(LastRecord { offset: 11, timeline: 1, commit: 100, index: Some(4) });
        assert_eq!(partitions.take_offsets(1, EndLsn::ZERO)["t"][&0], ScanStart { search: 12, last });
        assert_eq!(
            partitions.take_offsets(2, EndLsn::ZERO)["t"][&0].search,
            12,
            "entry 2 would be replayed and must be found"
        );
        assert_eq!(partitions.to_verify("t")[0].floor.last.unwrap().offset, 12, "but it has to be there");
        assert_eq!(partitions.take_offsets(3, EndLsn::ZERO)["t"][&0].search, 13);
    }

    #[test]
    fn evidence_of_an_early_version_has_no_index() {
        let stored = r#"{"search": 12, "last": {"offset": 11, "timeline": 1, "commit": 100}}"#;
        let floor: ScanStart = serde_json::from_str(stored).unwrap();
        let at = |commit_lsn, index| Position { timeline: 1, commit_lsn, index };
        assert!(floor.last.unwrap().is_at(at(100, 7)) && !floor.last.unwrap().is_at(at(101, 7)));
        let evidence = LastRecord::new(at(100, 7), 11);
        assert!(evidence.is_at(at(100, 7)) && !evidence.is_at(at(100, 6)));
    }

    #[test]
    fn what_the_checkpoint_knew_is_restored_and_a_topic_can_grow() {
        let routing = crate::config::Routing::default();
        let rule = Rule { routing, max_message_bytes: 1000, dead_letter_topic: None };
        let mut mappings = RoutingHistory::first(rule);
        let shape = TopicShape { partitions: 3, max_message_bytes: None, compacted: false };
        mappings.current.topics.insert("b".into(), shape);
        let offsets = Offsets::from([("b".into(), BTreeMap::from([(2, at(7))]))]);
        let mut partitions = Partitions::from_checkpoint(&mappings, &offsets);
        assert_eq!(
            partitions.take_offsets(0, EndLsn::ZERO)["b"],
            BTreeMap::from([(0, at(0)), (1, at(0)), (2, at(7))])
        );
        partitions.add("b", 5, &BTreeMap::from([(0, at(99)), (3, at(4))]));
        assert_eq!(partitions.take_offsets(0, EndLsn::ZERO)["b"][&0], at(0), "what is known stays");
        assert_eq!(partitions.take_offsets(0, EndLsn::ZERO)["b"][&3], at(4));
        assert_eq!(partitions.id("b", 4), Some(PartitionId(4)));
        assert_eq!(partitions.name_of(PartitionId(4)), Some(("b", 4)));
    }
}
