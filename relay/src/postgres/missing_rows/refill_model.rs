//! A model of a server, its slot, a relay and Kafka against the snapshot arithmetic: whatever the order of commits, and
//! wherever relays die and slots are lost, each committed row is in Kafka once, and the rows of a key in the order of
//! their commits.
//!
//! Transactions take their ids, their `seq` and their places in the WAL in different orders. A transaction is in the
//! stream when its commit record is written, and visible later: in between it waits for a synchronous standby. The
//! transactions of one key are serialised, as by the row lock of an aggregate.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::{TransactionSnapshot, Xid8};
use crate::postgres::delivered_snapshots::{DeliveredSnapshots, Snapshot};
use crate::progress::offset::Offset;
use crate::testing::end;
use crate::topics::partitions::{PartitionNumber, ScanStart, ScanStarts};

const KEYS: u64 = 4;
const PARTITIONS: usize = 2;

/// Where the event of a row is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum RowState {
    /// In Kafka.
    Delivered,
    /// In Kafka if the lost slot has delivered it, otherwise nowhere.
    MayBeMissing,
    /// In the stream of the new slot.
    InStream,
}

/// Where the event of a row is that transaction `xid` has written: `delivered` is the snapshot in the checkpoint, and
/// `created` that of the new slot.
pub(super) fn state_of(
    xid: Xid8,
    delivered: &TransactionSnapshot,
    created: &TransactionSnapshot,
) -> RowState {
    if delivered.shows(xid) {
        RowState::Delivered
    } else if created.shows(xid) {
        RowState::MayBeMissing
    } else {
        RowState::InStream
    }
}

impl TransactionSnapshot {
    /// Whether the transaction had ended: `pg_visible_in_snapshot`.
    pub(super) fn shows(&self, xid: Xid8) -> bool {
        let (_, in_progress) = self.text.rsplit_once(':').unwrap();
        xid < self.xmax && !in_progress.split(',').any(|running| running.parse() == Ok(xid.0))
    }
}

/// A row. Its transaction has no other.
#[derive(Clone, Copy, Debug)]
struct Row {
    xid: u64,
    key: u64,
    seq: u64,
}

/// A committed row, and the end of its commit record.
#[derive(Clone, Copy, Debug)]
struct Committed {
    row: Row,
    end: u64,
}

/// The checkpoint: what survives a process.
#[derive(Default)]
struct Checkpoint {
    confirmed: u64,
    delivered: Option<String>,
    offsets: ScanStarts,
}

#[derive(Default)]
struct World {
    last_xid: u64,
    last_completed: u64,
    last_seq: u64,
    wal: u64,
    /// Inserted, not committed.
    running: BTreeMap<u64, Row>,
    /// Commit record written, not visible.
    waiting: BTreeMap<u64, Row>,
    /// In the order of their commit records.
    committed: Vec<Committed>,
    /// The stream begins behind this LSN.
    slot: u64,
    /// The number of committed transactions that the relay has read.
    read: usize,
    /// Transaction ids of the records, by partition.
    kafka: [Vec<u64>; PARTITIONS],
    checkpoint: Checkpoint,
    session: DeliveredSnapshots,
    refills: u32,
}

impl World {
    fn next_xid(&mut self) -> u64 {
        // The first of a client is 3.
        self.last_xid = self.last_xid.max(2) + 1;
        self.last_xid
    }

    fn begin(&mut self, key: u64) {
        let key = key % KEYS;
        if self.running.values().chain(self.waiting.values()).any(|row| row.key == key) {
            return;
        }
        let xid = self.next_xid();
        self.last_seq += 1;
        self.running.insert(xid, Row { xid, key, seq: self.last_seq });
    }

    /// The id of a transaction in `open`, if there is one.
    fn pick(open: &BTreeMap<u64, Row>, which: u64) -> Option<u64> {
        open.keys().nth(which as usize % open.len().max(1)).copied()
    }

    fn commit(&mut self, which: u64) {
        let Some(row) = World::pick(&self.running, which).and_then(|xid| self.running.remove(&xid)) else {
            return;
        };
        self.wal += 16;
        self.committed.push(Committed { row, end: self.wal });
        self.waiting.insert(row.xid, row);
    }

    fn abort(&mut self, which: u64) {
        let Some(xid) = World::pick(&self.running, which) else { return };
        self.running.remove(&xid);
        self.last_completed = self.last_completed.max(xid);
    }

    fn complete(&mut self, which: u64) {
        let Some(xid) = World::pick(&self.waiting, which) else { return };
        self.waiting.remove(&xid);
        self.last_completed = self.last_completed.max(xid);
    }

