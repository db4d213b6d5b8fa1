//! Detects that this process may have lost the slot.
//!
//! The slot is the only lock, and Kafka does not know it. So the process itself has to notice that it may have lost the
//! slot, and must then drop its unsent records before it does anything else. There are two signs:
//!
//! - **The process was paused.** The server ends the stream of a client that is silent for `wal_sender_timeout`, and
//!   another relay may start to stream. A process that was stopped, swapped out or starved of CPU for half of that
//!   timeout assumes that this happened. Suspending the machine stops the monotonic clock, too, so the wall clock
//!   counts as well. The price: a wall clock set forward by that much costs one reconnect.
//! - **The server reports it.** The session and the observer query who holds the slot, each over its SQL connection.
//!   While Kafka is down and the in-flight budget is used up, the relay does not read the stream, so it would notice
//!   the stream's end late.
//!
//! A result over either connection counts. A connection that fails decides nothing while the other one works.
//!
//! This narrows the window in which two processes send, but does not close it: after a pause, librdkafka may send
//! records from its queue before the first turn of the event loop.

use std::time::{Duration, Instant, SystemTime};

use crate::error::{ErrorKind, RelayError};
use crate::status::{LastSlotObservation, SlotState};

/// The relay queries the server every second, but a busy machine runs these queries late. So a shorter silence means
/// nothing, however short `wal_sender_timeout` is.
const MIN_SILENCE: Duration = Duration::from_secs(5);

#[derive(Debug)]
pub struct SlotGuard {
    /// Half of the server's `wal_sender_timeout`.
    limit: Duration,
    /// Process id of the walsender that serves the stream.
    walsender_pid: Option<i64>,
    began: Instant,
    last_turn: Now,
}

/// The time on both clocks.
#[derive(Clone, Copy, Debug)]
pub struct Now {
    /// Never goes back, but stops while the machine is suspended.
    pub monotonic: Instant,
    /// Continues while the machine is suspended, but may be set.
    pub wall: SystemTime,
}

impl Now {
    /// Reads both clocks.
    pub fn read() -> Now {
        Now { monotonic: Instant::now(), wall: SystemTime::now() }
    }

    fn since(self, earlier: Now) -> Duration {
        let monotonic = self.monotonic.saturating_duration_since(earlier.monotonic);
        monotonic.max(self.wall.duration_since(earlier.wall).unwrap_or_default())
    }
}

impl SlotGuard {
    /// This relay acquired the slot at `now`, through the walsender `walsender_pid`.
    pub fn new(limit: Duration, walsender_pid: Option<i64>, now: Now) -> SlotGuard {
        SlotGuard { limit, walsender_pid, began: now.monotonic, last_turn: now }
    }

    /// Called at every turn of the event loop, before anything is sent.
    pub fn on_loop_turn(&mut self, now: Now) -> Result<(), RelayError> {
        let pause = now.since(self.last_turn);
        self.last_turn = now;
        if pause < self.limit {
            return Ok(());
        }
        let what =
            format!("this process was paused for {} s, so another relay may hold the slot", pause.as_secs());
        Err(RelayError::new(ErrorKind::ProcessPaused, what))
    }

    /// Called regularly with the last slot state from the server. While `reading`, the stream itself detects a silent
    /// server.
    pub fn check(
        &self,
        now: Instant,
        reading: bool,
        seen: LastSlotObservation<'_>,
    ) -> Result<(), RelayError> {
        // A query from before this relay acquired the slot does not describe its current holder.
        let seen = seen.filter(|(queried, _)| *queried > self.began);
        match seen {
            Some((_, None)) => {
                let what = "the slot was dropped while this relay was streaming from it";
                return Err(RelayError::new(ErrorKind::SlotLost, what));
            }
            Some((_, Some(slot))) => self.check_holder(slot)?,
            None => {}
        }
        let silence = now.saturating_duration_since(seen.map_or(self.began, |(queried, _)| queried));
        if reading || silence < self.limit.max(MIN_SILENCE) {
            return Ok(());
        }
        let what = format!(
            "the server has not responded to a query for {} s, while the stream is not read",
            silence.as_secs()
        );
        Err(RelayError::new(ErrorKind::DatabaseUnreachable, what))
    }

