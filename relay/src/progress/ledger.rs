//! The acknowledgement ledger: which part of the stream is safely in Kafka.
//!
//! Every transaction read from the stream has an entry, in the order of reading. The position that may be confirmed to
//! PostgreSQL is the end of the last transaction in the *contiguous* prefix of fully acknowledged transactions. A
//! complete transaction waits for an earlier incomplete one, because PostgreSQL never sends again what lies before the
//! confirmed LSN.
//!
//! A keepalive states that the server has sent everything before its LSN. It counts as a transaction without rows,
//! after the last finished transaction and before an open one. So an idle outbox in a busy cluster never retains WAL,
//! and an unfinished transaction is never passed.

use std::collections::VecDeque;

use pg_replication::{CommitLsn, EndLsn, PgTime};

/// Identifies an entry during the life of the ledger.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct EntryId(pub u64);

/// An acknowledgement or message that contradicts the ledger. It indicates a bug, not an external fault.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum Inconsistent {
    #[error("the stream has a row or a Commit outside a transaction")]
    NoTransaction,
    #[error("the stream begins a transaction inside another")]
    Nested,
    #[error("ledger entry {} was acknowledged, but has no outstanding rows", .0.0)]
    NotOutstanding(EntryId),
    #[error("a record of ledger entry {} was acknowledged before an earlier record of its partition", .0.0)]
    NotOldest(EntryId),
}

/// A transaction whose last outstanding row was acknowledged.
#[derive(Debug, PartialEq, Eq)]
pub struct Completed {
    /// The commit time, by the database's clock.
    pub commit_time: PgTime,
}

struct Entry {
    /// Unknown until the Commit message has been read.
    end: Option<EndLsn>,
    commit: CommitLsn,
    commit_time: PgTime,
    outstanding: u64,
    /// At least one of its rows was sent and acknowledged.
    was_acknowledged: bool,
}

impl Entry {
    fn is_done(&self) -> bool {
        self.end.is_some() && self.outstanding == 0
    }
}

pub struct Ledger {
    entries: VecDeque<Entry>,
    first: EntryId,
    acknowledged: EndLsn,
}

impl Ledger {
    /// A ledger that starts at `acknowledged`: everything before it is in Kafka.
    pub fn new(acknowledged: EndLsn) -> Self {
        Ledger { entries: VecDeque::new(), first: EntryId(0), acknowledged }
    }

    /// A Begin message was read.
    pub fn begin(&mut self, commit: CommitLsn, commit_time: PgTime) -> Result<(), Inconsistent> {
        if self.open().is_some() {
            return Err(Inconsistent::Nested);
        }
        self.entries.push_back(Entry {
            end: None,
            commit,
            commit_time,
            outstanding: 0,
            was_acknowledged: false,
        });
        Ok(())
    }

    /// Adds an outstanding row to the open transaction. Returns the entry to acknowledge it with.
    pub fn add_row(&mut self) -> Result<EntryId, Inconsistent> {
        let next = self.first.0 + self.entries.len() as u64;
        let open = self.entries.back_mut().filter(|entry| entry.end.is_none());
        let open = open.ok_or(Inconsistent::NoTransaction)?;
        open.outstanding += 1;
        Ok(EntryId(next - 1))
    }

    /// Adds a transaction with a single outstanding row. Returns the entry to acknowledge it with.
    pub fn add_single_row_transaction(
        &mut self,
        commit: CommitLsn,
        commit_time: PgTime,
        end: EndLsn,
    ) -> Result<EntryId, Inconsistent> {
        self.begin(commit, commit_time)?;
        let id = self.add_row()?;
        self.commit(end)?;
        Ok(id)
    }

    /// A Commit message was read. Returns the transaction if it had rows and all of them are already acknowledged.
    pub fn commit(&mut self, end: EndLsn) -> Result<Option<Completed>, Inconsistent> {
        let open = self.entries.back_mut().filter(|entry| entry.end.is_none());
        let open = open.ok_or(Inconsistent::NoTransaction)?;
        open.end = Some(end);
        let completed = (open.was_acknowledged && open.outstanding == 0)
            .then_some(Completed { commit_time: open.commit_time });
        self.advance();
        Ok(completed)
    }

