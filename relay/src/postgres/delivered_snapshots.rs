//! The delivered snapshot: which transactions have all their rows in Kafka. It decides which rows may be dropped, and
//! which ones a refill looks at ([`missing_rows`](super::missing_rows)).
//!
//! The snapshot is taken first, then the server's insert LSN: every transaction visible in the snapshot has its commit
//! record before that LSN. So once everything before the LSN is confirmed, everything in the snapshot is in Kafka.
//! Until then the pair is pending. It is never carried into another session: a server that crashed may have lost the
//! end of its WAL and assign the transaction ids in it again, which the old snapshot would show as delivered.
//!
//! With the snapshot, offsets are stored before which no partition has a row of a transaction *invisible* in it: where
//! a refill starts its scan. Which offsets are safe is not obvious:
//!
//! 1. The offsets at the time of the snapshot are not. A transaction that waits for a synchronous standby is in the
//!    stream, and its rows may be in Kafka, while every snapshot still shows it as running.
//! 2. Offsets from before an earlier snapshot whose xmax is at most this one's xmin are not either. xmax is one past
//!    the last transaction that *completed*, so the waiting transaction may lie beyond it and have been in Kafka
//!    already.
//! 3. Offsets stored by a checkpoint whose own transaction id lies before this snapshot's xmin are safe. That id was
//!    assigned after the offsets were determined, so the rows of every later id come after them; and an invisible
//!    transaction is at or beyond xmin.

use std::time::{Duration, Instant};

use pg_replication::EndLsn;

use crate::postgres::missing_rows::Xid8;
use crate::topics::partitions::ScanStarts;

/// Partitions are dropped by the day, so this is often enough, and costs one cheap query.
const TAKE_EVERY: Duration = Duration::from_secs(1);

#[derive(Clone, Debug)]
pub struct Snapshot {
    /// In the text format of `pg_snapshot`.
    pub snapshot: String,
    /// Its xmin: no older transaction is invisible in it.
    pub xmin: Xid8,
    /// The server's insert LSN after it was taken.
    pub until: EndLsn,
}

/// The snapshot as stored in the checkpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DurableSnapshot {
    pub snapshot: String,
    /// `None` keeps the offsets stored with an older snapshot, which are safe for a newer one as well.
    pub offsets: Option<ScanStarts>,
}

#[derive(Debug, Default)]
pub struct DeliveredSnapshots {
    pending: Option<(DurableSnapshot, EndLsn)>,
    taken: Option<Instant>,
    /// The newest offsets known to be safe.
    fitting: Option<ScanStarts>,
    /// Newer offsets, with the transaction id of their checkpoint: safe once an xmin has passed it.
    candidate: Option<(Xid8, ScanStarts)>,
}

impl DeliveredSnapshots {
    /// Takes the pending snapshot, if a checkpoint at `confirmed` makes it durable.
    pub fn take_confirmed(&mut self, confirmed: EndLsn) -> Option<DurableSnapshot> {
        self.pending.take_if(|(_, until)| *until <= confirmed).map(|(stored, _)| stored)
    }

    /// Transaction `xid` has stored a checkpoint with `offsets`.
    pub fn on_written(&mut self, xid: Xid8, offsets: &ScanStarts) {
        self.candidate.get_or_insert_with(|| (xid, offsets.clone()));
    }

    /// Whether it is time to take a snapshot.
    pub fn is_due(&self) -> bool {
        self.pending.is_none() && self.taken.is_none_or(|at| at.elapsed() >= TAKE_EVERY)
    }

    /// Tests do not wait until the next one is due.
    #[cfg(test)]
    pub fn take_now(&mut self) {
        self.taken = None;
    }

