//! The topics and partitions that this relay writes to: their deduplication state, and what the checkpoint stores of
//! it.

use std::collections::{BTreeMap, HashMap, VecDeque};

use outbox::Position;
use pg_replication::EndLsn;
use serde::{Deserialize, Serialize};

use crate::progress::fingerprints::FoundRecords;
use crate::progress::ledger::EntryId;
use crate::progress::partition_dedup::PartitionDedup;
use crate::routing::mapping::RoutingHistory;
use crate::topics::settings::TopicSettings;

/// The checkpoint's data about partitions: topic -> partition number -> scan start.
pub type Offsets = BTreeMap<String, BTreeMap<i32, ScanStart>>;

/// Where a scan of a partition starts, and how to verify that the records before it still exist.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ScanStart {
    /// The offset at which a scan starts: every record before it is confirmed, or of another producer.
    pub search: i64,
    /// This relay's last record before that offset.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last: Option<LastRecord>,
}

/// A record that Kafka acknowledged. If another record is found at its offset, Kafka has lost records, or the topic was
/// recreated. Offsets alone would not show this once the partition has grown again, and a topic's id would not show a
/// truncated partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LastRecord {
    /// The record's offset.
    pub offset: i64,
    /// The timeline of its transaction.
    pub timeline: u32,
    /// The commit LSN of its transaction, the middle part of the position.
    pub commit: u64,
    /// The index in the transaction, which can have many records in a partition. Checkpoints of early versions lack it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub index: Option<u64>,
}

impl LastRecord {
    /// The record at `position` was acknowledged at `offset`.
    pub fn new(position: Position, offset: i64) -> LastRecord {
        let Position { timeline, commit_lsn: commit, index } = position;
        LastRecord { offset, timeline, commit, index: Some(index) }
    }

    /// Whether this is the record at `position`.
    pub fn is_at(&self, position: Position) -> bool {
        let same_transaction = position.timeline == self.timeline && position.commit_lsn == self.commit;
        same_transaction && self.index.is_none_or(|index| index == position.index)
    }
}

/// Index of a partition among all that this process knows. It is attached to each record in flight.
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
    dedup: PartitionDedup,
    /// The scan start as of the confirmed prefix.
    start: ScanStart,
    /// Records that are acknowledged but not yet in the confirmed prefix, the last of each ledger entry. After a crash
    /// their rows would be replayed, and the scan must then find the records.
    unconfirmed: VecDeque<(EntryId, LastRecord)>,
    /// The partition in Kafka was compared with the checkpoint.
    verified: bool,
    /// The records of this outbox that the last scan found. Only rows at or below the high-water mark are compared with
    /// them.
    found: FoundRecords,
}

/// A partition to compare with the checkpoint.
#[derive(Clone, Debug)]
pub struct ToVerify {
    /// The partition.
    pub id: PartitionId,
    /// Its number in the topic.
    pub number: i32,
    /// The start of its scan, and the last record that must exist.
    pub start: ScanStart,
}

/// See the module documentation.
#[derive(Default)]
pub struct Partitions {
    topics: Vec<Topic>,
    by_name: HashMap<String, usize>,
    partitions: Vec<Partition>,
}

impl Partitions {
    /// The partitions that the checkpoint knows.
    pub fn from_checkpoint(mappings: &RoutingHistory, offsets: &Offsets) -> Self {
        let mut partitions = Partitions::default();
        let none = BTreeMap::new();
        for (name, count) in mappings.topics() {
            partitions.add(name, count, offsets.get(name).unwrap_or(&none));
        }
        partitions
    }

