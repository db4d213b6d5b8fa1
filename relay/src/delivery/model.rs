//! A model of the way between the stream and Kafka: the real ledger, high marks and partitions, in a world of a few
//! vectors where everything that can happen between two steps does. Processes die, with requests on the way that the
//! broker appends at once, late, or never; acknowledgements and searches take their time; others write into the same
//! partitions; checkpoints are stored, told to Postgres, or not.
//!
//! The broker refuses records, for a moment or for good, and has Kafka's rule for what is behind a refused record: where
//! it has state of the producer it refuses that, too; where it has none it appends it, whatever its sequence number.
//! librdkafka then reports the first record as delivered, without an offset.

use std::collections::{BTreeMap, HashSet, VecDeque};
use std::time::{Duration, Instant};

use outbox::Position;
use pg_replication::{CommitLsn, EndLsn, Lsn, PgTime};
use proptest::prelude::*;

use crate::progress::ledger::{EntryId, Ledger};
use crate::progress::partition_dedup::{Admission, Landed, OffsetGap, ScanResult};
use crate::routing::router::partition;
use crate::topics::partitions::{Offsets, PartitionId, Partitions};

const PARTITIONS: usize = 3;
const TOPIC: &str = "t";
const TIMELINE: u32 = 1;

#[derive(Clone, Debug)]
enum Step {
    /// A transaction with a row for each of these keys is committed.
    Commit(Vec<u8>),
    /// The relay deals with the next message, if it can.
    Read,
    Keepalive,
    /// The broker appends the oldest record on the way to a partition.
    Append(usize),
    /// The broker refuses the oldest record on the way to a partition. librdkafka sends it again, and this session goes on.
    RefuseOnce(usize),
    /// The broker refuses it for good: the session ends.
    RefuseForGood(usize),
    /// The relay takes in the oldest acknowledgement of a partition.
    Acknowledge(usize),
    /// The brokers forget producers that have sent nothing for this long.
    Hour,
    /// A search or the reading of a hole comes to its end.
    Answer,
    Store,
    Tell,
    /// The process dies. So many records that were on the way to each partition are appended at once.
    Crash([usize; PARTITIONS]),
    /// The broker appends a record of the dead process.
    Late(usize),
    /// Somebody else appends a record.
    Foreign(usize),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let partition = || 0..PARTITIONS;
    let step = prop_oneof![
        4 => prop::collection::vec(0u8..12, 1..5).prop_map(Step::Commit),
        16 => Just(Step::Read),
        1 => Just(Step::Keepalive),
        8 => partition().prop_map(Step::Append),
        1 => partition().prop_map(Step::RefuseOnce),
        1 => partition().prop_map(Step::RefuseForGood),
        1 => Just(Step::Hour),
        8 => partition().prop_map(Step::Acknowledge),
        4 => Just(Step::Answer),
        2 => Just(Step::Store),
        2 => Just(Step::Tell),
        1 => [0usize..4, 0usize..4, 0usize..4].prop_map(Step::Crash),
        2 => partition().prop_map(Step::Late),
        1 => partition().prop_map(Step::Foreign),
    ];
    prop::collection::vec(step, 0..400)
}

proptest! {
    /// A dead process's requests are appended before the next process looks, or never: every committed row is in
    /// Kafka once, in commit order, whatever dies when.
    #[test]
    fn every_row_is_there_once_and_in_order(steps in steps()) {
        let mut world = World::new(Requests::EndWithTheirProcess);
        steps.into_iter().for_each(|step| world.step(step));
        world.finish();
        for (partition, expected) in world.expected().into_iter().enumerate() {
            prop_assert_eq!(world.own(partition), expected);
        }
        prop_assert_eq!(world.process.detected, 0);
    }

    /// They may come at any time: still nothing is lost, the first records of all rows are in order, and what the last
    /// process could see to be there twice it has counted.
    #[test]
    fn late_requests_of_a_dead_process_lose_nothing_and_are_counted(steps in steps()) {
        let mut world = World::new(Requests::MayComeLate);
        steps.into_iter().for_each(|step| world.step(step));
        world.finish();
        for (partition, expected) in world.expected().into_iter().enumerate() {
            let mut seen = HashSet::new();
            let firsts: Vec<Position> =
                world.own(partition).into_iter().filter(|position| seen.insert(*position)).collect();
            prop_assert_eq!(firsts, expected);
        }
        prop_assert!(world.process.detected >= world.visible_duplicates());
    }
}