    fn check_holder(&self, slot: &SlotState) -> Result<(), RelayError> {
        if slot.is_lost() {
            return Err(RelayError::new(ErrorKind::SlotLost, slot.loss_reason()));
        }
        if self.walsender_pid.is_none() || slot.active_pid == self.walsender_pid {
            return Ok(());
        }
        Err(match slot.active_pid {
            Some(pid) => RelayError::new(
                ErrorKind::SlotActive,
                format!("another client holds the slot now, through the server process with pid {pid}"),
            ),
            None => RelayError::new(ErrorKind::DatabaseUnreachable, "the server ended this relay's stream"),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: Duration = Duration::from_secs(30);
    const SECOND: Duration = Duration::from_secs(1);

    fn reason(result: Result<(), RelayError>) -> Option<ErrorKind> {
        result.err().map(|error| error.kind)
    }

    /// `start`, with each clock moved on by the given time.
    fn after(start: Now, monotonic: Duration, wall: Duration) -> Now {
        Now { monotonic: start.monotonic + monotonic, wall: start.wall + wall }
    }

    fn guard() -> (SlotGuard, Instant) {
        let start = Now::read();
        (SlotGuard::new(LIMIT, Some(7), start), start.monotonic)
    }

    #[test]
    fn a_process_that_was_paused_for_long_gives_the_slot_up() {
        let start = Now::read();
        let mut slot_guard = SlotGuard::new(LIMIT, Some(7), start);
        let mut turn =
            |seconds| reason(slot_guard.on_loop_turn(after(start, seconds * SECOND, seconds * SECOND)));
        assert_eq!(turn(29), None);
        assert_eq!(turn(58), None, "the pause counts from the last turn");
        assert_eq!(turn(88), Some(ErrorKind::ProcessPaused));
    }

    #[test]
    fn a_suspended_machine_stops_one_clock_only() {
        let start = Now::read();
        let mut slot_guard = SlotGuard::new(LIMIT, Some(7), start);
        let suspended = after(start, SECOND, 31 * SECOND);
        assert_eq!(reason(slot_guard.on_loop_turn(suspended)), Some(ErrorKind::ProcessPaused));
        let set_back = Now { wall: start.wall - 100 * SECOND, ..suspended };
        assert_eq!(
            reason(slot_guard.on_loop_turn(set_back)),
            None,
            "setting the wall clock back is not a pause"
        );
    }

    #[test]
    fn the_server_decides_who_holds_the_slot() {
        let (slot_guard, start) = guard();
        let later = start + SECOND;
        let held_by = |pid| SlotState { active_pid: pid, ..SlotState::default() };
        let seen = |slot: Option<&SlotState>| reason(slot_guard.check(later, true, Some((later, slot))));
        assert_eq!(seen(Some(&held_by(Some(7)))), None);
        assert_eq!(seen(Some(&held_by(Some(8)))), Some(ErrorKind::SlotActive));
        assert_eq!(seen(Some(&held_by(None))), Some(ErrorKind::DatabaseUnreachable));
        assert_eq!(seen(None), Some(ErrorKind::SlotLost));
        let lost = SlotState { wal_status: Some("lost".into()), ..held_by(Some(7)) };
        assert_eq!(seen(Some(&lost)), Some(ErrorKind::SlotLost));
    }

    #[test]
    fn a_slot_state_from_before_the_stream_began_is_ignored() {
        let (slot_guard, start) = guard();
        assert_eq!(reason(slot_guard.check(start, true, Some((start, None)))), None);
    }

    #[test]
    fn a_server_that_is_silent_while_the_stream_is_not_read_ends_the_session() {
        let (slot_guard, start) = guard();
        let slot = SlotState { active_pid: Some(7), ..SlotState::default() };
        let responded = Some((start + SECOND, Some(&slot)));
        let now = start + 40 * SECOND;
        assert_eq!(reason(slot_guard.check(now, false, responded)), Some(ErrorKind::DatabaseUnreachable));
        assert_eq!(reason(slot_guard.check(now, true, responded)), None, "the stream detects silence itself");
    }

    #[test]
    fn a_short_wal_sender_timeout_does_not_turn_a_late_response_into_silence() {
        let start = Now::read();
        let slot_guard = SlotGuard::new(SECOND, Some(7), start);
        let at = |seconds| start.monotonic + seconds * SECOND;
        assert_eq!(reason(slot_guard.check(at(4), false, None)), None);
        assert_eq!(reason(slot_guard.check(at(5), false, None)), Some(ErrorKind::DatabaseUnreachable));
    }

    #[test]
    fn silence_from_before_the_stream_began_does_not_count() {
        let (slot_guard, start) = guard();
        let long_ago = start.checked_sub(1000 * SECOND);
        let responded = long_ago.map(|at| (at, None));
        for seen in [responded, None] {
            assert_eq!(reason(slot_guard.check(start + 29 * SECOND, false, seen)), None);
            assert_eq!(
                reason(slot_guard.check(start + 30 * SECOND, false, seen)),
                Some(ErrorKind::DatabaseUnreachable)
            );
        }
    }
}
