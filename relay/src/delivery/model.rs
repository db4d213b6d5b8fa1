//! A model of the path between the stream and Kafka: the real ledger, deduplication and partitions, in a simulated
//! environment where everything that can happen between two steps does. Processes die with requests in flight, which
//! the broker appends immediately, late, or never. Acknowledgements and scans are delayed. Other producers write to the
//! same partitions. Checkpoints are stored and confirmed to PostgreSQL, or not.
//!
//! The broker refuses records, temporarily or permanently, and follows Kafka's rule for the records after a refused
//! one: if it has state of the producer, it refuses them, too; if it has none, it appends them with any sequence
//! number. librdkafka then reports the refused record as delivered, without an offset.

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
    /// A transaction with one row for each of these keys commits.
    Commit(Vec<u8>),
    /// The relay processes the next message, if it can.
    Read,
    Keepalive,
    /// The broker appends the oldest record in flight to a partition.
    Append(usize),
    /// The broker refuses the oldest record in flight to a partition. librdkafka retries it, and the session continues.
    RefuseTemporarily(usize),
    /// The broker refuses the record permanently: the session ends.
    RefusePermanently(usize),
    /// The relay processes the oldest acknowledgement of a partition.
    Acknowledge(usize),
    /// An hour passes, after which brokers forget producers that have sent nothing.
    Hour,
    /// A scan of a partition or of a gap completes.
    CompleteScan,
    StoreCheckpoint,
    ConfirmToPostgres,
    /// The process dies. This many records in flight to each partition are appended immediately.
    Crash([usize; PARTITIONS]),
    /// The broker appends a record of the dead process.
    AppendLate(usize),
    /// Another producer appends a record.
    AppendForeign(usize),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let partition = || 0..PARTITIONS;
    let step = prop_oneof![
        4 => prop::collection::vec(0u8..12, 1..5).prop_map(Step::Commit),
        16 => Just(Step::Read),
        1 => Just(Step::Keepalive),
        8 => partition().prop_map(Step::Append),
        1 => partition().prop_map(Step::RefuseTemporarily),
        1 => partition().prop_map(Step::RefusePermanently),
        1 => Just(Step::Hour),
        8 => partition().prop_map(Step::Acknowledge),
        4 => Just(Step::CompleteScan),
        2 => Just(Step::StoreCheckpoint),
        2 => Just(Step::ConfirmToPostgres),
        1 => [0usize..4, 0usize..4, 0usize..4].prop_map(Step::Crash),
        2 => partition().prop_map(Step::AppendLate),
        1 => partition().prop_map(Step::AppendForeign),
    ];
    prop::collection::vec(step, 0..400)
}

