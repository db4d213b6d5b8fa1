//! Kafka in memory, with the rules that matter to delivery.
//!
//! It refuses records, temporarily or permanently. If a broker has state of the producer, it refuses the records after
//! a refused one, too; if it has none, it appends them with any sequence number. librdkafka then reports the refused
//! record as delivered, without an offset.

use std::cell::RefCell;
use std::collections::{BTreeMap, VecDeque};
use std::rc::Rc;

use outbox::Position;
use pg_replication::CommitLsn;
use rdkafka::Timestamp;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{OwnedHeaders, OwnedMessage};

use crate::delivery::{Broker, ProducerReports};
use crate::kafka::diagnosis::Diagnosis;
use crate::kafka::evidence::{DeliveredEvents, Ends, MAX_EVENTS};
use crate::kafka::own_records::OwnRecords;
use crate::kafka::producers::{Ack, ProducerRecord, Tag};
use crate::kafka::query::{Query, QueryResult};
use crate::kafka::scan::{Scan, Scope};
use crate::kafka::scanner::{FoundTopic, QueryError, Reachability};
use crate::kafka::verify::{RecordAt, check_same_partition};
use crate::progress::offset::{Offset, OffsetRange};
use crate::progress::partition_dedup::OffsetGap;
use crate::topics::partitions::{PartitionNumber, ScanStart, ScanStarts, ToVerify};
use crate::topics::settings::TopicSettings;
use crate::topics::watch::TopicState;

/// A topic and the number of a partition.
pub(super) type Name = (String, PartitionNumber);

/// Records sent without waiting for the acknowledgement of an earlier one.
const REQUESTS_IN_FLIGHT: usize = 4;

#[derive(Clone, Default)]
pub(in crate::delivery) struct MemoryKafka(Rc<RefCell<Kafka>>);

#[derive(Default)]
struct Kafka {
    partitions: BTreeMap<Name, Partition>,
    /// The number of partitions of every topic.
    partition_count: i32,
    settings: TopicSettings,
    settings_queries: usize,
    /// `None` before the first session.
    own: Option<OwnRecords>,
    /// Acknowledgements that have arrived.
    arrived: Vec<Ack>,
    answers: Vec<Answer>,
    /// Gaps that were found after the probe of this session.
    later_gaps: Vec<(Name, OffsetGap)>,
}

/// Computed when it is given, from what Kafka holds then.
type Answer = Box<dyn FnOnce(&mut Kafka) -> Option<QueryResult>>;

#[derive(Default)]
struct Partition {
    log: Vec<OwnedMessage>,
    /// The position of each record in the log; `None` for a record of another producer.
    positions: Vec<Option<Position>>,
    /// Sent and not appended.
    sent: VecDeque<(Record, Tag)>,
    /// Outcomes that have not arrived.
    outcomes: VecDeque<Ack>,
    /// Sent by a process that is dead, and not appended.
    late: VecDeque<Record>,
    knows_producer: bool,
    /// The offsets that the session knows: from the end of its scan or its first record, to its last record.
    seen: Option<OffsetRange>,
}

struct Record {
    key: Option<Vec<u8>>,
    value: Option<Vec<u8>>,
    headers: Option<OwnedHeaders>,
    timestamp: i64,
}

impl Broker for MemoryKafka {
    fn produce(&self, record: ProducerRecord<'_>, tag: Tag) -> Result<(), KafkaError> {
        let name = (record.topic.to_owned(), record.partition);
        let record = Record {
            key: record.key.map(<[u8]>::to_vec),
            value: record.value.map(<[u8]>::to_vec),
            headers: Some(record.headers),
            timestamp: record.timestamp.0,
        };
        self.0.borrow_mut().partitions.entry(name).or_default().sent.push_back((record, tag));
        Ok(())
    }

    fn query(&self, query: Query<'_>) {
        self.0.borrow_mut().start(query);
    }

    fn take_reports(&self, acks: &mut Vec<Ack>) -> ProducerReports {
        acks.append(&mut self.0.borrow_mut().arrived);
        ProducerReports::default()
    }
}

/// What happens to Kafka.
impl MemoryKafka {
    pub(in crate::delivery) fn new(partition_count: i32) -> MemoryKafka {
        MemoryKafka(Rc::new(RefCell::new(Kafka { partition_count, ..Kafka::default() })))
    }