/// The checkpoint must not pass a hole that was not read: what is in it may be rows that the next process would send again.
#[test]
fn a_process_that_dies_before_it_has_read_a_hole() {
    let row = || Step::Commit(vec![0]);
    let lies_in = partition(b"key-0", PARTITIONS as i32) as usize;
    let mut crash = [0; PARTITIONS];
    crash[lies_in] = 1;
    let steps = [&[row(), row(), row()][..], &vec![Step::Read; 9]].concat();
    let mut world = World::new(Requests::MayComeLate);
    steps.into_iter().for_each(|step| world.step(step));
    // The first was appended; the other two come after the next process has looked, and before its probe.
    world.step(Step::Crash(crash));
    let looks = [&vec![Step::Read; 2][..], &[Step::Answer]].concat();
    let late = [Step::Late(lies_in), Step::Late(lies_in)];
    let probes = [&vec![Step::Read; 5][..], &[Step::Append(lies_in), Step::Acknowledge(lies_in)]].concat();
    [&looks[..], &late, &probes, &[Step::Store, Step::Crash([0; PARTITIONS])]]
        .concat()
        .into_iter()
        .for_each(|step| world.step(step));
    world.finish();
    // The probe is there twice, the last row is not.
    let third = world.stream.get(2).map(|transaction| transaction.position(0));
    let times = world.own(lies_in).into_iter().filter(|position| Some(*position) == third).count();
    assert_eq!(times, 1);
}

/// What becomes of a dead process's requests that were not appended when it died.
#[derive(Clone, Copy, PartialEq)]
enum Requests {
    EndWithTheirProcess,
    MayComeLate,
}

struct Transaction {
    commit: u64,
    keys: Vec<String>,
}

impl Transaction {
    fn commit(&self) -> CommitLsn {
        CommitLsn::new(Lsn::from(self.commit))
    }

    fn end(&self) -> EndLsn {
        EndLsn::new(Lsn::from(self.commit + 8))
    }

    fn position(&self, index: usize) -> Position {
        Position { timeline: TIMELINE, commit_lsn: self.commit, index: index as u64 }
    }
}

struct Checkpoint {
    confirmed: EndLsn,
    offsets: Offsets,
}

struct World {
    requests: Requests,
    stream: Vec<Transaction>,
    /// `None`: somebody else's record.
    kafka: [Vec<Option<Position>>; PARTITIONS],
    stored: Checkpoint,
    /// What Postgres was told.
    told: EndLsn,
    late: [VecDeque<Position>; PARTITIONS],
    /// Whether the broker has state of this process's producer.
    knows_producer: [bool; PARTITIONS],
    now: Instant,
    /// Rows that were found twice by a process that is dead: those that follow cannot see the first of the two.
    seen_by_the_dead: HashSet<Position>,
    process: Process,
}

enum Question {
    Search { from: i64 },
    Hole(OffsetGap),
}

/// An offset, and the record that was sent.
type Answered = (Option<i64>, Position, PartitionId, EntryId);

struct Process {
    start: EndLsn,
    horizon: EndLsn,
    ledger: Ledger,
    partitions: Partitions,
    /// The next transaction, and the next row once its Begin was read.
    transaction: usize,
    row: Option<usize>,
    /// Set aside until their partition takes them.
    waiting: [VecDeque<(Position, CommitLsn, PartitionId, EntryId)>; PARTITIONS],
    sent: [VecDeque<(Position, PartitionId, EntryId)>; PARTITIONS],
    /// Acknowledgements on their way back; without an offset where librdkafka only concludes it.
    appended: [VecDeque<Answered>; PARTITIONS],
    questions: VecDeque<(usize, PartitionId, Question)>,
    /// Offsets it knows about in each partition: from the end of its search or its first record, to its last one.
    known: [Option<(i64, i64)>; PARTITIONS],
    detected: u64,
    /// Holes behind the probe, which it alone has counted.
    later_holes: Vec<(usize, OffsetGap)>,
}

