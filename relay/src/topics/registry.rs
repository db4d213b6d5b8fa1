//! The one registry of the topics and partitions that this relay writes to. Names are resolved to ids here; everything
//! else is asked by id.
//!
//! A topic or partition is never removed, so an id is a proof: a look-up by id always finds it. An id of another registry
//! is a bug, and panics.

use std::collections::{BTreeMap, HashMap};
use std::fmt;

use outbox::Position;
use pg_replication::EndLsn;

use crate::progress::fingerprints::Fingerprint;
use crate::progress::ledger::EntryId;
use crate::progress::offset::Offset;
use crate::topics::kafka_time::KafkaTime;
use crate::topics::partitions::{Partition, PartitionId, PartitionNumber, ScanStart, ScanStarts, ToVerify};
use crate::topics::settings::Settings;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TopicId(u32);

/// What is known of a topic, besides its partitions.
pub struct Topic {
    pub name: String,
    /// What this session knows of its settings.
    pub settings: Settings,
    /// The broker refused a timestamp that the settings allow. Records get the current time.
    pub timestamps_refused: bool,
    partitions: Vec<PartitionId>,
}

impl Topic {
    /// The number of known partitions.
    pub fn partition_count(&self) -> usize {
        self.partitions.len()
    }

    /// The number of replicas that must have a record before it is acknowledged, if known.
    pub fn min_in_sync_replicas(&self) -> Option<usize> {
        self.settings.known().and_then(|settings| settings.min_in_sync_replicas)
    }

    /// Whether a record may have this timestamp.
    pub fn accepts_timestamp(&self, timestamp: KafkaTime, now: KafkaTime) -> bool {
        let settings = self.settings.known().unwrap_or_default();
        let outside_limits = settings.is_too_old(timestamp, now) || settings.is_too_new(timestamp, now);
        // Kafka has no timestamps before 1970, and librdkafka treats 0 as no timestamp.
        timestamp > KafkaTime(0) && !outside_limits && !self.timestamps_refused
    }
}

/// The name of a partition, for messages and for Kafka.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PartitionName<'a> {
    pub topic: &'a str,
    pub number: PartitionNumber,
}

impl fmt::Display for PartitionName<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.topic, self.number)
    }
}

/// A topic has fewer partitions than the routing has. It indicates a bug, not an external fault.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("topic {topic} has no partition {number}")]
pub struct NoPartition {
    topic: String,
    number: PartitionNumber,
}

#[derive(Default)]
pub struct TopicRegistry {
    topics: Vec<Topic>,
    by_name: HashMap<String, TopicId>,
    partitions: Vec<Partition>,
    /// The number of acknowledged records that the partitions store because no checkpoint counts them.
    unconfirmed: usize,
}

