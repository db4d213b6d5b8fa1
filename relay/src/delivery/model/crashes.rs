//! Processes die with requests in flight, which the broker appends immediately, late, or never. Acknowledgements and
//! the answers to queries are delayed. Other producers write to the same partitions. Checkpoints are stored and
//! confirmed to PostgreSQL, or not.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use outbox::Position;
use pg_replication::EndLsn;
use proptest::prelude::*;

use super::memory_kafka::{MemoryKafka, Name};
use super::outbox_stream::{Row, Transaction};
use super::process::{Process, Relay};
use crate::error::{ErrorKind, RelayError};
use crate::postgres::checkpoint::CheckpointUpdate;
use crate::progress::lineage::commit_lsn;
use crate::routing::mapping::{Revision, RoutingHistory, TopicShape};
use crate::routing::router::partition;
use crate::topics::partitions::{LastRecord, PartitionNumber, ScanStarts};

const PARTITIONS: usize = 3;
const TOPIC: &str = "t";
const KEYS: u8 = 12;
/// Few enough that delivery also waits for room.
const MAX_IN_FLIGHT: usize = 16;

#[derive(Clone, Debug)]
enum Step {
    /// A transaction with one row for each of these keys commits.
    Commit(Vec<u8>),
    /// The relay processes the next message, if it can.
    Read,
    Keepalive,
    /// The timer of the event loop: a checkpoint may be due.
    Tick,
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
    /// One of the queries is answered.
    Answer(usize),
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
        4 => prop::collection::vec(0..KEYS, 1..5).prop_map(Step::Commit),
        16 => Just(Step::Read),
        1 => Just(Step::Keepalive),
        3 => Just(Step::Tick),
        8 => partition().prop_map(Step::Append),
        1 => partition().prop_map(Step::RefuseTemporarily),
        1 => partition().prop_map(Step::RefusePermanently),
        1 => Just(Step::Hour),
        8 => partition().prop_map(Step::Acknowledge),
        8 => (0usize..4).prop_map(Step::Answer),
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
        prop_assert_eq!(world.process.detected(), 0);
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
        prop_assert!(world.process.detected() >= world.visible_duplicates());
    }

    /// When everything is delivered, the checkpoint remembers the newest record of each partition, so that the next
    /// process notices if Kafka has lost it.
    #[test]
    fn the_last_checkpoint_remembers_the_newest_record_of_each_partition(steps in steps(), late in any::<bool>()) {
        let mut world =
            World::new(if late { Requests::MayArriveLate } else { Requests::EndWithTheirProcess });
        steps.into_iter().for_each(|step| world.step(step));
        world.finish();
        for partition in 0..PARTITIONS {
            let newest = world.kafka.own(&name(partition)).pop();
            let newest = newest.map(|(offset, position)| LastRecord::new(position, offset));
            let remembered = world.stored_offsets()[TOPIC][&PartitionNumber(partition as i32)].last;
            prop_assert_eq!(remembered, newest);
        }
    }
}

/// The checkpoint must not pass a gap that was not scanned: the gap may contain rows that the next process would send
/// again.
#[test]
fn a_process_that_dies_before_it_has_scanned_a_gap_causes_no_duplicate_of_its_probe() {
    let target = partition(b"key-0", PARTITIONS as i32).0 as usize;
    let answers = || vec![Step::Answer(0); 4];
    let acknowledged = || [Step::Append(target), Step::Acknowledge(target)];
    let mut world = World::new(Requests::MayArriveLate);
    let mut run = |steps: &[Step]| steps.iter().for_each(|step| world.step(step.clone()));
    run(&vec![Step::Commit(vec![0]); 4]);
    // The first record is appended. The next two are in flight when the process dies.
    run(&[answers(), vec![Step::Read; 9], acknowledged().to_vec()].concat());
    run(&[Step::Crash([0; PARTITIONS])]);
    // The next process scans the partition, and sends the second row as its probe. Before that the two arrive.
    run(&[answers(), vec![Step::Read; 2], vec![Step::Answer(0)]].concat());
    run(&[Step::AppendLate(target), Step::AppendLate(target)]);
    run(&[vec![Step::Read; 4], acknowledged().to_vec()].concat());
    run(&[Step::Tick, Step::StoreCheckpoint, Step::Crash([0; PARTITIONS])]);
    world.finish();
    let times = |row: usize| {
        let (position, _) = world.stream[row].rows().next().unwrap();
        world.own(target).into_iter().filter(|own| *own == position).count()
    };
    assert_eq!([0, 1, 2, 3].map(times), [1, 2, 1, 1], "only the probe is in Kafka twice");
}

