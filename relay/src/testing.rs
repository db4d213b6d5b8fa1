//! LSNs and positions, for tests that name them by a number.

use outbox::Position;
use pg_replication::{CommitLsn, EndLsn, Lsn};

pub fn end(lsn: u64) -> EndLsn {
    EndLsn::new(Lsn::from(lsn))
}

pub fn commit(lsn: u64) -> CommitLsn {
    CommitLsn::new(Lsn::from(lsn))
}

/// The first row of the transaction with this commit LSN, on the first timeline.
pub fn at(commit_lsn: u64) -> Position {
    Position { timeline: 1, commit_lsn, index: 0 }
}