    /// `pg_current_snapshot`, and the insert LSN after it.
    fn snapshot(&self) -> Snapshot {
        let xmax = self.last_completed.max(2) + 1;
        let open: BTreeSet<u64> = self.running.keys().chain(self.waiting.keys()).copied().collect();
        let shown: Vec<String> = open.range(..xmax).map(u64::to_string).collect();
        let xmin = open.first().map_or(xmax, |first| xmax.min(*first));
        let snapshot = format!("{xmin}:{xmax}:{}", shown.join(","));
        Snapshot { snapshot, xmin: Xid8(xmin), until: end(self.wal) }
    }

    fn partition(row: Row) -> usize {
        row.key as usize % PARTITIONS
    }

    fn is_in_kafka(&self, row: Row) -> bool {
        self.kafka[World::partition(row)].contains(&row.xid)
    }

    /// Reads the next transaction of the stream and sends its row, unless an earlier process has.
    fn deliver(&mut self) {
        let Some(Committed { row, end }) = self.committed.get(self.read).copied() else { return };
        self.read += 1;
        if end > self.slot && !self.is_in_kafka(row) {
            self.kafka[World::partition(row)].push(row.xid);
        }
    }

    /// Everything that was read is acknowledged, and a checkpoint says so.
    fn store_checkpoint(&mut self) {
        let read = self.committed[..self.read].last().map_or(0, |last| last.end);
        let confirmed = self.checkpoint.confirmed.max(read);
        let start = |offset| ScanStart { offset: Offset(offset), last: None };
        let ends = self
            .kafka
            .iter()
            .enumerate()
            .map(|(number, log)| (PartitionNumber(number as i32), start(log.len() as i64)));
        let offsets = ScanStarts::from([("t".to_owned(), ends.collect())]);
        let xid = self.next_xid();
        let stored = self.session.take_confirmed(end(confirmed));
        self.last_completed = self.last_completed.max(xid);
        self.checkpoint.confirmed = confirmed;
        if let Some(stored) = stored {
            self.checkpoint.delivered = Some(stored.snapshot);
            self.checkpoint.offsets = stored.offsets.unwrap_or(std::mem::take(&mut self.checkpoint.offsets));
            self.check_stored();
        }
        self.session.on_written(Xid8(xid), &offsets);
        self.session.take_now();
        if self.session.is_due() {
            self.session.on_taken(self.snapshot());
        }
    }

    /// R5 and R11 of docs/RELIABILITY.md: everything that the stored snapshot shows is in Kafka, and everything invisible
    /// that is in Kafka lies at or behind the stored offsets.
    fn check_stored(&self) {
        let delivered: TransactionSnapshot = self.checkpoint.delivered.as_ref().unwrap().parse().unwrap();
        for Committed { row, .. } in &self.committed {
            let is_shown = delivered.shows(Xid8(row.xid));
            assert!(!is_shown || self.is_in_kafka(*row), "{row:?} is not in Kafka");
        }
        for (number, log) in self.kafka.iter().enumerate() {
            let before = &log[..self.offset_of(number)];
            assert!(before.iter().all(|xid| delivered.shows(Xid8(*xid))), "invisible and before the offsets");
        }
    }

    /// The offset that is stored for a partition.
    fn offset_of(&self, number: usize) -> usize {
        let starts = self.checkpoint.offsets.get("t");
        let start = starts.and_then(|starts| starts.get(&PartitionNumber(number as i32)));
        start.map_or(0, |start| start.offset.0 as usize)
    }

    /// The process dies: the next one reads from the confirmed LSN.
    fn die(&mut self) {
        self.session = DeliveredSnapshots::default();
        let confirmed = self.checkpoint.confirmed.max(self.slot);
        self.read = self.committed.partition_point(|committed| committed.end <= confirmed);
    }

