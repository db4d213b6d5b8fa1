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
    /// Whether the server drops it when the connection that created it ends.
    pub temporary: bool,
    /// Whether it sends transactions when they are prepared, before it is known whether they commit.
    pub two_phase: bool,
    /// The process ID of the walsender that holds it, if any.
    pub active_pid: Option<i64>,
    /// `reserved`, `extended`, `unreserved` or `lost`.
    pub wal_status: Option<String>,
    /// Why it was invalidated (PostgreSQL 17 and newer).
    pub invalidation_reason: Option<String>,
    /// The LSN the server regards as confirmed.
    pub confirmed: Option<EndLsn>,
    /// The oldest WAL it keeps.
    pub restart: Option<EndLsn>,
    /// Bytes that may still be written before the slot is at risk; `None` without a limit.
    pub safe_wal_bytes: Option<i64>,
    /// The server's current LSN at the time of the query.
    pub current: Option<EndLsn>,
    /// For how long no connection has held it, as reported by the server (PostgreSQL 17 and newer).
    pub inactive_for: Option<Duration>,
    /// The standbys' slots that its walsender currently waits for: the value of `synchronized_standby_slots`
    /// (PostgreSQL 17 and newer).
    pub waits_for_standbys: Option<String>,
}

impl SlotState {
    /// Whether the server has invalidated the slot or removed its WAL.
    pub fn is_lost(&self) -> bool {
        self.wal_status.as_deref() == Some("lost") || self.invalidation_reason.is_some()
    }

    /// Bytes of WAL between `lsn` and the server's current LSN, where both are known.
    pub fn behind(&self, lsn: Option<EndLsn>) -> Option<u64> {
        Some(self.current?.bytes_since(lsn?))
    }

    /// Why it was lost, as a sentence.
    pub fn loss_reason(&self) -> String {
        let cause = self.invalidation_reason.as_deref().unwrap_or("its WAL was removed");
        format!("the slot is invalidated: {cause}")
    }
}

/// The last answered query of the slot, over any connection: when it was sent, and what the server showed.
pub type LastSlotObservation<'a> = Option<(Instant, Option<&'a SlotState>)>;