proptest! {
    /// If a dead process's requests are appended before the next process scans, or never, then every committed row is
    /// in Kafka exactly once and in commit order, whenever a process dies.
    #[test]
    fn every_row_is_in_kafka_once_and_in_order(steps in steps()) {
        let mut world = World::new(Requests::EndWithTheirProcess);
        steps.into_iter().for_each(|step| world.step(step));
        world.finish();
        for (partition, expected) in world.expected().into_iter().enumerate() {
            prop_assert_eq!(world.own(partition), expected);
        }
        prop_assert_eq!(world.process.detected, 0);
    }

    /// If a dead process's requests may be appended at any time, still no row is lost, the first records of all rows
    /// are in order, and the last process has counted every duplicate that it could see.
    #[test]
    fn late_requests_of_a_dead_process_lose_nothing_and_are_counted(steps in steps()) {
        let mut world = World::new(Requests::MayArriveLate);
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

/// The checkpoint must not pass a gap that was not scanned: the gap may contain rows that the next process would send
/// again.
#[test]
fn a_process_that_dies_before_it_has_scanned_a_gap_causes_no_duplicate_of_its_probe() {
    let row = || Step::Commit(vec![0]);
    let target = partition(b"key-0", PARTITIONS as i32) as usize;
    let mut crash = [0; PARTITIONS];
    crash[target] = 1;
    let steps = [&[row(), row(), row()][..], &vec![Step::Read; 9]].concat();
    let mut world = World::new(Requests::MayArriveLate);
    steps.into_iter().for_each(|step| world.step(step));
    // The first record was appended; the other two arrive after the next process has scanned, and before its probe.
    world.step(Step::Crash(crash));
    let scan = [&vec![Step::Read; 2][..], &[Step::CompleteScan]].concat();
    let late = [Step::AppendLate(target), Step::AppendLate(target)];
    let probe = [&vec![Step::Read; 5][..], &[Step::Append(target), Step::Acknowledge(target)]].concat();
    [&scan[..], &late, &probe, &[Step::StoreCheckpoint, Step::Crash([0; PARTITIONS])]]
        .concat()
        .into_iter()
        .for_each(|step| world.step(step));
    world.finish();
    // The probe is in Kafka twice, the last row is not.
    let third = world.stream.get(2).map(|transaction| transaction.position(0));
    let times = world.own(target).into_iter().filter(|position| Some(*position) == third).count();
    assert_eq!(times, 1);
}

/// What happens to a dead process's requests that were not appended when it died.
#[derive(Clone, Copy, PartialEq)]
enum Requests {
    EndWithTheirProcess,
    MayArriveLate,
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
    /// `None` is a record of another producer.
    kafka: [Vec<Option<Position>>; PARTITIONS],
    stored: Checkpoint,
    /// The position confirmed to PostgreSQL.
    confirmed: EndLsn,
    late: [VecDeque<Position>; PARTITIONS],
    /// Whether the broker has state of this process's producer.
    knows_producer: [bool; PARTITIONS],
    now: Instant,
    /// Duplicates that only a dead process could see, because later processes cannot see the first of the two records.
    seen_by_dead_processes: HashSet<Position>,
    process: Process,
}

enum ScanRange {
    Partition { from: i64 },
    Gap(OffsetGap),
}

/// An offset, and the record that was sent.
type Acknowledgement = (Option<i64>, Position, PartitionId, EntryId);

struct Process {
    start: EndLsn,
    horizon: EndLsn,
    ledger: Ledger,
    partitions: Partitions,
    /// The next transaction, and the next row once its Begin was read.
    transaction: usize,
    row: Option<usize>,
    /// Rows that wait for their partition.
    waiting: [VecDeque<(Position, CommitLsn, PartitionId, EntryId)>; PARTITIONS],
    sent: [VecDeque<(Position, PartitionId, EntryId)>; PARTITIONS],
    /// Acknowledgements that have not arrived yet; without an offset where librdkafka only infers the delivery.
    appended: [VecDeque<Acknowledgement>; PARTITIONS],
    scans: VecDeque<(usize, PartitionId, ScanRange)>,
    /// The offsets that the process knows in each partition: from the end of its scan or its first record, to its last.
    known: [Option<(i64, i64)>; PARTITIONS],
    detected: u64,
    /// Gaps after the probe, which only this process has counted.
    later_gaps: Vec<(usize, OffsetGap)>,
}

impl Process {
    fn start(checkpoint: &Checkpoint, confirmed: EndLsn, stream: &[Transaction]) -> Process {
        let mut partitions = Partitions::default();
        let scan_starts = checkpoint.offsets.get(TOPIC);
        partitions.add(TOPIC, PARTITIONS as i32, scan_starts.unwrap_or(&BTreeMap::new()));
        Process {
            start: checkpoint.confirmed,
            horizon: stream.last().map_or(EndLsn::ZERO, Transaction::end),
            ledger: Ledger::new(checkpoint.confirmed),
            partitions,
            // PostgreSQL sends everything that is not confirmed.
            transaction: stream
                .iter()
                .take_while(|transaction| confirmed.covers(transaction.commit()))
                .count(),
            row: None,
            waiting: Default::default(),
            sent: Default::default(),
            appended: Default::default(),
            scans: VecDeque::new(),
            known: [None; PARTITIONS],
            detected: 0,
            later_gaps: Vec::new(),
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
                self.process_row(key, transaction.position(row), transaction.commit(), now);
                self.row = Some(row + 1);
            }
            Some(_) => self.row = Some(row + 1),
            None => {
                self.ledger.commit(transaction.end()).unwrap();
                (self.transaction, self.row) = (self.transaction + 1, None);
            }
        }
    }

    fn process_row(&mut self, key: &str, position: Position, commit: CommitLsn, now: Instant) {
        let number = partition(key.as_bytes(), PARTITIONS as i32);
        let id = self.partitions.id(TOPIC, number).unwrap();
        let number = number as usize;
        let entry = self.ledger.row().unwrap();
        self.waiting[number].push_back((position, commit, id, entry));
        // Rows that already wait go first, and nothing has changed for them.
        if self.waiting[number].len() == 1 {
            self.resume(number, now);
        }
    }

    /// Sends the rows that wait for a partition, as far as it accepts them.
    fn resume(&mut self, number: usize, now: Instant) {
        while let Some((position, commit, id, entry)) = self.waiting[number].pop_front() {
            let dedup = self.partitions.dedup(id).unwrap();
            match dedup.admit(position, self.horizon.covers(commit)) {
                Admission::Send => {
                    dedup.on_sent(position, now);
                    self.sent[number].push_back((position, id, entry));
                    continue;
                }
                Admission::AlreadyThere => {
                    self.ledger.withdraw(entry).unwrap();
                    continue;
                }
                Admission::Scan { from } => {
                    self.scans.push_back((number, id, ScanRange::Partition { from }));
                }
                Admission::Wait => {}
            }
            self.waiting[number].push_front((position, commit, id, entry));
            return;
        }
    }

    /// Returns false when the session ends: an acknowledgement without an offset does not count.
    fn process_ack(&mut self, partition: usize, now: Instant) -> bool {
        let Some((offset, position, id, entry)) = self.appended[partition].pop_front() else { return true };
        let Some(offset) = offset else { return false };
        self.ledger.acknowledge(entry).unwrap();
        match self.partitions.dedup(id).unwrap().on_acknowledged(offset, now) {
            Landed::InOrder => {}
            Landed::AfterGap(gap) => {
                self.scans.push_back((partition, id, ScanRange::Gap(gap)));
                if self.partitions.dedup(id).unwrap().retain_from(EndLsn::ZERO) != Some(gap.from) {
                    self.later_gaps.push((partition, gap));
                }
            }
            Landed::Backwards { expected } => panic!("offset {offset} after {expected}"),
        }
        self.partitions.on_acknowledged(id, entry, position, offset);
        self.known[partition].get_or_insert((offset, offset)).1 = offset;
        self.resume(partition, now);
        true
    }

    fn complete_scan(&mut self, kafka: &[Vec<Option<Position>>; PARTITIONS], now: Instant) {
        let Some((partition, id, range)) = self.scans.pop_front() else { return };
        let log = &kafka[partition];
        let dedup = self.partitions.dedup(id).unwrap();
        match range {
            ScanRange::Partition { from } => {
                dedup.on_scanned(scan(log, from, log.len() as i64, None));
                self.known[partition].get_or_insert((log.len() as i64, log.len() as i64));
            }
            ScanRange::Gap(gap) => {
                self.detected += dedup.on_gap_scanned(gap, scan(log, gap.from, gap.until, gap.known))
            }
        }
        self.resume(partition, now);
    }

    fn is_done(&self, stream: &[Transaction]) -> bool {
        self.transaction == stream.len() && self.ledger.is_empty() && self.scans.is_empty()
    }
}

fn scan(log: &[Option<Position>], from: i64, until: i64, known: Option<Position>) -> ScanResult {
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
            confirmed: EndLsn::ZERO,
            late: Default::default(),
            knows_producer: [false; PARTITIONS],
            now: Instant::now(),
            seen_by_dead_processes: HashSet::new(),
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
            Step::RefuseTemporarily(partition) => self.refuse_temporarily(partition),
            Step::RefusePermanently(partition) => self.refuse_permanently(partition),
            Step::Acknowledge(partition) => self.acknowledge(partition),
            Step::Hour => {
                self.now += Duration::from_secs(3600);
                for (partition, knows) in self.knows_producer.iter_mut().enumerate() {
                    let idle = self.process.sent[partition].is_empty()
                        && self.process.appended[partition].is_empty();
                    *knows &= !idle;
                }
            }
            Step::CompleteScan => self.process.complete_scan(&self.kafka, self.now),
            Step::StoreCheckpoint => self.store(),
            Step::ConfirmToPostgres => self.confirmed = self.confirmed.max(self.stored.confirmed),
            Step::Crash(appended) => self.crash(appended),
            Step::AppendLate(partition) => {
                let record = self.late[partition].pop_front();
                self.kafka[partition].extend(record.map(Some));
            }
            Step::AppendForeign(partition) => self.kafka[partition].push(None),
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

    fn refuse_temporarily(&mut self, partition: usize) {
        if self.knows_producer[partition] || self.process.sent[partition].len() < 2 {
            return;
        }
        // The broker has no state of the producer, so it appends the second record. librdkafka infers that the first
        // was delivered.
        let Some((position, id, entry)) = self.process.sent[partition].pop_front() else { return };
        self.process.appended[partition].push_back((None, position, id, entry));
        self.append(partition);
    }

    fn refuse_permanently(&mut self, partition: usize) {
        if self.process.sent[partition].is_empty() {
            return;
        }
        self.process.sent[partition].pop_front();
        if !self.knows_producer[partition] {
            // Records that were sent without waiting for the acknowledgement.
            (0..4).for_each(|_| self.append(partition));
        }
        self.crash([0; PARTITIONS]);
        // The records after a refused one are out of sequence, or were never sent (`enable.gapless.guarantee`).
        self.late[partition].clear();
    }

    fn acknowledge(&mut self, partition: usize) {
        if !self.process.process_ack(partition, self.now) {
            self.crash([0; PARTITIONS]);
        }
    }

    /// Everything before the stored position, which may then be confirmed to PostgreSQL, must be in Kafka.
    fn store(&mut self) {
        let process = &mut self.process;
        let first_unconfirmed = process.ledger.first_unconfirmed();
        self.stored = Checkpoint {
            confirmed: process.ledger.confirmed(),
            offsets: process.partitions.take_offsets(first_unconfirmed, process.ledger.confirmed()),
        };
        let in_kafka: HashSet<Position> = self.kafka.iter().flatten().copied().flatten().collect();
        let confirmed =
            self.stream.iter().take_while(|transaction| self.stored.confirmed.covers(transaction.commit()));
        for transaction in confirmed {
            for index in 0..transaction.keys.len() {
                assert!(in_kafka.contains(&transaction.position(index)), "confirmed, but not in Kafka");
            }
        }
    }

    fn crash(&mut self, appended: [usize; PARTITIONS]) {
        for (partition, count) in appended.into_iter().enumerate() {
            (0..count).for_each(|_| self.append(partition));
            let sent = self.process.sent[partition].drain(..).map(|(position, ..)| position);
            self.late[partition].clear();
            if self.requests == Requests::MayArriveLate {
                self.late[partition].extend(sent);
            }
        }
        for (partition, gap) in &self.process.later_gaps {
            let found = &self.kafka[*partition][gap.from as usize..gap.until as usize];
            self.seen_by_dead_processes.extend(found.iter().copied().flatten());
        }
        self.process = Process::start(&self.stored, self.confirmed, &self.stream);
        self.knows_producer = [false; PARTITIONS];
    }

    /// The last process delivers the rest, and then one more row of every key, after all late records.
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
            self.process.complete_scan(&self.kafka, self.now);
        }
        panic!("delivery does not complete");
    }

    /// The expected content of each partition.
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

    /// Duplicates among the offsets that the last process knew.
    fn visible_duplicates(&self) -> u64 {
        let mut duplicates = 0;
        for (log, known) in self.kafka.iter().zip(self.process.known) {
            let mut seen = HashSet::new();
            for (offset, record) in log.iter().enumerate() {
                let Some(position) = record else { continue };
                let visible = known.is_some_and(|(from, last)| (from..=last).contains(&(offset as i64)));
                let counted_before = self.seen_by_dead_processes.contains(position);
                duplicates += u64::from(!seen.insert(*position) && visible && !counted_before);
            }
        }
        duplicates
    }
}
