//! A model of relays that crash and get new configurations, and of a Kafka that keeps what it received. In every case
//! each row is in one partition once, and each partition is in the order of the rows.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

use outbox::Position;
use pg_replication::Lsn;
use proptest::prelude::*;

use super::*;
use crate::progress::partition_dedup::{Admission, PartitionDedup, ScanResult};
use crate::routing::rule::{Routing, Rule};

#[derive(Clone, Debug)]
struct Row {
    value: &'static str,
    key: u8,
    has_key: bool,
    bytes: usize,
}

/// One run of a relay, from start to crash.
#[derive(Clone, Debug)]
struct Run {
    rule: usize,
    /// The number of rows committed before the run starts. Later rows commit while it runs.
    horizon: usize,
    /// The number of rows it reads before it crashes.
    reads: usize,
    /// The percentage of sent records that are appended, by partition number.
    appended: [usize; 4],
    /// The row at which the limit of every topic changes, and the new limit.
    limit_at: Option<(usize, usize)>,
    /// The row at which every topic becomes compacted, or stops being compacted.
    compacted_at: Option<(usize, bool)>,
    /// The row at which everything is drained, and the topics get more partitions.
    grows_at: Option<usize>,
}

/// The configured rules. The last one has a destination for every row.
fn rules() -> Vec<Rule> {
    let rule = |regex: &str, replacement: &str, max_message_bytes| Rule {
        routing: Routing { regex: regex.into(), replacement: replacement.into(), ..Routing::default() },
        max_message_bytes,
        dead_letter_topic: None,
    };
    vec![
        rule("(?<v>.*)", "t.${v}", 100),
        rule("(?<v>[a-z]).*", "t.${v}", 100),
        rule("(?<v>.*)", "u.${v}", 50),
        rule(".*", "all", 100),
        rule("(?<v>[a-z]).*", "v.${v}", 1000),
    ]
}

fn commit_of(row: usize) -> CommitLsn {
    CommitLsn::new(Lsn::from(row as u64 * 10 + 10))
}
/// Covers the rows before `row`.
fn end_before(row: usize) -> EndLsn {
    EndLsn::new(Lsn::from(row as u64 * 10 + 10))
}
fn position(row: usize) -> Position {
    Position { timeline: 1, commit_lsn: commit_of(row).lsn().as_u64(), index: 0 }
}

#[derive(Default)]
struct Kafka {
    logs: BTreeMap<(String, i32), Vec<usize>>,
    partitions: i32,
}

impl Kafka {
    fn holds(&self) -> BTreeSet<usize> {
        self.logs.values().flatten().copied().collect()
    }
}

struct World {
    rows: Vec<Row>,
    kafka: Kafka,
    stored: Option<RoutingHistory>,
    confirmed: usize,
}

impl World {
    fn run(&mut self, run: &Run) {
        let horizon = run.horizon.max(self.confirmed).max(self.kafka.holds().last().map_or(0, |row| row + 1));
        let rule = rules()[run.rule].clone();
        let mappings = match self.stored.take() {
            None => RoutingHistory::first(rule),
            Some(stored) => {
                stored.prune_confirmed(end_before(self.confirmed)).with_rule(rule, end_before(horizon))
            }
        };
        let mut table = RoutingTable::new(mappings).unwrap();
        let mut dedups: BTreeMap<(String, i32), PartitionDedup> = BTreeMap::new();
        let mut sent: BTreeMap<(String, i32), Vec<usize>> = BTreeMap::new();
        for row in (self.confirmed..self.rows.len()).take(run.reads) {
            if run.grows_at == Some(row) && row >= horizon {
                self.append(&mut sent, [100; 4]);
                self.kafka.partitions += 1;
                let shapes = table.history().current.topics.into_iter();
                let partitions = self.kafka.partitions;
                let grown = shapes.map(|(name, shape)| (name, TopicShape { partitions, ..shape })).collect();
                table.change_topics(&grown, end_before(row)).unwrap();
                table.on_confirmed(end_before(row));
                self.confirmed = row;
            }
            if let Some((_, limit)) = run.limit_at.filter(|(at, _)| *at == row) {
                let shapes = table.history().current.topics.into_iter();
                let limited = |(name, shape)| (name, TopicShape { max_message_bytes: Some(limit), ..shape });
                table.change_topics(&shapes.map(limited).collect(), end_before(row.max(horizon))).unwrap();
            }
            if let Some((_, compacted)) = run.compacted_at.filter(|(at, _)| *at == row) {
                let shapes = table.history().current.topics.into_iter();
                let changed = shapes.map(|(name, shape)| (name, TopicShape { compacted, ..shape })).collect();
                table.change_topics(&changed, end_before(row.max(horizon))).unwrap();
            }
            let Some(destination) = self.destination(&mut table, row) else { break };
            let log = self.kafka.logs.entry(destination.clone()).or_default();
            let dedup = dedups.entry(destination.clone()).or_insert_with(|| PartitionDedup::new(0));
            let mut admission = dedup.admit(position(row), row < horizon);
            if let Admission::Scan { .. } = admission {
                let highest = log.iter().max().map(|row| position(*row));
                let found = ScanResult {
                    highest,
                    own_records: log.len() as u64,
                    ..ScanResult::nothing(log.len() as i64)
                };
                dedup.on_scanned(found);
                admission = dedup.admit(position(row), true);
            }
            if admission == Admission::Send {
                let Row { bytes, has_key, .. } = self.rows[row];
                if !table.accepts(&destination.0, bytes, has_key) {
                    break;
                }
                dedup.on_sent(position(row), Instant::now());
                sent.entry(destination.clone()).or_default().push(row);
                let offset = self.kafka.logs[&destination].len() + sent[&destination].len() - 1;
                dedup.on_acknowledged(offset as i64, Instant::now());
            }
        }
        self.append(&mut sent, run.appended);
        let holds = self.kafka.holds();
        while holds.contains(&self.confirmed) {
            self.confirmed += 1;
        }
        self.stored = Some(table.history());
    }