impl Process {
    fn start(checkpoint: &Checkpoint, told: EndLsn, stream: &[Transaction]) -> Process {
        let mut partitions = Partitions::default();
        let floors = checkpoint.offsets.get(TOPIC);
        partitions.add(TOPIC, PARTITIONS as i32, floors.unwrap_or(&BTreeMap::new()));
        Process {
            start: checkpoint.confirmed,
            horizon: stream.last().map_or(EndLsn::ZERO, Transaction::end),
            ledger: Ledger::new(checkpoint.confirmed),
            partitions,
            // Postgres sends what it was not told about.
            transaction: stream.iter().take_while(|transaction| told.covers(transaction.commit())).count(),
            row: None,
            waiting: Default::default(),
            sent: Default::default(),
            appended: Default::default(),
            questions: VecDeque::new(),
            known: [None; PARTITIONS],
            detected: 0,
            later_holes: Vec::new(),
        }
    }

    fn read(&mut self, stream: &[Transaction], now: Instant) {
        let Some(transaction) = stream.get(self.transaction) else { return };
        let Some(row) = self.row else {
            self.ledger.begin(transaction.commit(), PgTime::default()).unwrap();
            self.row = Some(0);
            return;
        };
        match transaction.keys.get(row) {
            Some(key) if !self.start.covers(transaction.commit()) => {
                self.deal_with(key, transaction.position(row), transaction.commit(), now);
                self.row = Some(row + 1);
            }
            Some(_) => self.row = Some(row + 1),
            None => {
                self.ledger.commit(transaction.end()).unwrap();
                (self.transaction, self.row) = (self.transaction + 1, None);
            }
        }
    }

    fn deal_with(&mut self, key: &str, position: Position, commit: CommitLsn, now: Instant) {
        let number = partition(key.as_bytes(), PARTITIONS as i32);
        let id = self.partitions.id(TOPIC, number).unwrap();
        let number = number as usize;
        let entry = self.ledger.row().unwrap();
        self.waiting[number].push_back((position, commit, id, entry));
        // Rows that wait go before it, and no event has freed them.
        if self.waiting[number].len() == 1 {
            self.resume(number, now);
        }
    }

    /// Sends the rows that wait for a partition, as far as it takes them.
    fn resume(&mut self, number: usize, now: Instant) {
        while let Some((position, commit, id, entry)) = self.waiting[number].pop_front() {
            let mark = self.partitions.dedup(id).unwrap();
            match mark.admit(position, self.horizon.covers(commit)) {
                Admission::Send => {
                    mark.on_sent(position, now);
                    self.sent[number].push_back((position, id, entry));
                    continue;
                }
                Admission::AlreadyThere => {
                    self.ledger.withdraw(entry).unwrap();
                    continue;
                }
                Admission::Search { from } => {
                    self.questions.push_back((number, id, Question::Search { from }));
                }
                Admission::Wait => {}
            }
            self.waiting[number].push_front((position, commit, id, entry));
            return;
        }
    }

    /// False when the session ends: an acknowledgement without an offset is none.
    fn acknowledge(&mut self, partition: usize, now: Instant) -> bool {
        let Some((offset, position, id, entry)) = self.appended[partition].pop_front() else { return true };
        let Some(offset) = offset else { return false };
        self.ledger.acknowledge(entry).unwrap();
        match self.partitions.dedup(id).unwrap().on_acknowledged(offset, now) {
            Landed::InOrder => {}
            Landed::AfterGap(hole) => {
                self.questions.push_back((partition, id, Question::Hole(hole)));
                if self.partitions.dedup(id).unwrap().retain_from(EndLsn::ZERO) != Some(hole.from) {
                    self.later_holes.push((partition, hole));
                }
            }
            Landed::Backwards { expected } => panic!("offset {offset} after {expected}"),
        }
        self.partitions.on_acknowledged(id, entry, position, offset);
        self.known[partition].get_or_insert((offset, offset)).1 = offset;
        self.resume(partition, now);
        true
    }