    /// A session begins, after [`MemoryKafka::end_session`] if it is not the first.
    pub(super) fn begin_session(&self, own: OwnRecords) {
        self.0.borrow_mut().own = Some(own);
    }

    /// The process is dead: what it sent may be appended late.
    pub(super) fn end_session(&self) {
        let mut kafka = self.0.borrow_mut();
        kafka.arrived.clear();
        kafka.answers.clear();
        kafka.later_gaps.clear();
        for partition in kafka.partitions.values_mut() {
            partition.late = partition.sent.drain(..).map(|(record, _)| record).collect();
            partition.outcomes.clear();
            partition.knows_producer = false;
            partition.seen = None;
        }
    }

    /// Appends the oldest record in flight to a partition.
    pub(super) fn append(&self, name: &Name) {
        self.0.borrow_mut().append(name);
    }

    /// Refuses the oldest record in flight, which librdkafka retries. Without state of the producer the broker appends
    /// the second record, and librdkafka infers that the first was delivered.
    pub(super) fn refuse_temporarily(&self, name: &Name) {
        let mut kafka = self.0.borrow_mut();
        let partition = kafka.partition(name);
        if !partition.knows_producer && partition.sent.len() >= 2 {
            partition.refuse(RDKafkaErrorCode::NoOffset);
            kafka.append(name);
        }
    }

    /// Refuses the oldest record in flight for good: its outcome arrives, after those before it.
    pub(super) fn refuse_permanently(&self, name: &Name) {
        let mut kafka = self.0.borrow_mut();
        let partition = kafka.partition(name);
        let knew_producer = partition.knows_producer;
        partition.refuse(RDKafkaErrorCode::TopicAuthorizationFailed);
        let outcomes: Vec<Ack> = partition.outcomes.drain(..).collect();
        kafka.arrived.extend(outcomes);
        if !knew_producer {
            (0..REQUESTS_IN_FLIGHT).for_each(|_| kafka.append(name));
        }
    }

    /// The oldest outcome of a partition arrives.
    pub(super) fn acknowledge(&self, name: &Name) {
        let mut kafka = self.0.borrow_mut();
        let partition = kafka.partition(name);
        let Some(ack) = partition.outcomes.pop_front() else { return };
        if let Ok(offset) = ack.outcome {
            partition.seen.get_or_insert(OffsetRange { from: offset, until: offset }).until = offset.next();
        }
        kafka.arrived.push(ack);
    }

    /// Brokers forget producers that have nothing in flight.
    pub(super) fn forget_idle_producers(&self) {
        for partition in self.0.borrow_mut().partitions.values_mut() {
            partition.knows_producer &= !(partition.sent.is_empty() && partition.outcomes.is_empty());
        }
    }

    /// Appends a record of a dead process, if there is one.
    pub(super) fn append_late(&self, name: &Name) -> bool {
        let mut kafka = self.0.borrow_mut();
        let late = kafka.partition(name).late.pop_front();
        late.map(|record| kafka.store(name, record)).is_some()
    }

    /// What a dead process sent to a partition is never appended.
    pub(super) fn drop_late(&self, name: &Name) {
        self.0.borrow_mut().partition(name).late.clear();
    }

    pub(super) fn change_settings(&self, change: impl FnOnce(&mut TopicSettings)) {
        change(&mut self.0.borrow_mut().settings);
    }

    /// Every topic gets one more partition.
    pub(super) fn add_partition(&self) {
        self.0.borrow_mut().partition_count += 1;
    }

    /// Another producer appends a record.
    pub(super) fn append_foreign(&self, name: &Name) {
        let record = Record { key: None, value: None, headers: None, timestamp: 0 };
        self.0.borrow_mut().store(name, record);
    }

    /// One of the answers that are ready.
    pub(super) fn answer(&self, index: usize) -> Option<QueryResult> {
        let mut kafka = self.0.borrow_mut();
        let count = kafka.answers.len();
        let answer = (count > 0).then(|| kafka.answers.remove(index % count))?;
        answer(&mut kafka)
    }
}

/// What Kafka holds.
impl MemoryKafka {
    /// Whether every query is answered.
    pub(super) fn is_idle(&self) -> bool {
        self.0.borrow().answers.is_empty()
    }

    /// The number of queries for nothing but the settings of a topic.
    pub(super) fn settings_queries(&self) -> usize {
        self.0.borrow().settings_queries
    }