    fn destination(&self, table: &mut RoutingTable, row: usize) -> Option<(String, i32)> {
        let Row { value, key, has_key, bytes } = &self.rows[row];
        loop {
            let key = [*key];
            let input = RoutingInput {
                key: &key,
                bytes: *bytes,
                has_key: *has_key,
                position: Some(position(row)),
                invalid: None,
                commit: commit_of(row),
                column: |_: &str| Some(*value),
            };
            let new = match table.destination(&input).ok()? {
                Destination::Partition { topic, number, .. } => return Some((topic.to_owned(), number)),
                Destination::NewTopic(topic) => topic.to_owned(),
            };
            let partitions = self.kafka.partitions;
            table.add_topic(&new, TopicShape { partitions, max_message_bytes: None, compacted: false });
        }
    }

    /// Appends a prefix of the records sent to each partition.
    fn append(&mut self, sent: &mut BTreeMap<(String, i32), Vec<usize>>, percent: [usize; 4]) {
        for (destination, rows) in std::mem::take(sent) {
            let count = rows.len() * percent[destination.1 as usize % 4] / 100;
            self.kafka.logs.entry(destination).or_default().extend(&rows[..count]);
        }
    }
}

fn row() -> impl Strategy<Value = Row> {
    (
        prop::sample::select(vec!["a", "b", "a b", "c"]),
        0u8..6,
        prop::bool::weighted(0.8),
        prop::sample::select(vec![10usize, 10, 60, 200]),
    )
        .prop_map(|(value, key, has_key, bytes)| Row { value, key, has_key, bytes })
}

fn run() -> impl Strategy<Value = Run> {
    let appended = prop::array::uniform4(0usize..=100);
    let limit_at = prop::option::of((0usize..30, prop::sample::select(vec![30usize, 80, 500])));
    let compacted_at = prop::option::of((0usize..30, any::<bool>()));
    let grows_at = prop::option::of(0usize..30);
    (0usize..5, 0usize..30, 0usize..30, appended, limit_at, compacted_at, grows_at).prop_map(
        |(rule, horizon, reads, appended, limit_at, compacted_at, grows_at)| Run {
            rule,
            horizon,
            reads,
            appended,
            limit_at,
            compacted_at,
            grows_at,
        },
    )
}

proptest! {
    // Few cases, because each compiles a dozen regular expressions; the test has passed with 2,000.
    #![proptest_config(ProptestConfig::with_cases(100))]

    #[test]
    fn each_row_is_in_one_partition_once_and_in_order(
        rows in prop::collection::vec(row(), 1..30),
        runs in prop::collection::vec(run(), 1..8),
    ) {
        let kafka = Kafka { partitions: 2, ..Kafka::default() };
        let mut world = World { rows, kafka, stored: None, confirmed: 0 };
        for run in &runs {
            world.run(run);
        }
        // In the end the configuration is corrected: every row has a destination, and Kafka accepts it.
        let count = world.rows.len();
        let (limit_at, compacted_at, grows_at) = (None, None, None);
        let appended = [100; 4];
        let all = Run { rule: 4, horizon: count, reads: count, appended, limit_at, compacted_at, grows_at };
        world.run(&all);
        let changed = (Some((world.confirmed, 1000)), Some((world.confirmed, false)));
        let raised = Run { limit_at: changed.0, compacted_at: changed.1, ..all };
        world.run(&raised);
        let mut delivered: Vec<usize> = world.kafka.logs.values().flatten().copied().collect();
        for (destination, log) in &world.kafka.logs {
            prop_assert!(log.is_sorted(), "{:?}: {:?}", destination, log);
        }
        delivered.sort_unstable();
        prop_assert_eq!(delivered, (0..count).collect::<Vec<_>>());
    }
}
