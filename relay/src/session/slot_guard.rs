//! Whether this process may still believe that it holds the slot.
//!
//! The slot is the only lock there is, and Kafka knows nothing of it. So a process has to notice by itself that it
//! may have lost the slot, and then it drops what it has not sent before it does anything else. Two things tell:
//!
//! - **It did not run for a while.** The server ends the stream of a client that is silent for `wal_sender_timeout`,
//!   and another relay may stream. A process that was stopped, swapped out or starved for half of that assumes it. A
//!   suspended machine stops the monotonic clock as well, so the wall clock counts, too: one that is set forward by as
//!   much costs a reconnect.
//! - **The server says so.** The session's SQL connection and the observer's ask who holds the slot: while Kafka is away
//!   and the budget is used up nothing is read from the stream, so its end would be noticed late.
//!
//! An answer over either connection counts. One that cannot connect decides nothing while the other is answered.
//!
//! This narrows the window in which two processes send, and does not close it: what librdkafka has in its queue it
//! may send before the first turn of the loop after a pause.

use std::time::{Duration, Instant, SystemTime};

use crate::error::{ErrorKind, RelayError};
use crate::status::{LastSlotLook, SlotState};

/// The server is asked every second, and a busy machine asks late: a shorter silence says nothing, however short
/// `wal_sender_timeout` is.
const SILENT_FOR: Duration = Duration::from_secs(5);

/// See the module's text.
#[derive(Debug)]
pub struct SlotGuard {
    /// Half of the server's `wal_sender_timeout`.
    limit: Duration,
    /// The server process that serves the stream.
    holder: Option<i64>,
    began: Instant,
    turned: Now,
}

/// The time by both clocks.
#[derive(Clone, Copy, Debug)]
pub struct Now {
    /// Never goes back, and stops while the machine is stopped.
    pub monotonic: Instant,
    /// Goes on while the machine is suspended, and may be set.
    pub wall: SystemTime,
}

impl Now {
    /// Reads both.
    pub fn read() -> Now {
        Now { monotonic: Instant::now(), wall: SystemTime::now() }
    }

    fn since(self, earlier: Now) -> Duration {
        let monotonic = self.monotonic.saturating_duration_since(earlier.monotonic);
        monotonic.max(self.wall.duration_since(earlier.wall).unwrap_or_default())
    }
}

impl SlotGuard {
    /// The slot was taken at `now`, by the server process `holder`.
    pub fn new(limit: Duration, holder: Option<i64>, now: Now) -> SlotGuard {
        SlotGuard { limit, holder, began: now.monotonic, turned: now }
    }

    /// Called at every turn of the loop, before anything is sent.
    pub fn on_loop_turn(&mut self, now: Now) -> Result<(), RelayError> {
        let pause = now.since(self.turned);
        self.turned = now;
        if pause < self.limit {
            return Ok(());
        }
        let what =
            format!("this process did not run for {} s, so another may hold the slot", pause.as_secs());
        Err(RelayError::new(ErrorKind::ProcessPaused, what))
    }

    /// Called regularly with the server's last answer. While the stream is read, it notices a silent server itself.
    pub fn check(&self, now: Instant, reading: bool, seen: LastSlotLook<'_>) -> Result<(), RelayError> {
        // What was asked before the slot was taken says nothing of this tenure.
        let seen = seen.filter(|(asked, _)| *asked > self.began);
        match seen {
            Some((_, None)) => {
                return Err(RelayError::new(ErrorKind::SlotLost, "the slot is gone while it was in use"));
            }
            Some((_, Some(slot))) => self.check_holder(slot)?,
            None => {}
        }
        let silence = now.saturating_duration_since(seen.map_or(self.began, |(asked, _)| asked));
        if reading || silence < self.limit.max(SILENT_FOR) {
            return Ok(());
        }
        let what = format!("no answer for {} s, and nothing is read from the stream", silence.as_secs());
        Err(RelayError::new(ErrorKind::DatabaseUnreachable, what))
    }