    /// The number of records to a partition that are not appended.
    pub(super) fn in_flight(&self, name: &Name) -> usize {
        self.0.borrow().partitions.get(name).map_or(0, |partition| partition.sent.len())
    }

    /// The partitions that records were sent to.
    pub(super) fn names(&self) -> Vec<Name> {
        self.0.borrow().partitions.keys().cloned().collect()
    }

    /// The positions of this outbox's records in a partition, with their offsets.
    pub(super) fn own(&self, name: &Name) -> Vec<(Offset, Position)> {
        let kafka = self.0.borrow();
        let positions = kafka.partitions.get(name).map_or(&[][..], |partition| &partition.positions);
        let own = positions
            .iter()
            .zip((0..).map(Offset))
            .filter_map(|(position, offset)| Some((offset, (*position)?)));
        own.collect()
    }

    /// The offsets of a partition that the session knows.
    pub(super) fn seen(&self, name: &Name) -> Option<OffsetRange> {
        self.0.borrow().partitions.get(name)?.seen
    }

    /// The positions of this outbox's records in the gaps that were found after the probes of this session.
    pub(super) fn in_later_gaps(&self) -> Vec<Position> {
        let gaps = self.0.borrow().later_gaps.clone();
        let within = |(name, gap): (Name, OffsetGap)| {
            let own = self.own(&name).into_iter();
            own.filter(move |(offset, _)| gap.range.contains(*offset))
        };
        gaps.into_iter().flat_map(within).map(|(_, position)| position).collect()
    }
}

impl Partition {
    fn refuse(&mut self, code: RDKafkaErrorCode) {
        if let Some((_, tag)) = self.sent.pop_front() {
            self.outcomes.push_back(Ack { tag, outcome: Err(code) });
        }
    }
}

impl Kafka {
    fn partition(&mut self, name: &Name) -> &mut Partition {
        self.partitions.entry(name.clone()).or_default()
    }

    fn append(&mut self, name: &Name) {
        let Some((record, tag)) = self.partition(name).sent.pop_front() else { return };
        let offset = self.store(name, record);
        let partition = self.partition(name);
        partition.outcomes.push_back(Ack { tag, outcome: Ok(offset) });
        partition.knows_producer = true;
    }

    fn store(&mut self, name: &Name, record: Record) -> Offset {
        let Record { key, value, headers, timestamp } = record;
        let offset = self.end(name);
        let timestamp = Timestamp::CreateTime(timestamp);
        let message = OwnedMessage::new(value, key, name.0.clone(), timestamp, name.1.0, offset.0, headers);
        let position = self.own.as_ref().and_then(|own| own.position(&message));
        let partition = self.partition(name);
        partition.log.push(message);
        partition.positions.push(position);
        offset
    }

