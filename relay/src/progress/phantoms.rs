//! Phantoms: records of this outbox in Kafka whose rows the server does not have.

use outbox::Position;

/// Records of this outbox at positions outside of the server's WAL history.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Phantoms {
    pub count: u64,
    /// The event ids of the first of them.
    pub ids: Vec<String>,
    /// The highest of those on the server's timeline beyond the end of its WAL.
    pub ahead: Option<Position>,
    /// One of the records `ahead` was written while this server was running, so another server wrote it.
    pub by_another_server: bool,
}

impl Phantoms {
    /// Maximum number of ids kept for administrators. A failover may leave thousands of phantoms.
    pub const MAX_IDS: usize = 100;

    /// Adds the result of another scan.
    pub fn add(&mut self, other: Phantoms) {
        self.count += other.count;
        self.ids.extend(other.ids);
        self.ids.truncate(Self::MAX_IDS);
        self.ahead = self.ahead.max(other.ahead);
        self.by_another_server |= other.by_another_server;
    }
}
