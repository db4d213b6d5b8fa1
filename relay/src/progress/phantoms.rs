//! Records of this outbox whose rows the server does not have.

use outbox::Position;

/// Records of ours at positions the server's log never went through.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Phantoms {
    /// How many.
    pub count: u64,
    /// Event ids of the first of them.
    pub ids: Vec<String>,
    /// The highest that lies on the server's own timeline, beyond the end of its log.
    pub ahead: Option<Position>,
    /// One of those was written while this server was running: another server's.
    pub by_another_server: bool,
}

impl Phantoms {
    /// Ids kept for a person to look at; an outage may have made thousands of phantoms.
    pub const MAX_IDS: usize = 100;

    /// Adds what another search found.
    pub fn add(&mut self, other: Phantoms) {
        self.count += other.count;
        self.ids.extend(other.ids);
        self.ids.truncate(Self::MAX_IDS);
        self.ahead = self.ahead.max(other.ahead);
        self.by_another_server |= other.by_another_server;
    }
}