/// What happens to a dead process's requests that were not appended when it died.
#[derive(Clone, Copy, PartialEq)]
enum Requests {
    EndWithTheirProcess,
    MayArriveLate,
}

struct World {
    requests: Requests,
    relay: Relay,
    stream: Vec<Transaction>,
    kafka: MemoryKafka,
    stored: Option<CheckpointUpdate>,
    /// The position confirmed to PostgreSQL.
    confirmed: EndLsn,
    now: Instant,
    /// Duplicates that only a dead process could see, because later processes cannot see the first of the two records.
    seen_by_dead_processes: HashSet<Position>,
    process: Process,
}

fn name(partition: usize) -> Name {
    (TOPIC.to_owned(), PartitionNumber(partition as i32))
}

fn relay() -> Relay {
    let mut relay = Relay::new();
    relay.config.routing.replacement = TOPIC.to_owned();
    relay.config.routing.regex = ".*".to_owned();
    relay.config.delivery.max_in_flight_events = MAX_IN_FLIGHT;
    relay
}

/// A checkpoint before the first row that already knows the topic.
fn first_checkpoint(relay: &Relay) -> CheckpointUpdate {
    let mut mappings = RoutingHistory::first(relay.config.routing_rule());
    let shape = TopicShape { partitions: PARTITIONS as i32, max_message_bytes: None, compacted: false };
    mappings.current.topics.insert(TOPIC.to_owned(), shape);
    let (confirmed, offsets) = (EndLsn::ZERO, ScanStarts::new());
    CheckpointUpdate { confirmed, snapshot_cursor: None, mappings, revision: Revision::default(), offsets }
}

impl World {
    fn new(requests: Requests) -> World {
        let (relay, kafka) = (relay(), MemoryKafka::new(PARTITIONS as i32));
        let mut stored = Some(first_checkpoint(&relay));
        let process = relay.start(&kafka, &mut stored, EndLsn::ZERO, EndLsn::ZERO, &[]);
        World {
            requests,
            relay,
            stream: Vec::new(),
            kafka,
            stored,
            confirmed: EndLsn::ZERO,
            now: Instant::now(),
            seen_by_dead_processes: HashSet::new(),
            process,
        }
    }

    fn step(&mut self, step: Step) {
        match step {
            Step::Commit(keys) => self.commit(&keys),
            Step::Read => self.act(|process, stream, now| process.read(stream, now)),
            Step::Keepalive => {
                if let Some(end) = self.stream.last().map(Transaction::after)
                    && self.process.next == (self.stream.len(), 0)
                {
                    self.act(|process, _, now| process.keepalive(end, now));
                }
            }
            Step::Tick => self.act(|process, _, now| process.tick(now)),
            Step::Append(partition) => self.kafka.append(&name(partition)),
            Step::RefuseTemporarily(partition) => self.kafka.refuse_temporarily(&name(partition)),
            Step::RefusePermanently(partition) => self.refuse_permanently(&name(partition)),
            Step::Acknowledge(partition) => {
                self.kafka.acknowledge(&name(partition));
                self.act(|process, _, now| process.process_acks(now));
            }
            Step::Hour => {
                self.now += Duration::from_secs(3600);
                self.kafka.forget_idle_producers();
            }
            Step::Answer(index) => self.act(|process, _, now| process.answer(index, now)),
            Step::StoreCheckpoint => self.store(),
            Step::ConfirmToPostgres => self.confirmed = self.confirmed.max(self.stored_confirmed()),
            Step::Crash(appended) => self.crash(appended),
            Step::AppendLate(partition) => {
                self.kafka.append_late(&name(partition));
            }
            Step::AppendForeign(partition) => self.kafka.append_foreign(&name(partition)),
        }
    }

    fn commit(&mut self, keys: &[u8]) {
        let row = |key| Row { aggregate_type: "a", key: Some(format!("key-{key}")), payload_bytes: 1 };
        self.stream.push(Transaction::new(self.stream.len(), keys.iter().map(row).collect()));
    }

    /// The relay does something. If that ends the session, another process starts.
    fn act(&mut self, action: impl FnOnce(&mut Process, &[Transaction], Instant) -> Result<(), RelayError>) {
        if let Err(error) = action(&mut self.process, &self.stream, self.now) {
            let of_refusal = [ErrorKind::DeliveryFailed, ErrorKind::KafkaPermissionDenied];
            assert!(of_refusal.contains(&error.kind), "{error}");
            self.crash([0; PARTITIONS]);
        }
    }

    fn refuse_permanently(&mut self, name: &Name) {
        if self.kafka.in_flight(name) == 0 {
            return;
        }
        self.kafka.refuse_permanently(name);
        let ended = self.process.process_acks(self.now);
        assert_eq!(ended.unwrap_err().kind, ErrorKind::KafkaPermissionDenied);
        self.crash([0; PARTITIONS]);
        // The records after a refused one are out of sequence, or were never sent (`enable.gapless.guarantee`).
        self.kafka.drop_late(name);
    }