    fn answer(&mut self, kafka: &[Vec<Option<Position>>; PARTITIONS], now: Instant) {
        let Some((partition, id, question)) = self.questions.pop_front() else { return };
        let log = &kafka[partition];
        let mark = self.partitions.dedup(id).unwrap();
        match question {
            Question::Search { from } => {
                mark.on_scanned(look(log, from, log.len() as i64, None));
                self.known[partition].get_or_insert((log.len() as i64, log.len() as i64));
            }
            Question::Hole(hole) => {
                self.detected += mark.on_gap_scanned(hole, look(log, hole.from, hole.until, hole.known))
            }
        }
        self.resume(partition, now);
    }

    fn is_done(&self, stream: &[Transaction]) -> bool {
        self.transaction == stream.len() && self.ledger.is_empty() && self.questions.is_empty()
    }
}

fn look(log: &[Option<Position>], from: i64, until: i64, known: Option<Position>) -> ScanResult {
    let own: Vec<Position> = log[from as usize..until as usize].iter().copied().flatten().collect();
    let repeated =
        own.iter().filter(|position| known.is_some_and(|known| **position <= known)).count() as u64;
    ScanResult { highest: own.iter().max().copied(), own_records: own.len() as u64, repeated, end: until }
}

impl World {
    fn new(requests: Requests) -> World {
        let stored = Checkpoint { confirmed: EndLsn::ZERO, offsets: Offsets::new() };
        let process = Process::start(&stored, EndLsn::ZERO, &[]);
        World {
            requests,
            stream: Vec::new(),
            kafka: Default::default(),
            stored,
            told: EndLsn::ZERO,
            late: Default::default(),
            knows_producer: [false; PARTITIONS],
            now: Instant::now(),
            seen_by_the_dead: HashSet::new(),
            process,
        }
    }

    fn step(&mut self, step: Step) {
        match step {
            Step::Commit(keys) => self.commit(&keys),
            Step::Read => self.process.read(&self.stream, self.now),
            Step::Keepalive => {
                if let Some(last) =
                    self.stream.last().filter(|_| self.process.transaction == self.stream.len())
                {
                    self.process.ledger.keepalive(EndLsn::new(Lsn::from(last.commit + 50)));
                }
            }
            Step::Append(partition) => self.append(partition),
            Step::RefuseOnce(partition) => self.refuse_once(partition),
            Step::RefuseForGood(partition) => self.refuse_for_good(partition),
            Step::Acknowledge(partition) => self.acknowledge(partition),
            Step::Hour => {
                self.now += Duration::from_secs(3600);
                for (partition, knows) in self.knows_producer.iter_mut().enumerate() {
                    let idle = self.process.sent[partition].is_empty()
                        && self.process.appended[partition].is_empty();
                    *knows &= !idle;
                }
            }
            Step::Answer => self.process.answer(&self.kafka, self.now),
            Step::Store => self.store(),
            Step::Tell => self.told = self.told.max(self.stored.confirmed),
            Step::Crash(appended) => self.crash(appended),
            Step::Late(partition) => {
                let record = self.late[partition].pop_front();
                self.kafka[partition].extend(record.map(Some));
            }
            Step::Foreign(partition) => self.kafka[partition].push(None),
        }
    }

    fn commit(&mut self, keys: &[u8]) {
        let commit = 100 * (self.stream.len() as u64 + 1);
        let keys = keys.iter().map(|key| format!("key-{key}")).collect();
        self.stream.push(Transaction { commit, keys });
    }

    fn append(&mut self, partition: usize) {
        let Some((position, id, entry)) = self.process.sent[partition].pop_front() else { return };
        let offset = self.kafka[partition].len() as i64;
        self.kafka[partition].push(Some(position));
        self.process.appended[partition].push_back((Some(offset), position, id, entry));
        self.knows_producer[partition] = true;
    }

    fn refuse_once(&mut self, partition: usize) {
        if self.knows_producer[partition] || self.process.sent[partition].len() < 2 {
            return;
        }
        // It has no state of the producer: it appends the second record. librdkafka takes the first for delivered.
        let Some((position, id, entry)) = self.process.sent[partition].pop_front() else { return };
        self.process.appended[partition].push_back((None, position, id, entry));
        self.append(partition);
    }

