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
    use std::collections::BTreeMap;

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
}