    /// Adds a topic, or those of its partitions that are not known yet. A partition that is not in `starts` is scanned
    /// from its beginning.
    pub fn add(&mut self, name: &str, count: i32, starts: &BTreeMap<i32, ScanStart>) {
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
            let start = starts.get(&number).cloned().unwrap_or_default();
            let dedup = PartitionDedup::new(start.search);
            topic.partitions.push(id);
            self.partitions.push(Partition {
                topic: index,
                number,
                dedup,
                start,
                unconfirmed: VecDeque::new(),
                verified: false,
                found: FoundRecords::default(),
            });
        }
    }

    /// The partition with this topic and number.
    pub fn id(&self, topic: &str, number: i32) -> Option<PartitionId> {
        let number = usize::try_from(number).ok()?;
        self.topic(topic)?.partitions.get(number).copied()
    }

    /// The number of known partitions of a topic.
    pub fn count(&self, topic: &str) -> usize {
        self.topic(topic).map_or(0, |topic| topic.partitions.len())
    }

    /// Topic and partition number.
    pub fn name_of(&self, id: PartitionId) -> Option<(&str, i32)> {
        let partition = self.partitions.get(id.0 as usize)?;
        Some((&self.topics.get(partition.topic)?.name, partition.number))
    }

    /// The deduplication state of a partition.
    pub fn dedup(&mut self, id: PartitionId) -> Option<&mut PartitionDedup> {
        self.partitions.get_mut(id.0 as usize).map(|partition| &mut partition.dedup)
    }

    /// Stores the records of this outbox that a scan of a partition found.
    pub fn set_found(&mut self, id: PartitionId, found: FoundRecords) {
        if let Some(partition) = self.partitions.get_mut(id.0 as usize) {
            partition.found = found;
        }
    }

    /// Whether a partition lacks a row at or below its high-water mark.
    pub fn lacks(&self, id: PartitionId, position: Position, fingerprint: u64) -> bool {
        let Some(partition) = self.partitions.get(id.0 as usize) else { return false };
        let settings = self.topics.get(partition.topic).and_then(|topic| topic.settings.as_ref());
        partition.found.lacks(position, fingerprint, settings.map(|settings| settings.compacted))
    }

    /// The settings of a topic, if known.
    pub fn settings(&self, topic: &str) -> Option<&TopicSettings> {
        self.topic(topic)?.settings.as_ref()
    }

    /// Stores the settings of a topic.
    pub fn set_settings(&mut self, topic: &str, settings: Option<TopicSettings>) {
        let index = self.by_name.get(topic).copied();
        if let Some(topic) = index.and_then(|index| self.topics.get_mut(index)) {
            topic.settings = settings;
        }
    }

    /// Whether records may be sent to the partition.
    pub fn is_verified(&self, id: PartitionId) -> bool {
        self.partitions.get(id.0 as usize).is_some_and(|partition| partition.verified)
    }

    /// The partition matches the checkpoint, and its scan starts at offset `search`.
    pub fn mark_verified(&mut self, id: PartitionId, search: i64) {
        let Some(partition) = self.partitions.get_mut(id.0 as usize) else { return };
        if !std::mem::replace(&mut partition.verified, true) && search < partition.start.search {
            partition.start.search = search;
            partition.dedup = PartitionDedup::new(search);
        }
    }

    /// Whether records may be sent to every partition.
    pub fn all_verified(&self) -> bool {
        self.partitions.iter().all(|partition| partition.verified)
    }

    /// Stops sending to a topic until it is verified again.
    pub fn invalidate(&mut self, topic: &str) {
        let ids = self.topic(topic).map(|topic| topic.partitions.clone()).unwrap_or_default();
        for id in ids {
            if let Some(partition) = self.partitions.get_mut(id.0 as usize) {
                partition.verified = false;
            }
        }
    }

    /// What to verify about a topic: for each partition the last acknowledged record, confirmed or not.
    pub fn to_verify(&self, topic: &str) -> Vec<ToVerify> {
        let ids = self.topic(topic).map_or(&[][..], |topic| &topic.partitions).iter();
        ids.filter_map(|id| {
            let partition = self.partitions.get(id.0 as usize)?;
            let mut start = partition.start.clone();
            start.last = partition.unconfirmed.back().map(|(_, last)| *last).or(start.last);
            Some(ToVerify { id: *id, number: partition.number, start })
        })
        .collect()
    }

    /// The record at `position`, of ledger entry `entry`, was acknowledged at `offset`.
    pub fn on_acknowledged(&mut self, id: PartitionId, entry: EntryId, position: Position, offset: i64) {
        let Some(partition) = self.partitions.get_mut(id.0 as usize) else { return };
        let record = LastRecord::new(position, offset);
        match partition.unconfirmed.back_mut() {
            Some((last, known)) if *last == entry => *known = record,
            _ => partition.unconfirmed.push_back((entry, record)),
        }
    }

    /// What to store with a checkpoint at `confirmed`. `first_unconfirmed` is the oldest ledger entry after it.
    pub fn take_offsets(&mut self, first_unconfirmed: EntryId, confirmed: EndLsn) -> Offsets {
        let mut offsets = Offsets::new();
        for partition in &mut self.partitions {
            let is_confirmed = |(entry, _): &mut (EntryId, LastRecord)| *entry < first_unconfirmed;
            while let Some((_, last)) = partition.unconfirmed.pop_front_if(is_confirmed) {
                let search = partition.start.search.max(last.offset + 1);
                partition.start = ScanStart { search, last: Some(last) };
            }
            let topic = self.topics.get(partition.topic).map(|topic| topic.name.clone()).unwrap_or_default();
            let mut start = partition.start.clone();
            let retained = partition.dedup.retain_from(confirmed);
            start.search = retained.map_or(start.search, |from| from.min(start.search));
            offsets.entry(topic).or_default().insert(partition.number, start);
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
    fn scan_starts_advance_only_with_the_confirmed_prefix() {
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
        assert_eq!(partitions.to_verify("t")[0].start.last.unwrap().offset, 12, "but it must exist");
        assert_eq!(partitions.take_offsets(3, EndLsn::ZERO)["t"][&0].search, 13);
    }

    #[test]
    fn a_last_record_stored_by_an_early_version_has_no_index() {
        let stored = r#"{"search": 12, "last": {"offset": 11, "timeline": 1, "commit": 100}}"#;
        let start: ScanStart = serde_json::from_str(stored).unwrap();
        let at = |commit_lsn, index| Position { timeline: 1, commit_lsn, index };
        assert!(start.last.unwrap().is_at(at(100, 7)) && !start.last.unwrap().is_at(at(101, 7)));
        let record = LastRecord::new(at(100, 7), 11);
        assert!(record.is_at(at(100, 7)) && !record.is_at(at(100, 6)));
    }

    #[test]
    fn partitions_are_restored_from_the_checkpoint_and_a_topic_can_grow() {
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
        assert_eq!(
            partitions.take_offsets(0, EndLsn::ZERO)["b"][&0],
            at(0),
            "a known partition keeps its scan start"
        );
        assert_eq!(partitions.take_offsets(0, EndLsn::ZERO)["b"][&3], at(4));
        assert_eq!(partitions.id("b", 4), Some(PartitionId(4)));
        assert_eq!(partitions.name_of(PartitionId(4)), Some(("b", 4)));
    }
}