impl TopicRegistry {
    /// The topics with their numbers of partitions, and what the checkpoint knows of the partitions.
    pub fn new<'a>(topics: impl IntoIterator<Item = (&'a str, i32)>, starts: &ScanStarts) -> Self {
        let mut registry = TopicRegistry::default();
        let none = BTreeMap::new();
        for (name, count) in topics {
            registry.add(name, count, starts.get(name).unwrap_or(&none));
        }
        registry
    }

    /// Adds a topic, or those of its partitions that are not known yet. A partition that is not in `starts` is scanned
    /// from its beginning.
    pub fn add(&mut self, name: &str, count: i32, starts: &BTreeMap<PartitionNumber, ScanStart>) -> TopicId {
        let id = self.find(name).unwrap_or_else(|| self.add_topic(name));
        let known = i32::try_from(self.topic(id).partition_count()).unwrap_or(i32::MAX);
        for number in (known..count).map(PartitionNumber) {
            let partition = PartitionId(u32::try_from(self.partitions.len()).unwrap_or(u32::MAX));
            let start = starts.get(&number).cloned().unwrap_or_default();
            self.partitions.push(Partition::new(id, number, start));
            self.topic_mut(id).partitions.push(partition);
        }
        id
    }

    fn add_topic(&mut self, name: &str) -> TopicId {
        let id = TopicId(u32::try_from(self.topics.len()).unwrap_or(u32::MAX));
        self.topics.push(Topic {
            name: name.to_owned(),
            settings: Settings::Unread,
            timestamps_refused: false,
            partitions: Vec::new(),
        });
        self.by_name.insert(name.to_owned(), id);
        id
    }

    /// The topic of this name, if the relay writes to it.
    pub fn find(&self, name: &str) -> Option<TopicId> {
        self.by_name.get(name).copied()
    }

    pub fn topic(&self, id: TopicId) -> &Topic {
        topic_in(&self.topics, id)
    }

    #[expect(clippy::indexing_slicing, reason = "an id is a proof: see the module documentation")]
    pub fn topic_mut(&mut self, id: TopicId) -> &mut Topic {
        &mut self.topics[id.0 as usize]
    }

    pub fn partition_at(&self, topic: TopicId, number: PartitionNumber) -> Result<PartitionId, NoPartition> {
        let topic = self.topic(topic);
        let id = usize::try_from(number.0).ok().and_then(|index| topic.partitions.get(index));
        id.copied().ok_or_else(|| NoPartition { topic: topic.name.clone(), number })
    }

    #[expect(clippy::indexing_slicing, reason = "an id is a proof: see the module documentation")]
    pub fn partition(&self, id: PartitionId) -> &Partition {
        &self.partitions[id.0 as usize]
    }

    #[expect(clippy::indexing_slicing, reason = "an id is a proof: see the module documentation")]
    pub fn partition_mut(&mut self, id: PartitionId) -> &mut Partition {
        &mut self.partitions[id.0 as usize]
    }

    pub fn topic_of(&self, id: PartitionId) -> &Topic {
        self.topic(self.partition(id).topic)
    }

    pub fn name_of(&self, id: PartitionId) -> PartitionName<'_> {
        let partition = self.partition(id);
        PartitionName { topic: &self.topic(partition.topic).name, number: partition.number }
    }

    /// Whether a partition lacks a row at or below its high-water mark.
    pub fn lacks(&self, id: PartitionId, position: Position, fingerprint: Fingerprint) -> bool {
        let compacted = self.topic_of(id).settings.known().map(|settings| settings.compacted);
        let found = self.partition(id).found.as_ref();
        found.is_some_and(|found| found.lacks(position, fingerprint, compacted))
    }

    /// Whether records may be sent to every partition.
    pub fn all_verified(&self) -> bool {
        self.partitions.iter().all(Partition::is_verified)
    }

    /// Stops sending to a topic until it is verified again. It may be recreated with other settings.
    pub fn invalidate(&mut self, topic: TopicId) {
        self.topic_mut(topic).settings = Settings::Unread;
        self.partitions
            .iter_mut()
            .filter(|partition| partition.topic == topic)
            .for_each(Partition::invalidate);
    }

    pub fn to_verify(&self, topic: TopicId) -> Vec<ToVerify> {
        let ids = self.topic(topic).partitions.iter();
        ids.map(|id| self.partition(*id).to_verify(*id)).collect()
    }

    /// The record at `position`, of ledger entry `entry`, was acknowledged at `offset` of a partition.
    pub fn on_acknowledged(&mut self, id: PartitionId, entry: EntryId, position: Position, offset: Offset) {
        let partition = self.partition_mut(id);
        let before = partition.unconfirmed_count();
        partition.on_acknowledged(entry, position, offset);
        self.unconfirmed += self.partition(id).unconfirmed_count() - before;
    }

    /// The number of acknowledged records that are stored until a checkpoint counts them: one for each transaction and
    /// partition.
    pub fn unconfirmed_count(&self) -> usize {
        self.unconfirmed
    }

    /// Moves the scan starts to a checkpoint at `confirmed`, and returns what to store with it. `first_unacknowledged` is the
    /// oldest ledger entry after it.
    pub fn advance_scan_starts(&mut self, first_unacknowledged: EntryId, confirmed: EndLsn) -> ScanStarts {
        let mut starts = ScanStarts::new();
        self.unconfirmed = 0;
        for partition in &mut self.partitions {
            let start = partition.advance_scan_start(first_unacknowledged, confirmed);
            self.unconfirmed += partition.unconfirmed_count();
            let topic = topic_in(&self.topics, partition.topic);
            starts.entry(topic.name.clone()).or_default().insert(partition.number, start);
        }
        starts
    }
}