    /// A keepalive was read: the server has sent everything before `end`.
    pub fn keepalive(&mut self, end: EndLsn) {
        let passes_open = self.open().is_some_and(|open| end.covers(open.commit));
        if passes_open {
            return;
        }
        // Raising the end of the last finished transaction is equivalent to adding an entry without rows.
        let last_finished = self.entries.iter_mut().rev().find_map(|entry| entry.end.as_mut());
        let last_finished = last_finished.unwrap_or(&mut self.acknowledged);
        *last_finished = (*last_finished).max(end);
    }

    /// A row of entry `id` was acknowledged by Kafka. Returns the transaction if it was the last outstanding row.
    pub fn acknowledge(&mut self, id: EntryId) -> Result<Option<Completed>, Inconsistent> {
        let entry = self.outstanding(id)?;
        entry.was_acknowledged = true;
        self.withdraw(id)
    }

    /// A row of entry `id` was in Kafka already, so it was not sent. Returns the transaction if it was the last
    /// outstanding row and other rows were sent.
    pub fn withdraw(&mut self, id: EntryId) -> Result<Option<Completed>, Inconsistent> {
        let entry = self.outstanding(id)?;
        entry.outstanding -= 1;
        let completed = (entry.is_done() && entry.was_acknowledged)
            .then_some(Completed { commit_time: entry.commit_time });
        self.advance();
        Ok(completed)
    }

    fn outstanding(&mut self, id: EntryId) -> Result<&mut Entry, Inconsistent> {
        let index = id.0.checked_sub(self.first.0).and_then(|index| usize::try_from(index).ok());
        let entry = index.and_then(|index| self.entries.get_mut(index)).filter(|entry| entry.outstanding > 0);
        entry.ok_or(Inconsistent::NotOutstanding(id))
    }

    /// The commit LSN of entry `id`, while the entry is not in the acknowledged prefix.
    pub fn commit_lsn(&self, id: EntryId) -> Option<CommitLsn> {
        let index = usize::try_from(id.0.checked_sub(self.first.0)?).ok()?;
        self.entries.get(index).map(|entry| entry.commit)
    }

    /// The end of the contiguous acknowledged prefix: the position that may be confirmed to PostgreSQL.
    pub fn acknowledged(&self) -> EndLsn {
        self.acknowledged
    }

    /// The oldest entry that is not in the acknowledged prefix.
    pub fn first_unacknowledged(&self) -> EntryId {
        self.first
    }

    /// The number of transactions that are read and not in the acknowledged prefix.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether everything that was read is acknowledged.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// The commit time of the oldest transaction that is not acknowledged.
    pub fn oldest_commit_time(&self) -> Option<PgTime> {
        self.entries.front().map(|entry| entry.commit_time)
    }

    fn open(&self) -> Option<&Entry> {
        self.entries.back().filter(|entry| entry.end.is_none())
    }

