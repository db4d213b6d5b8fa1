//! LSNs and positions by a number, and a configuration, for tests.

use outbox::Position;
use pg_replication::{CommitLsn, EndLsn, Lsn};
use serde_json::json;

use crate::config::Config;

/// A configuration with what is required and nothing else.
pub fn config() -> Config {
    serde_json::from_value(json!({
        "version": 1, "name": "orders",
        "source": {"host": "h", "database": "shop", "user": "u", "publication": {"name": "p"}, "slot": {"name": "s"}},
        "sink": {"bootstrapServers": "k:1"},
    }))
    .unwrap()
}

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