    fn check_holder(&self, slot: &SlotState) -> Result<(), RelayError> {
        if slot.is_lost() {
            return Err(RelayError::new(ErrorKind::SlotLost, slot.loss_reason()));
        }
        if self.holder.is_none() || slot.active_pid == self.holder {
            return Ok(());
        }
        Err(match slot.active_pid {
            Some(pid) => RelayError::new(
                ErrorKind::SlotActive,
                format!("the slot was taken over by server process {pid}"),
            ),
            None => {
                RelayError::new(ErrorKind::DatabaseUnreachable, "the server has ended this relay's stream")
            }
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

    /// Both clocks, after so long.
    fn after(start: Now, monotonic: Duration, wall: Duration) -> Now {
        Now { monotonic: start.monotonic + monotonic, wall: start.wall + wall }
    }

    fn begun() -> (SlotGuard, Instant) {
        let start = Now::read();
        (SlotGuard::new(LIMIT, Some(7), start), start.monotonic)
    }

    #[test]
    fn a_process_that_did_not_run_for_long_gives_the_slot_up() {
        let start = Now::read();
        let mut tenure = SlotGuard::new(LIMIT, Some(7), start);
        let mut turn =
            |seconds| reason(tenure.on_loop_turn(after(start, seconds * SECOND, seconds * SECOND)));
        assert_eq!(turn(29), None);
        assert_eq!(turn(58), None, "it counts from the last turn");
        assert_eq!(turn(88), Some(ErrorKind::ProcessPaused));
    }

    #[test]
    fn a_suspended_machine_stops_one_clock_only() {
        let start = Now::read();
        let mut tenure = SlotGuard::new(LIMIT, Some(7), start);
        let suspended = after(start, SECOND, 31 * SECOND);
        assert_eq!(reason(tenure.on_loop_turn(suspended)), Some(ErrorKind::ProcessPaused));
        let set_back = Now { wall: start.wall - 100 * SECOND, ..suspended };
        assert_eq!(reason(tenure.on_loop_turn(set_back)), None, "a wall clock that is set back is no pause");
    }

    #[test]
    fn it_believes_the_server_about_who_holds_the_slot() {
        let (tenure, start) = begun();
        let later = start + SECOND;
        let held_by = |pid| SlotState { active_pid: pid, ..SlotState::default() };
        let seen = |slot: Option<&SlotState>| reason(tenure.check(later, true, Some((later, slot))));
        assert_eq!(seen(Some(&held_by(Some(7)))), None);
        assert_eq!(seen(Some(&held_by(Some(8)))), Some(ErrorKind::SlotActive));
        assert_eq!(seen(Some(&held_by(None))), Some(ErrorKind::DatabaseUnreachable));
        assert_eq!(seen(None), Some(ErrorKind::SlotLost));
        let lost = SlotState { wal_status: Some("lost".into()), ..held_by(Some(7)) };
        assert_eq!(seen(Some(&lost)), Some(ErrorKind::SlotLost));
    }

    #[test]
    fn what_was_seen_before_it_began_says_nothing() {
        let (tenure, start) = begun();
        assert_eq!(reason(tenure.check(start, true, Some((start, None)))), None);
    }

    #[test]
    fn a_server_that_is_silent_while_nothing_is_read_is_given_up() {
        let (tenure, start) = begun();
        let slot = SlotState { active_pid: Some(7), ..SlotState::default() };
        let answered = Some((start + SECOND, Some(&slot)));
        let now = start + 40 * SECOND;
        assert_eq!(reason(tenure.check(now, false, answered)), Some(ErrorKind::DatabaseUnreachable));
        assert_eq!(reason(tenure.check(now, true, answered)), None, "the stream judges by itself");
    }

    #[test]
    fn a_short_timeout_does_not_make_a_late_answer_a_silence() {
        let start = Now::read();
        let tenure = SlotGuard::new(SECOND, Some(7), start);
        let at = |seconds| start.monotonic + seconds * SECOND;
        assert_eq!(reason(tenure.check(at(4), false, None)), None);
        assert_eq!(reason(tenure.check(at(5), false, None)), Some(ErrorKind::DatabaseUnreachable));
    }

    #[test]
    fn silence_from_before_it_began_does_not_count() {
        let (tenure, start) = begun();
        let long_ago = start.checked_sub(1000 * SECOND);
        let answered = long_ago.map(|at| (at, None));
        for seen in [answered, None] {
            assert_eq!(reason(tenure.check(start + 29 * SECOND, false, seen)), None);
            assert_eq!(
                reason(tenure.check(start + 30 * SECOND, false, seen)),
                Some(ErrorKind::DatabaseUnreachable)
            );
        }
    }
}
