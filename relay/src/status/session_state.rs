//! What the session reports of its stream and of the connection beside it.

use std::time::{Duration, Instant};

use pg_replication::{Host, PgTime};

use super::signals::SessionStats;

pub(super) struct SessionState {
    pub(super) stats: SessionStats,
    /// When the session last reported.
    pub(super) reported_at: Instant,
    /// Last time the stream brought something new.
    pub(super) received_at: Instant,
    /// When the session's own connection was last queried with success.
    pub(super) answered_at: Option<Instant>,
    /// The address the session is connected to.
    pub(super) server: Option<Host>,
    /// The server's last notice about a standby it waits for, until the stream moves again.
    pub(super) awaited_standby: Option<String>,
}

impl SessionState {
    pub(super) fn new(now: Instant) -> SessionState {
        SessionState {
            stats: SessionStats::default(),
            reported_at: now,
            received_at: now,
            answered_at: None,
            server: None,
            awaited_standby: None,
        }
    }

    pub(super) fn on_stream_opened(&mut self, now: Instant) {
        (self.reported_at, self.received_at) = (now, now);
    }

    pub(super) fn set_stats(&mut self, stats: SessionStats, now: Instant) {
        self.reported_at = now;
        if stats.received != self.stats.received {
            self.received_at = now;
            self.awaited_standby = None;
        }
        self.stats = stats;
    }

    /// The session has no connections any more.
    pub(super) fn on_closed(&mut self) {
        (self.server, self.answered_at, self.awaited_standby) = (None, None, None);
    }

    /// The session's clients are gone. Rows that were read and not acknowledged still wait.
    pub(super) fn clear_in_flight(&mut self) {
        self.stats = SessionStats {
            in_flight_events: 0,
            in_flight_bytes: 0,
            stall_reason: None,
            writing_since: None,
            ..self.stats
        };
    }

    pub(super) fn set_awaited_standby(&mut self, notice: &str) {
        if self.awaited_standby.as_deref() != Some(notice) {
            tracing::warn!("PostgreSQL says: {notice}");
            self.awaited_standby = Some(notice.to_owned());
        }
    }

    /// When the server was last known to respond to the session.
    pub(super) fn last_sign(&self) -> Instant {
        self.answered_at.map_or(self.received_at, |at| at.max(self.received_at))
    }

    /// Age of the oldest row that was read and not acknowledged.
    pub(super) fn read_lag(&self) -> Duration {
        let micros = self.stats.oldest_commit.map_or(0, |commit| {
            // Negative when the database's clock is ahead of this machine's.
            PgTime::now().as_micros().saturating_sub(commit.as_micros()).max(0)
        });
        Duration::from_micros(micros.unsigned_abs())
    }
}