#[expect(clippy::indexing_slicing, reason = "an id is a proof: see the module documentation")]
fn topic_in(topics: &[Topic], id: TopicId) -> &Topic {
    &topics[id.0 as usize]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::topics::partitions::LastRecord;

    const ZERO: PartitionNumber = PartitionNumber(0);

    fn at(offset: i64) -> ScanStart {
        ScanStart { offset: Offset(offset), last: None }
    }

    #[test]
    fn scan_starts_advance_only_with_the_acknowledged_prefix() {
        let mut topics = TopicRegistry::default();
        let topic = topics.add("t", 1, &BTreeMap::from([(ZERO, at(10))]));
        let id = topics.partition_at(topic, ZERO).unwrap();
        for (entry, offset) in [(0, 10), (0, 11), (2, 12)] {
            let position = Position { timeline: 1, commit_lsn: 100 + entry, index: 4 };
            topics.on_acknowledged(id, EntryId(entry), position, Offset(offset));
        }
        assert_eq!(topics.unconfirmed_count(), 2, "the last record of each entry");
        assert_eq!(
            topics.advance_scan_starts(EntryId(0), EndLsn::ZERO)["t"][&ZERO],
            at(10),
            "entry 0 is not confirmed"
        );
        let last = Some(LastRecord { offset: Offset(11), timeline: 1, commit: 100, index: Some(4) });
        assert_eq!(
            topics.advance_scan_starts(EntryId(1), EndLsn::ZERO)["t"][&ZERO],
            ScanStart { offset: Offset(12), last }
        );
        assert_eq!(topics.unconfirmed_count(), 1);
        assert_eq!(
            topics.advance_scan_starts(EntryId(2), EndLsn::ZERO)["t"][&ZERO].offset,
            Offset(12),
            "entry 2 would be read again and must be found"
        );
        assert_eq!(topics.to_verify(topic)[0].start.last.unwrap().offset, Offset(12), "but it must exist");
        assert_eq!(topics.advance_scan_starts(EntryId(3), EndLsn::ZERO)["t"][&ZERO].offset, Offset(13));
    }

    #[test]
    fn partitions_are_restored_from_the_checkpoint_and_a_topic_can_grow() {
        let offsets = ScanStarts::from([("b".into(), BTreeMap::from([(PartitionNumber(2), at(7))]))]);
        let mut topics = TopicRegistry::new([("b", 3)], &offsets);
        assert_eq!(
            topics.advance_scan_starts(EntryId(0), EndLsn::ZERO)["b"],
            [(0, at(0)), (1, at(0)), (2, at(7))]
                .map(|(number, start)| (PartitionNumber(number), start))
                .into()
        );
        let topic = topics.add("b", 5, &BTreeMap::from([(ZERO, at(99)), (PartitionNumber(3), at(4))]));
        assert_eq!(topics.find("b"), Some(topic));
        assert_eq!(
            topics.advance_scan_starts(EntryId(0), EndLsn::ZERO)["b"][&ZERO],
            at(0),
            "a known partition keeps its scan start"
        );
        assert_eq!(topics.advance_scan_starts(EntryId(0), EndLsn::ZERO)["b"][&PartitionNumber(3)], at(4));
        assert_eq!(topics.partition_at(topic, PartitionNumber(4)), Ok(PartitionId(4)));
        assert_eq!(topics.name_of(PartitionId(4)).to_string(), "b/4");
        assert_eq!(
            topics.partition_at(topic, PartitionNumber(5)).unwrap_err().to_string(),
            "topic b has no partition 5"
        );
    }
}
