//! Which part of the source is in Kafka: of the stream by the ledger, of the initial snapshot by its cursor.

use outbox::Position;
use pg_replication::{CommitLsn, EndLsn, Lsn, PgTime};

use super::ingest::Origin;
use crate::progress::ledger::{EntryId, Inconsistent, Ledger};
use crate::progress::lineage::{Lineage, commit_lsn};
use crate::progress::snapshot_cursor::{Seq, SnapshotCursor};

pub(super) struct SourceProgress {
    pub(super) ledger: Ledger,
    /// The server's timelines. Nothing committed at or after their end can be in Kafka when the session starts.
    pub(super) lineage: Lineage,
    start: EndLsn,
    /// Set during the initial snapshot.
    snapshot: Option<SnapshotCursor>,
}

impl SourceProgress {
    /// Every row before `start` is in Kafka, or belongs to the initial snapshot, whose rows up to `snapshot_cursor` are
    /// in Kafka.
    pub(super) fn new(start: EndLsn, lineage: Lineage, snapshot_cursor: Option<Seq>) -> SourceProgress {
        SourceProgress {
            ledger: Ledger::new(start),
            lineage,
            start,
            snapshot: snapshot_cursor.map(SnapshotCursor::new),
        }
    }

    /// Whether the transaction lies before the start of the session, so that Kafka has it.
    pub(super) fn is_before_start(&self, commit: CommitLsn) -> bool {
        self.start.covers(commit)
    }

    /// The byte before the slot's start. No commit can be there: a commit record starts at a multiple of eight bytes
    /// and is longer than one byte.
    pub(super) fn before_start(&self) -> CommitLsn {
        CommitLsn::new(Lsn::from(self.start.lsn().as_u64().saturating_sub(1)))
    }

    /// Adds a row that is sent or waits. Returns the entry to acknowledge it with.
    pub(super) fn enter(&mut self, origin: Origin, time: PgTime) -> Result<EntryId, Inconsistent> {
        match origin.seq() {
            None => self.ledger.add_row(),
            Some(seq) => {
                let entry = self.ledger.add_single_row_transaction(self.before_start(), time, self.start)?;
                self.snapshot.iter_mut().for_each(|cursor| cursor.on_sent(entry, seq));
                Ok(entry)
            }
        }
    }

    /// A row was in Kafka already.
    pub(super) fn on_duplicate(&mut self, origin: Origin) {
        if let (Some(seq), Some(cursor)) = (origin.seq(), &mut self.snapshot) {
            cursor.on_duplicate(seq);
        }
    }

    /// During the initial snapshot: all its rows up to this `seq` are in Kafka.
    pub(super) fn snapshot_cursor(&self) -> Option<Seq> {
        let first_unacknowledged = self.ledger.first_unacknowledged();
        self.snapshot.as_ref().map(|cursor| cursor.reached(first_unacknowledged))
    }

    /// Moves the cursor past the rows that are in Kafka by now.
    pub(super) fn advance_snapshot_cursor(&mut self) {
        let first_unacknowledged = self.ledger.first_unacknowledged();
        self.snapshot.iter_mut().for_each(|cursor| cursor.advance(first_unacknowledged));
    }

    /// All rows of the snapshot are in Kafka.
    pub(super) fn finish_snapshot(&mut self) {
        self.snapshot = None;
    }

    /// The first row that is not in Kafka. `blocked_in` is the transaction of the row that blocks the stream, if one
    /// does.
    pub(super) fn first_unfinished(&self, blocked_in: Option<CommitLsn>) -> Option<Position> {
        let (commit, index) = match (self.snapshot_cursor(), blocked_in) {
            (Some(seq), _) => (self.before_start(), Seq(seq.0.saturating_add(1)).as_index()),
            (None, Some(commit)) => (commit, 0),
            (None, None) => (self.ledger.commit_lsn(self.ledger.first_unacknowledged())?, 0),
        };
        Some(self.lineage.position(commit, index))
    }

    /// Whether the row at `position` is in Kafka.
    pub(super) fn has_delivered(&self, position: Position) -> bool {
        let commit = commit_lsn(position);
        match self.snapshot_cursor() {
            Some(seq) if commit == self.before_start() => Seq::from_index(position.index) <= seq,
            _ => self.ledger.acknowledged().covers(commit),
        }
    }

    /// Whether all rows from before the session are in Kafka.
    pub(super) fn is_caught_up(&self) -> bool {
        self.snapshot.is_none() && self.ledger.acknowledged() >= self.lineage.horizon()
    }
}
