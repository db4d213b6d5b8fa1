//! Whether this process may still believe that it holds the slot.
//!
//! The slot is the only lock there is, and Kafka knows nothing of it. So a process has to notice by itself that it
//! may have lost the slot, and then it drops what it has not sent before it does anything else. Two things tell:
//!
//! - **It did not run for a while.** The server ends the stream of a client that is silent for `wal_sender_timeout`,
//!   and another relay may stream. A process that was stopped, swapped out or starved for half of that assumes it.
//! - **The server says so.** The observer sees, over a connection of its own, who holds the slot: while Kafka is away
//!   and the budget is used up nothing is read from the stream, so its end would be noticed late.
//!
//! This narrows the window in which two processes send, and does not close it: what librdkafka has in its queue it
//! may send before the first turn of the loop after a pause.

use std::time::{Duration, Instant};

use crate::postgres::source::SlotState;
use crate::trouble::{Reason, Trouble};

/// What is known of the slot from outside the stream.
#[derive(Clone, Copy, Debug)]
pub enum Sight<'a> {
    /// The server was asked at this time, and showed this.
    Seen(Instant, Option<&'a SlotState>),
    /// The server has not answered the observer since.
    Unanswered(Instant),
}

/// See the module's text.
#[derive(Debug)]
pub struct Tenure {
    /// Half of the server's `wal_sender_timeout`.
    limit: Duration,
    /// The server process that serves the stream.
    holder: Option<i64>,
    began: Instant,
    turned: Instant,
}

impl Tenure {
    /// The slot was taken at `now`, by the server process `holder`.
    pub fn new(limit: Duration, holder: Option<i64>, now: Instant) -> Tenure {
        Tenure { limit, holder, began: now, turned: now }
    }

    /// Called at every turn of the loop, before anything is sent.
    pub fn turn(&mut self, now: Instant) -> Result<(), Trouble> {
        let pause = now.saturating_duration_since(self.turned);
        self.turned = now;
        if pause < self.limit {
            return Ok(());
        }
        let what =
            format!("this process did not run for {} s, so another may hold the slot", pause.as_secs());
        Err(Trouble::new(Reason::ProcessPaused, what))
    }

    /// Called with what the observer knows. While the stream is read, it notices a silent server by itself.
    pub fn check(&self, now: Instant, reading: bool, sight: Sight<'_>) -> Result<(), Trouble> {
        match sight {
            // Asked before the slot was taken, it says nothing of this tenure.
            Sight::Seen(asked, _) if asked <= self.began => Ok(()),
            Sight::Seen(_, None) => {
                Err(Trouble::new(Reason::SlotLost, "the slot is gone while it was in use"))
            }
            Sight::Seen(_, Some(slot)) => self.check_holder(slot),
            Sight::Unanswered(since) => {
                let silence = now.saturating_duration_since(since);
                if reading || silence < self.limit {
                    return Ok(());
                }
                let what =
                    format!("no answer for {} s, and nothing is read from the stream", silence.as_secs());
                Err(Trouble::new(Reason::DatabaseUnreachable, what))
            }
        }
    }

    fn check_holder(&self, slot: &SlotState) -> Result<(), Trouble> {
        if slot.is_lost() {
            return Err(Trouble::new(Reason::SlotLost, slot.loss()));
        }
        if self.holder.is_none() || slot.active_pid == self.holder {
            return Ok(());
        }
        Err(match slot.active_pid {
            Some(pid) => {
                Trouble::new(Reason::SlotActive, format!("the slot was taken over by server process {pid}"))
            }
            None => Trouble::new(Reason::DatabaseUnreachable, "the server has ended this relay's stream"),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: Duration = Duration::from_secs(30);
    const SECOND: Duration = Duration::from_secs(1);

    fn reason(result: Result<(), Trouble>) -> Option<Reason> {
        result.err().map(|trouble| trouble.reason)
    }

    #[test]
    fn a_process_that_did_not_run_for_long_gives_the_slot_up() {
        let start = Instant::now();
        let mut tenure = Tenure::new(LIMIT, Some(7), start);
        assert_eq!(reason(tenure.turn(start + 29 * SECOND)), None);
        assert_eq!(reason(tenure.turn(start + 58 * SECOND)), None, "it counts from the last turn");
        assert_eq!(reason(tenure.turn(start + 88 * SECOND)), Some(Reason::ProcessPaused));
    }

    #[test]
    fn it_believes_the_server_about_who_holds_the_slot() {
        let start = Instant::now();
        let tenure = Tenure::new(LIMIT, Some(7), start);
        let later = start + SECOND;
        let held_by = |pid| SlotState { active_pid: pid, ..SlotState::default() };
        let seen = |slot: Option<&SlotState>| reason(tenure.check(later, true, Sight::Seen(later, slot)));
        assert_eq!(seen(Some(&held_by(Some(7)))), None);
        assert_eq!(seen(Some(&held_by(Some(8)))), Some(Reason::SlotActive));
        assert_eq!(seen(Some(&held_by(None))), Some(Reason::DatabaseUnreachable));
        assert_eq!(seen(None), Some(Reason::SlotLost));
        let lost = SlotState { wal_status: Some("lost".into()), ..held_by(Some(7)) };
        assert_eq!(seen(Some(&lost)), Some(Reason::SlotLost));
    }

    #[test]
    fn what_was_seen_before_it_began_says_nothing() {
        let start = Instant::now();
        let tenure = Tenure::new(LIMIT, Some(7), start);
        assert_eq!(reason(tenure.check(start, true, Sight::Seen(start, None))), None);
    }

    #[test]
    fn a_server_that_is_silent_while_nothing_is_read_is_given_up() {
        let start = Instant::now();
        let tenure = Tenure::new(LIMIT, Some(7), start);
        let now = start + 40 * SECOND;
        let silent = |reading| reason(tenure.check(now, reading, Sight::Unanswered(start + SECOND)));
        assert_eq!(silent(false), Some(Reason::DatabaseUnreachable));
        assert_eq!(silent(true), None, "the stream judges by itself");
    }
}