    fn advance(&mut self) {
        while let Some(end) = self.entries.front().filter(|entry| entry.is_done()).and_then(|entry| entry.end)
        {
            self.acknowledged = self.acknowledged.max(end);
            self.entries.pop_front();
            self.first.0 += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{commit, end};
    use proptest::prelude::*;

    /// A transaction whose commit record spans `lsn..lsn + 8`.
    fn transaction(ledger: &mut Ledger, lsn: u64, rows: usize) -> Vec<EntryId> {
        ledger.begin(commit(lsn), PgTime::default()).unwrap();
        let ids = (0..rows).map(|_| ledger.add_row().unwrap()).collect();
        ledger.commit(end(lsn + 8)).unwrap();
        ids
    }

    #[test]
    fn only_the_contiguous_prefix_counts_as_acknowledged() {
        let mut ledger = Ledger::new(end(0));
        let first = transaction(&mut ledger, 100, 1);
        let second = transaction(&mut ledger, 200, 1);
        ledger.acknowledge(second[0]).unwrap();
        assert_eq!(ledger.acknowledged(), end(0));
        ledger.acknowledge(first[0]).unwrap();
        assert_eq!(ledger.acknowledged(), end(208));
        assert!(ledger.is_empty());
    }

    #[test]
    fn a_keepalive_advances_an_idle_ledger_and_waits_for_outstanding_rows() {
        let mut ledger = Ledger::new(end(0));
        ledger.keepalive(end(50));
        assert_eq!(ledger.acknowledged(), end(50));
        let rows = transaction(&mut ledger, 100, 1);
        ledger.keepalive(end(150));
        assert_eq!(ledger.acknowledged(), end(50));
        ledger.acknowledge(rows[0]).unwrap();
        assert_eq!(ledger.acknowledged(), end(150));
    }

    #[test]
    fn a_keepalive_never_passes_an_open_transaction() {
        let mut ledger = Ledger::new(end(0));
        ledger.begin(commit(100), PgTime::default()).unwrap();
        ledger.keepalive(end(500));
        assert_eq!(ledger.acknowledged(), end(0));
        ledger.keepalive(end(100));
        assert_eq!(
            ledger.acknowledged(),
            end(100),
            "a position that ends where the commit record begins is before it"
        );
        ledger.commit(end(108)).unwrap();
        assert_eq!(ledger.acknowledged(), end(108));
    }

    #[test]
    fn snapshot_rows_acknowledge_nothing_beyond_the_start_of_the_stream() {
        let mut ledger = Ledger::new(end(100));
        let rows = [0; 3]
            .map(|_| ledger.add_single_row_transaction(commit(99), PgTime::default(), end(100)).unwrap());
        ledger.acknowledge(rows[1]).unwrap();
        assert_eq!(ledger.first_unacknowledged(), rows[0]);
        ledger.acknowledge(rows[0]).unwrap();
        assert_eq!(ledger.first_unacknowledged(), rows[2]);
        assert_eq!(ledger.acknowledged(), end(100));
    }

    #[test]
    fn a_second_acknowledgement_is_an_error_and_changes_nothing() {
        let mut ledger = Ledger::new(end(0));
        let rows = transaction(&mut ledger, 100, 1);
        ledger.acknowledge(rows[0]).unwrap();
        assert_eq!(ledger.acknowledge(rows[0]), Err(Inconsistent::NotOutstanding(rows[0])));
        assert_eq!(ledger.commit(end(300)), Err(Inconsistent::NoTransaction));
        assert_eq!(ledger.acknowledged(), end(108));
    }

    proptest! {
        /// For any mix of transactions, keepalives and acknowledgements in any order, the acknowledged position never
        /// passes a transaction with an outstanding row, never goes back, and reaches the end once everything is
        /// acknowledged.
        #[test]
        fn the_acknowledged_position_is_always_safe(
            sizes in prop::collection::vec(0usize..4, 1..40),
            order in prop::collection::vec(any::<prop::sample::Index>(), 0..160),
            keepalives in prop::collection::vec(any::<bool>(), 40),
        ) {
            let mut ledger = Ledger::new(end(0));
            let mut outstanding: Vec<(u64, EntryId)> = Vec::new();
            let mut order = order.into_iter();
            let mut last = 0;
            let mut previous = ledger.acknowledged();
            for (n, rows) in sizes.iter().enumerate() {
                let lsn = 100 * (n as u64 + 1);
                outstanding.extend(transaction(&mut ledger, lsn, *rows).into_iter().map(|id| (lsn, id)));
                last = lsn + 8;
                if keepalives[n] {
                    last = lsn + 50;
                    ledger.keepalive(end(last));
                }
                if let Some(pick) = order.next() && !outstanding.is_empty() {
                    let (_, id) = outstanding.swap_remove(pick.index(outstanding.len()));
                    ledger.acknowledge(id).unwrap();
                }
                prop_assert!(outstanding.iter().all(|(lsn, _)| !ledger.acknowledged().covers(commit(*lsn))));
                prop_assert!(ledger.acknowledged() >= previous);
                previous = ledger.acknowledged();
            }
            while !outstanding.is_empty() {
                let pick = order.next().map_or(0, |pick| pick.index(outstanding.len()));
                let (_, id) = outstanding.swap_remove(pick);
                ledger.acknowledge(id).unwrap();
                prop_assert!(outstanding.iter().all(|(lsn, _)| !ledger.acknowledged().covers(commit(*lsn))));
            }
            prop_assert_eq!(ledger.acknowledged(), end(last));
            prop_assert!(ledger.is_empty());
        }
    }
}