    fn refuse_for_good(&mut self, partition: usize) {
        if self.process.sent[partition].is_empty() {
            return;
        }
        self.process.sent[partition].pop_front();
        if !self.knows_producer[partition] {
            // What was sent without waiting.
            (0..4).for_each(|_| self.append(partition));
        }
        self.crash([0; PARTITIONS]);
        // What is behind a refused record is out of sequence, or was never sent (`enable.gapless.guarantee`).
        self.late[partition].clear();
    }

    fn acknowledge(&mut self, partition: usize) {
        if !self.process.acknowledge(partition, self.now) {
            self.crash([0; PARTITIONS]);
        }
    }

    /// I6: what is stored, and so may be told to Postgres, is in Kafka.
    fn store(&mut self) {
        let process = &mut self.process;
        let first_unconfirmed = process.ledger.first_unconfirmed();
        self.stored = Checkpoint {
            confirmed: process.ledger.confirmed(),
            offsets: process.partitions.take_offsets(first_unconfirmed, process.ledger.confirmed()),
        };
        let there: HashSet<Position> = self.kafka.iter().flatten().copied().flatten().collect();
        let confirmed =
            self.stream.iter().take_while(|transaction| self.stored.confirmed.covers(transaction.commit()));
        for transaction in confirmed {
            for index in 0..transaction.keys.len() {
                assert!(there.contains(&transaction.position(index)), "confirmed, but not in Kafka");
            }
        }
    }

    fn crash(&mut self, appended: [usize; PARTITIONS]) {
        for (partition, count) in appended.into_iter().enumerate() {
            (0..count).for_each(|_| self.append(partition));
            let sent = self.process.sent[partition].drain(..).map(|(position, ..)| position);
            self.late[partition].clear();
            if self.requests == Requests::MayComeLate {
                self.late[partition].extend(sent);
            }
        }
        for (partition, hole) in &self.process.later_holes {
            let found = &self.kafka[*partition][hole.from as usize..hole.until as usize];
            self.seen_by_the_dead.extend(found.iter().copied().flatten());
        }
        self.process = Process::start(&self.stored, self.told, &self.stream);
        self.knows_producer = [false; PARTITIONS];
    }

    /// The last process delivers the rest, and then one more row of every key, behind all that came late.
    fn finish(&mut self) {
        self.deliver_all();
        for partition in 0..PARTITIONS {
            self.kafka[partition].extend(self.late[partition].drain(..).map(Some));
        }
        self.commit(&(0..12).collect::<Vec<u8>>());
        self.deliver_all();
    }

    fn deliver_all(&mut self) {
        for _ in 0..100_000 {
            if self.process.is_done(&self.stream) {
                return;
            }
            self.process.read(&self.stream, self.now);
            for partition in 0..PARTITIONS {
                self.append(partition);
                self.acknowledge(partition);
            }
            self.process.answer(&self.kafka, self.now);
        }
        panic!("delivery does not come to its end");
    }

    /// What each partition should hold.
    fn expected(&self) -> [Vec<Position>; PARTITIONS] {
        let mut expected: [Vec<Position>; PARTITIONS] = Default::default();
        for transaction in &self.stream {
            for (index, key) in transaction.keys.iter().enumerate() {
                expected[partition(key.as_bytes(), PARTITIONS as i32) as usize]
                    .push(transaction.position(index));
            }
        }
        expected
    }

    fn own(&self, partition: usize) -> Vec<Position> {
        self.kafka[partition].iter().copied().flatten().collect()
    }

    /// Second records of a row among the offsets the last process knew about.
    fn visible_duplicates(&self) -> u64 {
        let mut duplicates = 0;
        for (log, known) in self.kafka.iter().zip(self.process.known) {
            let mut seen = HashSet::new();
            for (offset, record) in log.iter().enumerate() {
                let Some(position) = record else { continue };
                let visible = known.is_some_and(|(from, last)| (from..=last).contains(&(offset as i64)));
                let counted_before = self.seen_by_the_dead.contains(position);
                duplicates += u64::from(!seen.insert(*position) && visible && !counted_before);
            }
        }
        duplicates
    }
}