    fn start(&mut self, query: Query<'_>) {
        let answer: Answer = match query {
            Query::FindTopic(name) => {
                let name = name.to_owned();
                Box::new(move |kafka| Some(QueryResult::Topic { found: kafka.found(&name), name }))
            }
            Query::Growth(name) => {
                let name = name.to_owned();
                Box::new(move |kafka| Some(QueryResult::Grown { found: kafka.found(&name), name }))
            }
            Query::Verify { topic, partitions, .. } => {
                for partition in partitions {
                    let topic = topic.to_owned();
                    self.answers.push(Box::new(move |kafka| Some(kafka.verify(&topic, &partition))));
                }
                settings_of(topic)
            }
            Query::Settings(topic) => {
                self.settings_queries += 1;
                settings_of(topic)
            }
            Query::TopicStates(topics) => Box::new(move |kafka| {
                let present = TopicState::Present(vec![0; kafka.partition_count as usize]);
                let states = topics.into_iter().map(|topic| (topic, present.clone())).collect();
                Some(QueryResult::TopicStates(Some(states)))
            }),
            Query::Scan { partition, from, .. } => {
                let (id, name) = (partition.id, (partition.topic.to_owned(), partition.number));
                Box::new(move |kafka| {
                    let end = kafka.end(&name);
                    kafka.partition(&name).seen.get_or_insert(OffsetRange { from: end, until: end.next() });
                    let range = OffsetRange { from, until: end };
                    let Scan { found, records, phantoms, .. } = kafka.scan(&name, Scope::ToEnd, range);
                    Some(QueryResult::Scanned { partition: id, found, records: records.finish(), phantoms })
                })
            }
            Query::GapBeforeProbe(partition, gap) => {
                let (id, name) = (partition.id, (partition.topic.to_owned(), partition.number));
                Box::new(move |kafka| {
                    let Scan { found, records, .. } = kafka.scan(&name, Scope::BeforeProbe(gap), gap.range);
                    Some(QueryResult::GapScanned { partition: id, gap, found, records: records.finish() })
                })
            }
            Query::Gap(partition, gap) => {
                let (id, name) = (partition.id, (partition.topic.to_owned(), partition.number));
                self.later_gaps.push((name.clone(), gap));
                Box::new(move |kafka| {
                    let scope = Scope::Gaps(vec![gap.range]);
                    let Scan { strays, more_strays: more, .. } = kafka.scan(&name, scope, gap.range);
                    (!strays.is_empty()).then_some(QueryResult::Strays { partition: id, strays, more })
                })
            }
            Query::Evidence { starts, before } => {
                let starts = starts.clone();
                Box::new(move |kafka| Some(QueryResult::Evidence(kafka.evidence(&starts, before))))
            }
            Query::Reachability { .. } => Box::new(|_| Some(QueryResult::Reachability(Reachability::Up))),
            Query::Diagnosis { partition, .. } => {
                let (partition, diagnosis) = (partition.id, Diagnosis::default());
                Box::new(move |_| Some(QueryResult::Diagnosed { partition, diagnosis }))
            }
        };
        self.answers.push(answer);
    }

    fn evidence(&mut self, starts: &ScanStarts, before: CommitLsn) -> DeliveredEvents {
        let (mut events, mut refilled, mut ends) = (Vec::new(), Vec::new(), Ends::new());
        for (topic, partitions) in starts {
            for (number, start) in partitions {
                let name = (topic.clone(), *number);
                let scope = Scope::Evidence { before, room: MAX_EVENTS };
                let range = OffsetRange { from: start.offset, until: self.end(&name) };
                let scan = self.scan(&name, scope, range);
                events.extend(scan.events);
                refilled.extend(scan.refilled);
                ends.entry(topic.clone()).or_default().insert(*number, range.until);
            }
        }
        DeliveredEvents::new(events, &refilled, ends)
    }

    fn found(&self, topic: &str) -> FoundTopic {
        let start = |number| ScanStart { offset: self.end(&(topic.to_owned(), number)), last: None };
        let ends =
            (0..self.partition_count).map(PartitionNumber).map(|number| (number, start(number))).collect();
        FoundTopic { partitions: self.partition_count, ends, settings: Some(self.settings) }
    }

    fn end(&self, name: &Name) -> Offset {
        Offset(self.partitions.get(name).map_or(0, |partition| partition.log.len() as i64))
    }

    fn verify(&self, topic: &str, partition: &ToVerify) -> QueryResult {
        let ToVerify { id, number, start } = partition;
        let name = (topic.to_owned(), *number);
        let log = self.partitions.get(&name).map_or(&[][..], |partition| &partition.log);
        let last = start.last.and_then(|last| log.get(last.offset.0 as usize));
        let found = last.zip(self.own.as_ref()).map(|(message, own)| RecordAt::of(message, own));
        let compacted = Some(self.settings.compacted);
        let present = OffsetRange { from: Offset::ZERO, until: self.end(&name) };
        match check_same_partition(topic, start, present, found, compacted) {
            Ok(scan_from) => QueryResult::Verified { partition: *id, scan_from },
            Err(what) => {
                QueryResult::Failed(QueryError::Lost { topic: topic.to_owned(), partition: *number, what })
            }
        }
    }

    fn scan(&self, name: &Name, scope: Scope, range: OffsetRange) -> Scan {
        let mut scan = Scan::new(&name.0.as_str().into(), name.1, scope, range);
        if let (Some(partition), Some(own)) = (self.partitions.get(name), &self.own) {
            for message in &partition.log[range.from.0 as usize..range.until.0 as usize] {
                scan.on_record(own, message);
            }
        }
        scan
    }
}

fn settings_of(topic: &str) -> Answer {
    let topic = topic.to_owned();
    Box::new(move |kafka| Some(QueryResult::Settings { topic, settings: Some(kafka.settings) }))
}
