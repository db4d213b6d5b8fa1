//! Relays crash and get new configurations, while topics get other limits, other policies and more partitions. In every
//! case each row is in one partition once, and each partition is in the order of the rows.

use std::time::{Duration, Instant};

use pg_replication::EndLsn;
use proptest::prelude::*;

use super::memory_kafka::MemoryKafka;
use super::outbox_stream::{Row, Transaction, end_before};
use super::process::{Process, Relay};
use crate::delivery::Broker;
use crate::kafka::query::Query;
use crate::postgres::checkpoint::CheckpointUpdate;

const PARTITIONS: i32 = 2;
/// More turns of the event loop than any row needs.
const TURNS: usize = 50;

/// The configured rules: regular expression, replacement and largest record. The last one has a destination for every
/// row.
const RULES: [(&str, &str, usize); 5] = [
    ("(?<v>.*)", "t.${v}", 10_000),
    ("(?<v>[a-z]).*", "t.${v}", 10_000),
    ("(?<v>.*)", "u.${v}", 5_000),
    (".*", "all", 10_000),
    ("(?<v>[a-z]).*", "v.${v}", 100_000),
];

/// One run of a relay, from start to crash.
#[derive(Clone, Debug)]
struct Run {
    rule: usize,
    /// The number of rows committed before the run starts. Later rows commit while it runs.
    horizon: usize,
    /// The number of rows it reads before it crashes.
    reads: usize,
    /// The number of rows after which brokers append nothing before the crash.
    acknowledged: usize,
    /// The percentage of the records in flight that are appended in the end, by partition number.
    appended: [usize; 4],
    /// The row at which the limit of every topic changes, and the new limit.
    limit_at: Option<(usize, usize)>,
    /// The row at which every topic becomes compacted, or stops being compacted.
    compacted_at: Option<(usize, bool)>,
    /// The row at which every topic gets one more partition.
    grows_at: Option<usize>,
}

fn row() -> impl Strategy<Value = Row> {
    let aggregate_type = prop::sample::select(vec!["a", "b", "a b", "c"]);
    let key = prop::option::weighted(0.8, (0u8..6).prop_map(|key| key.to_string()));
    let payload_bytes = prop::sample::select(vec![1000usize, 1000, 6000, 20_000]);
    (aggregate_type, key, payload_bytes).prop_map(|(aggregate_type, key, payload_bytes)| Row {
        aggregate_type,
        key,
        payload_bytes,
    })
}

fn run() -> impl Strategy<Value = Run> {
    let row = || 0usize..30;
    let appended = prop::array::uniform4(0usize..=100);
    let limit_at = prop::option::of((row(), prop::sample::select(vec![3000usize, 8000, 50_000])));
    let compacted_at = prop::option::of((row(), any::<bool>()));
    let read = (0..RULES.len(), row(), row(), row(), appended);
    (read, limit_at, compacted_at, prop::option::of(row())).prop_map(
        |((rule, horizon, reads, acknowledged, appended), limit_at, compacted_at, grows_at)| Run {
            rule,
            horizon,
            reads,
            acknowledged,
            appended,
            limit_at,
            compacted_at,
            grows_at,
        },
    )
}

proptest! {
    // Few cases, because each compiles a dozen regular expressions.
    #![proptest_config(ProptestConfig::with_cases(100))]

    #[test]
    fn each_row_is_in_one_partition_once_and_in_order(
        rows in prop::collection::vec(row(), 1..30),
        runs in prop::collection::vec(run(), 1..8),
    ) {
        let mut world = World::new(rows);
        runs.iter().for_each(|run| world.run(run));
        world.finish();
        let mut delivered = Vec::new();
        for name in world.kafka.names() {
            let log: Vec<_> = world.kafka.own(&name).into_iter().map(|(_, position)| position).collect();
            prop_assert!(log.is_sorted(), "{:?}: {:?}", name, log);
            delivered.extend(log);
        }
        delivered.sort_unstable();
        let expected: Vec<_> =
            world.stream.iter().flat_map(Transaction::rows).map(|(position, _)| position).collect();
        prop_assert_eq!(delivered, expected);
    }
}

/// The topic has become compacted, and the settings arrive last. Until then the row is neither sent nor queued, because
/// a queued row keeps its destination.
#[test]
fn no_row_is_placed_before_the_settings_of_its_topic_are_known() {
    let row = |key: Option<&str>| Row { aggregate_type: "a", key: key.map(str::to_owned), payload_bytes: 10 };
    let mut world = World::new(vec![row(Some("0"))]);
    let mut process = world.start(0, 0);
    assert!((0..TURNS).any(|_| world.turn(&mut process, true) && process.is_done(&world.stream)));
    world.end_session();
    world.kafka.change_settings(|settings| settings.compacted = true);
    world.stream.push(Transaction::new(1, vec![row(None)]));

    let (mut process, now) = (world.start(0, 1), Instant::now());
    let read = |process: &mut Process| (0..TURNS).for_each(|_| process.read(&world.stream, now).unwrap());
    read(&mut process);
    (0..PARTITIONS).for_each(|_| process.answer(0, now).unwrap());
    read(&mut process);
    assert_eq!(process.delivery.in_flight.lanes.load().events, 0, "the settings are not known");
    assert!(!process.is_poisoned() && !world.kafka.is_idle());
    assert!((0..TURNS).any(|_| !world.turn(&mut process, true)), "the topic would refuse the row");
    assert_eq!(process.delivery.in_flight.lanes.load().events, 0);

    // While the row is refused, the settings are read again: by one query at a time, however long Kafka is silent.
    (1..10).for_each(|minute| process.tick(now + Duration::from_secs(60 * minute)).unwrap());
    assert_eq!(world.kafka.settings_queries(), 1);
}