    pub fn on_taken(&mut self, taken: Snapshot) {
        if let Some((_, offsets)) = self.candidate.take_if(|(xid, _)| *xid < taken.xmin) {
            self.fitting = Some(offsets);
        }
        let stored = DurableSnapshot { snapshot: taken.snapshot, offsets: self.fitting.clone() };
        self.pending = Some((stored, taken.until));
        self.taken = Some(Instant::now());
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use proptest::prelude::*;

    use super::*;
    use crate::progress::offset::Offset;
    use crate::testing::end;
    use crate::topics::partitions::{PartitionNumber, ScanStart};

    fn at(offset: i64) -> ScanStarts {
        let start = ScanStart { offset: Offset(offset), last: None };
        ScanStarts::from([("t".into(), BTreeMap::from([(PartitionNumber(0), start)]))])
    }
    fn taken(snapshot: &str, xmin: u64, until: u64) -> Snapshot {
        Snapshot { snapshot: snapshot.into(), xmin: Xid8(xmin), until: end(until) }
    }

    #[test]
    fn a_snapshot_is_stored_only_when_its_lsn_is_confirmed() {
        let mut delivered = DeliveredSnapshots::default();
        assert!(delivered.is_due());
        delivered.on_taken(taken("s", 10, 100));
        assert!(!delivered.is_due(), "one at a time");
        assert_eq!(delivered.take_confirmed(end(99)), None);
        assert_eq!(delivered.take_confirmed(end(100)).unwrap().snapshot, "s");
        assert_eq!(delivered.take_confirmed(end(200)), None, "stored once");
    }

    /// A transaction that waits for a synchronous standby is in the stream and in Kafka, and still invisible.
    #[test]
    fn offsets_of_a_checkpoint_that_is_newer_than_an_open_transaction_are_not_safe() {
        let mut delivered = DeliveredSnapshots::default();
        // 7 waits, its record is at offset 4; the checkpoint is transaction 8 and knows offset 5.
        delivered.on_written(Xid8(8), &at(5));
        delivered.on_taken(taken("7:9:7", 7, 100));
        assert_eq!(
            delivered.take_confirmed(end(100)),
            Some(DurableSnapshot { snapshot: "7:9:7".into(), offsets: None })
        );
        delivered.on_taken(taken("9:9:", 9, 200));
        assert_eq!(delivered.take_confirmed(end(200)).unwrap().offsets, Some(at(5)));
    }

    /// A model of a server, a stream and a partition. The stream sees a transaction when its commit record is written,
    /// snapshots see it later: in between it waits for a synchronous standby.
    #[derive(Default)]
    struct World {
        last_xid: u64,
        last_completed: u64,
        wal: u64,
        running: BTreeSet<u64>,
        /// Commit record written, in the stream, not yet visible: id and end of the commit record.
        waiting: BTreeSet<u64>,
        /// Ids of transactions with a record in the partition, by offset.
        partition: Vec<u64>,
        /// End of the commit record of each.
        ends: BTreeMap<u64, u64>,
        /// In the stream and not yet in Kafka.
        unsent: Vec<u64>,
        confirmed: u64,
    }

    impl World {
        fn pick(set: &BTreeSet<u64>, which: usize) -> Option<u64> {
            set.iter().nth(which % set.len().max(1)).copied()
        }
        fn begin(&mut self) -> u64 {
            self.last_xid += 1;
            self.last_xid
        }
        fn commit(&mut self, which: usize) {
            let Some(xid) = World::pick(&self.running, which) else { return };
            self.running.remove(&xid);
            self.wal += 10;
            self.ends.insert(xid, self.wal);
            self.unsent.push(xid);
            self.waiting.insert(xid);
        }
        fn complete(&mut self, which: usize) {
            let Some(xid) = World::pick(&self.waiting, which) else { return };
            self.waiting.remove(&xid);
            self.last_completed = self.last_completed.max(xid);
        }
        fn deliver(&mut self) {
            for xid in self.unsent.drain(..) {
                self.partition.push(xid);
                self.confirmed = self.ends[&xid];
            }
        }
        fn is_visible(&self, xid: u64) -> bool {
            xid <= self.last_completed && !self.running.contains(&xid) && !self.waiting.contains(&xid)
        }
        fn snapshot(&self) -> Snapshot {
            let open = self.running.iter().chain(&self.waiting).min().copied();
            let xmax = self.last_completed + 1;
            let xmin = open.map_or(xmax, |open| open.min(xmax));
            let visible = (1..=self.last_xid).filter(|xid| self.is_visible(*xid));
            let visible: Vec<String> = visible.map(|xid| xid.to_string()).collect();
            Snapshot { snapshot: visible.join(","), xmin: Xid8(xmin), until: end(self.wal) }
        }
    }

    proptest! {
        /// The stored pair is correct: everything visible is in Kafka, and everything invisible that is in Kafka lies
        /// at or behind the stored offsets.
        #[test]
        fn r5_r11_what_is_stored_is_true(steps in prop::collection::vec((0..5_u8, any::<usize>()), 1..200)) {
            let mut world = World::default();
            let mut delivered = DeliveredSnapshots::default();
            let mut offsets_in_row = 0;
            for (step, which) in steps {
                match step {
                    0 => {
                        let xid = world.begin();
                        world.running.insert(xid);
                    }
                    1 => world.commit(which),
                    2 => world.complete(which),
                    3 => world.deliver(),
                    _ => {
                        // A checkpoint, as the writer stores it.
                        let offsets = at(world.partition.len() as i64);
                        let stored = delivered.take_confirmed(end(world.confirmed));
                        let xid = world.begin();
                        world.last_completed = world.last_completed.max(xid);
                        if let Some(stored) = stored {
                            if let Some(offsets) = &stored.offsets {
                                offsets_in_row = offsets["t"][&PartitionNumber(0)].offset.0;
                            }
                            let visible: BTreeSet<u64> =
                                stored.snapshot.split(',').filter_map(|xid| xid.parse().ok()).collect();
                            for xid in world.ends.keys().filter(|xid| visible.contains(xid)) {
                                prop_assert!(world.partition.contains(xid), "{xid} is not in Kafka");
                            }
                            let before = world.partition.iter().take(offsets_in_row as usize);
                            for xid in before {
                                prop_assert!(visible.contains(xid), "{xid} is invisible and before the offsets");
                            }
                        }
                        delivered.on_written(Xid8(xid), &offsets);
                        delivered.take_now();
                        if delivered.is_due() {
                            delivered.on_taken(world.snapshot());
                        }
                    }
                }
            }
        }
    }
}