    /// Everything before the stored position, which may then be confirmed to PostgreSQL, must be in Kafka.
    fn store(&mut self) {
        let Some(written) = self.process.commit_checkpoint() else { return };
        let in_kafka: HashSet<Position> = (0..PARTITIONS).flat_map(|partition| self.own(partition)).collect();
        let confirmed =
            self.stream.iter().take_while(|transaction| written.confirmed.covers(transaction.commit()));
        for (position, _) in confirmed.flat_map(Transaction::rows) {
            assert!(in_kafka.contains(&position), "confirmed, but not in Kafka");
        }
        if self.requests == Requests::EndWithTheirProcess {
            (0..PARTITIONS).for_each(|partition| self.check_scan_start(&written, partition));
        }
        self.stored = Some(written);
    }

    /// The next process does not scan the records before the stored offset, so their rows must be confirmed.
    fn check_scan_start(&self, written: &CheckpointUpdate, partition: usize) {
        let start = &written.offsets[TOPIC][&PartitionNumber(partition as i32)];
        let skipped =
            self.kafka.own(&name(partition)).into_iter().filter(|(offset, _)| *offset < start.offset);
        for (offset, position) in skipped {
            assert!(
                written.confirmed.covers(commit_lsn(position)),
                "offset {offset} is skipped, but not confirmed"
            );
        }
    }

    fn crash(&mut self, appended: [usize; PARTITIONS]) {
        for (partition, count) in appended.into_iter().enumerate() {
            (0..count).for_each(|_| self.kafka.append(&name(partition)));
        }
        self.seen_by_dead_processes.extend(self.kafka.in_later_gaps());
        self.kafka.end_session();
        if self.requests == Requests::EndWithTheirProcess {
            (0..PARTITIONS).for_each(|partition| self.kafka.drop_late(&name(partition)));
        }
        let horizon = self.stream.last().map_or(EndLsn::ZERO, Transaction::end);
        let World { relay, kafka, stored, confirmed, stream, .. } = self;
        self.process = relay.start(kafka, stored, *confirmed, horizon, stream);
    }

    /// The last process delivers the rest, and then one more row of every key, after all late records.
    fn finish(&mut self) {
        self.deliver_all();
        for partition in (0..PARTITIONS).map(name) {
            while self.kafka.append_late(&partition) {}
        }
        self.commit(&(0..KEYS).collect::<Vec<u8>>());
        self.deliver_all();
        self.process.write_last_checkpoint(self.now);
        self.store();
    }

    fn deliver_all(&mut self) {
        for _ in 0..10_000 {
            self.step(Step::Tick);
            self.store();
            self.step(Step::Read);
            for partition in 0..PARTITIONS {
                self.step(Step::Append(partition));
                self.step(Step::Acknowledge(partition));
            }
            while !self.kafka.is_idle() {
                self.step(Step::Answer(0));
            }
            if self.process.is_done(&self.stream) {
                return;
            }
        }
        panic!("delivery does not complete");
    }

    /// The expected content of each partition.
    fn expected(&self) -> [Vec<Position>; PARTITIONS] {
        let mut expected: [Vec<Position>; PARTITIONS] = Default::default();
        for (position, row) in self.stream.iter().flat_map(Transaction::rows) {
            let key = row.key.as_deref().unwrap_or_default();
            expected[partition(key.as_bytes(), PARTITIONS as i32).0 as usize].push(position);
        }
        expected
    }

    fn own(&self, partition: usize) -> Vec<Position> {
        self.kafka.own(&name(partition)).into_iter().map(|(_, position)| position).collect()
    }

    fn stored_confirmed(&self) -> EndLsn {
        self.stored.as_ref().map_or(EndLsn::ZERO, |stored| stored.confirmed)
    }

    fn stored_offsets(&self) -> &ScanStarts {
        &self.stored.as_ref().unwrap().offsets
    }

    /// Duplicates among the offsets that the last process knew.
    fn visible_duplicates(&self) -> u64 {
        let mut duplicates = 0;
        for partition in (0..PARTITIONS).map(name) {
            let (mut seen, known) = (HashSet::new(), self.kafka.seen(&partition));
            for (offset, position) in self.kafka.own(&partition) {
                let visible = known.is_some_and(|range| range.contains(offset));
                let counted_before = self.seen_by_dead_processes.contains(&position);
                duplicates += u64::from(!seen.insert(position) && visible && !counted_before);
            }
        }
        duplicates
    }
}
