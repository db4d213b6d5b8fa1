//! The slot as the server shows it.

use std::time::{Duration, Instant};

use pg_replication::EndLsn;

/// The slot as `pg_replication_slots` shows it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SlotState {
    /// Output plugin; `None` for a physical slot.
    pub plugin: Option<String>,
    /// Database it belongs to.
    pub database: Option<String>,
    /// Whether it ends with the connection that made it.
    pub temporary: bool,
    /// Whether it sends transactions when they are prepared, before it is known whether they commit.
    pub two_phase: bool,
    /// Whether a connection holds it, and which process.
    pub active_pid: Option<i64>,
    /// `reserved`, `extended`, `unreserved` or `lost`.
    pub wal_status: Option<String>,
    /// Why it was invalidated (Postgres 17 and newer).
    pub invalidation_reason: Option<String>,
    /// What the server knows to be confirmed.
    pub confirmed: Option<EndLsn>,
    /// The oldest WAL it keeps.
    pub restart: Option<EndLsn>,
    /// Bytes that may still be written before it is in danger; `None` without a limit.
    pub safe_wal_bytes: Option<i64>,
    /// The server's current LSN at the time of the look.
    pub current: Option<EndLsn>,
    /// For how long nobody has held it, by the server's account (Postgres 17 and newer).
    pub inactive_for: Option<Duration>,
    /// The standbys' slots that its holder waits for at the moment: the value of `synchronized_standby_slots`
    /// (Postgres 17 and newer).
    pub waits_for_standbys: Option<String>,
}

impl SlotState {
    /// Whether the server has given the slot's WAL up.
    pub fn is_lost(&self) -> bool {
        self.wal_status.as_deref() == Some("lost") || self.invalidation_reason.is_some()
    }

    /// How many bytes of log lie between `lsn` and the server's current end, where both are known.
    pub fn behind(&self, lsn: Option<EndLsn>) -> Option<u64> {
        Some(self.current?.lsn().as_u64().saturating_sub(lsn?.lsn().as_u64()))
    }

    /// Why it was given up, as a sentence.
    pub fn loss_reason(&self) -> String {
        let cause = self.invalidation_reason.as_deref().unwrap_or("its WAL was removed");
        format!("the slot is invalidated: {cause}")
    }
}

/// When the server was last asked for the slot and answered, over whichever connection, and what it showed.
pub type LastSlotLook<'a> = Option<(Instant, Option<&'a SlotState>)>;