    /// The slot is lost, and the next process creates another and refills. `dies_after` processes die before that, each
    /// after it has sent some rows. Without a delivered snapshot nothing is refilled: the relay stops.
    fn lose_slot(&mut self, during_creation: u64, dies_after: &[usize]) {
        self.die();
        let Some(delivered) = self.checkpoint.delivered.clone() else { return };
        // The creation waits for the transactions that are open, while others begin.
        let open: Vec<u64> = self.running.keys().chain(self.waiting.keys()).copied().collect();
        (0..during_creation % 3).for_each(|key| self.begin(key));
        for (number, xid) in open.into_iter().enumerate() {
            if let Some(place) = self.running.keys().position(|running| *running == xid) {
                match (number as u64 + during_creation).is_multiple_of(4) {
                    true => self.abort(place as u64),
                    false => self.commit(place as u64),
                }
            }
            if let Some(place) = self.waiting.keys().position(|waiting| *waiting == xid) {
                self.complete(place as u64);
            }
        }
        while !self.waiting.is_empty() {
            self.complete(0);
        }
        self.wal += 16;
        self.slot = self.wal;
        let created: TransactionSnapshot = self.snapshot().snapshot.parse().unwrap();
        let delivered: TransactionSnapshot = delivered.parse().unwrap();
        assert!(!delivered.is_ahead_of(&created));
        let state_of = |row: Row| state_of(Xid8(row.xid), &delivered, &created);
        self.check_states(state_of);
        let evidence = self.evidence();
        let mut missing: Vec<Row> = self.committed.iter().map(|committed| committed.row).collect();
        missing.retain(|row| state_of(*row) == RowState::MayBeMissing && !evidence.contains(&row.xid));
        missing.sort_unstable_by_key(|row| row.seq);
        let sent = dies_after.iter().copied().chain([missing.len()]);
        for upto in sent {
            for row in missing.iter().take(upto) {
                // The high-water mark of the partition: rows of this refill have another position.
                let sent_by_refill = self.kafka[World::partition(*row)].contains(&row.xid);
                if !sent_by_refill {
                    self.kafka[World::partition(*row)].push(row.xid);
                }
            }
        }
        self.refills += 1;
        self.checkpoint.confirmed = self.slot;
        self.die();
    }

    /// The rows that the new slot streams are those that its snapshot does not show, and what the delivered snapshot
    /// shows is in Kafka.
    fn check_states(&self, state_of: impl Fn(Row) -> RowState) {
        for Committed { row, end } in &self.committed {
            let state = state_of(*row);
            assert_eq!(state == RowState::InStream, *end > self.slot, "{row:?}");
            assert!(state != RowState::Delivered || self.is_in_kafka(*row), "{row:?} is not in Kafka");
        }
    }

    /// The events that Kafka holds at or behind the frozen offsets.
    fn evidence(&self) -> BTreeSet<u64> {
        let behind = |(number, log): (usize, &Vec<u64>)| log[self.offset_of(number)..].to_vec();
        self.kafka.iter().enumerate().flat_map(behind).collect()
    }

    /// Everything is committed and delivered.
    fn finish(&mut self) {
        while !self.running.is_empty() {
            self.commit(0);
        }
        while !self.waiting.is_empty() {
            self.complete(0);
        }
        while self.read < self.committed.len() {
            self.deliver();
        }
    }
}

#[derive(Clone, Debug)]
enum Step {
    Begin(u64),
    Commit(u64),
    Abort(u64),
    Complete(u64),
    Deliver,
    Checkpoint,
    Die,
    LoseSlot(u64, Vec<usize>),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => any::<u64>().prop_map(Step::Begin),
        6 => any::<u64>().prop_map(Step::Commit),
        1 => any::<u64>().prop_map(Step::Abort),
        6 => any::<u64>().prop_map(Step::Complete),
        6 => Just(Step::Deliver),
        4 => Just(Step::Checkpoint),
        1 => Just(Step::Die),
        1 => (any::<u64>(), prop::collection::vec(0_usize..6, 0..3)).prop_map(|(n, dies)| Step::LoseSlot(n, dies)),
    ]
}

proptest! {
    #[test]
    fn each_row_is_delivered_once_and_in_the_order_of_its_key(steps in prop::collection::vec(step(), 1..200)) {
        let mut world = World::default();
        for step in steps {
            match step {
                Step::Begin(key) => world.begin(key),
                Step::Commit(which) => world.commit(which),
                Step::Abort(which) => world.abort(which),
                Step::Complete(which) => world.complete(which),
                Step::Deliver => world.deliver(),
                Step::Checkpoint => world.store_checkpoint(),
                Step::Die => world.die(),
                Step::LoseSlot(during_creation, dies_after) => world.lose_slot(during_creation, &dies_after),
            }
        }
        world.finish();
        let by_xid: BTreeMap<u64, Row> = world.committed.iter().map(|committed| (committed.row.xid, committed.row)).collect();
        let mut sent: Vec<u64> = world.kafka.iter().flatten().copied().collect();
        for key in 0..KEYS {
            let of_key = |xid: &&u64| by_xid[xid].key == key;
            let committed: Vec<u64> =
                world.committed.iter().map(|committed| committed.row.xid).filter(|xid| of_key(&xid)).collect();
            let delivered: Vec<u64> = world.kafka.iter().flatten().filter(of_key).copied().collect();
            prop_assert_eq!(delivered, committed, "key {} after {} refills", key, world.refills);
        }
        sent.sort_unstable();
        prop_assert_eq!(sent, by_xid.into_keys().collect::<Vec<_>>());
    }
}