struct World {
    relay: Relay,
    /// One row in each transaction.
    stream: Vec<Transaction>,
    kafka: MemoryKafka,
    stored: Option<CheckpointUpdate>,
}

impl World {
    fn new(rows: Vec<Row>) -> World {
        let stream = rows.into_iter().enumerate().map(|(row, content)| Transaction::new(row, vec![content]));
        let (relay, kafka) = (Relay::new(), MemoryKafka::new(PARTITIONS));
        World { relay, stream: stream.collect(), kafka, stored: None }
    }

    fn run(&mut self, run: &Run) {
        let mut process = self.start(run.rule, run.horizon);
        let first = process.next.0;
        for row in (first..self.stream.len()).take(run.reads) {
            self.change_topics(&mut process, run, row);
            if !self.read_row(&mut process, row < first + run.acknowledged) {
                break;
            }
        }
        for name in self.kafka.names() {
            let count = self.kafka.in_flight(&name) * run.appended[name.1.0 as usize % 4] / 100;
            (0..count).for_each(|_| self.kafka.append(&name));
        }
        self.end_session();
    }

    /// In the end the configuration is corrected: every row has a destination, and Kafka accepts it.
    fn finish(&mut self) {
        self.kafka.change_settings(|settings| {
            settings.max_message_bytes = None;
            settings.compacted = false;
        });
        let mut process = self.start(RULES.len() - 1, self.stream.len());
        let turns = TURNS * (self.stream.len() + 1);
        let is_done = (0..turns).any(|_| self.turn(&mut process, true) && process.is_done(&self.stream));
        assert!(is_done, "delivery does not complete");
    }

    fn start(&mut self, rule: usize, horizon: usize) -> Process {
        let confirmed = self.stored.as_ref().map_or(EndLsn::ZERO, |stored| stored.confirmed);
        let own = self.kafka.names().into_iter().flat_map(|name| self.kafka.own(&name));
        let newest = own.map(|(_, position)| position.commit_lsn).max();
        let sent = self.stream.iter().rposition(|row| newest == Some(row.commit().lsn().as_u64()));
        let horizon = end_before(horizon.max(sent.map_or(0, |row| row + 1))).max(confirmed);
        let (regex, replacement, max_message_bytes) = RULES[rule];
        self.relay.config.routing.regex = regex.to_owned();
        self.relay.config.routing.replacement = replacement.to_owned();
        self.relay.config.sink.max_message_bytes = max_message_bytes;
        self.relay.start(&self.kafka, &mut self.stored, confirmed, horizon, &self.stream)
    }

    fn end_session(&mut self) {
        self.kafka.end_session();
        self.kafka.names().iter().for_each(|name| self.kafka.drop_late(name));
    }

    fn change_topics(&mut self, process: &mut Process, run: &Run, row: usize) {
        let (registry, routing) = (&process.delivery.in_flight.topics, &process.delivery.dispatch.routing);
        let name = |topic| registry.topic(topic).name.clone();
        let topics: Vec<String> = routing.topics().into_iter().map(name).collect();
        if let Some((_, limit)) = run.limit_at.filter(|(at, _)| *at == row) {
            self.kafka.change_settings(|settings| settings.max_message_bytes = Some(limit));
            topics.iter().for_each(|topic| self.kafka.query(Query::Settings(topic)));
        }
        if let Some((_, compacted)) = run.compacted_at.filter(|(at, _)| *at == row) {
            self.kafka.change_settings(|settings| settings.compacted = compacted);
            topics.iter().for_each(|topic| self.kafka.query(Query::Settings(topic)));
        }
        if run.grows_at == Some(row) {
            self.kafka.add_partition();
            self.kafka.query(Query::TopicStates(topics));
        }
    }

    /// Reads one row. Returns false if the relay cannot read it.
    fn read_row(&mut self, process: &mut Process, acknowledges: bool) -> bool {
        let row = process.next.0;
        (0..TURNS).any(|_| self.turn(process, acknowledges) && process.next.0 > row)
    }

    /// One turn of the event loop. Returns false if a row has no destination.
    fn turn(&mut self, process: &mut Process, acknowledges: bool) -> bool {
        let now = Instant::now();
        process.read(&self.stream, now).unwrap();
        if process.is_poisoned() {
            return false;
        }
        while !self.kafka.is_idle() {
            process.answer(0, now).unwrap();
        }
        if acknowledges {
            for name in self.kafka.names() {
                while self.kafka.in_flight(&name) > 0 {
                    self.kafka.append(&name);
                    self.kafka.acknowledge(&name);
                    process.process_acks(now).unwrap();
                }
            }
        }
        process.write_due_checkpoint(now);
        self.stored = process.commit_checkpoint().or(self.stored.take());
        true
    }
}
