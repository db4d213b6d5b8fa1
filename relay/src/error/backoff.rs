//! How long to wait before the next session.

use std::time::Duration;

use super::Action;

/// First pause before a retry.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
/// Longest pause: the end of a fault shows within 10 s.
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
/// Pause between a standby's attempts while the slot is held.
const STANDBY_PAUSE: Duration = LONGEST_PAUSE;
/// After streaming this long a session counts as stable: the next error starts with the first pause again.
const STABLE_AFTER: Duration = Duration::from_secs(10);

/// Exponential backoff with jitter, so that many relays do not reconnect at the same moment.
#[derive(Debug)]
pub struct Backoff {
    next: Duration,
}

impl Default for Backoff {
    fn default() -> Self {
        Backoff { next: FIRST_PAUSE }
    }
}

impl Backoff {
    /// The pause before the next attempt, after a session that lasted `lasted`.
    pub fn next_pause(&mut self, action: Action, lasted: Duration) -> Duration {
        if lasted >= STABLE_AFTER {
            self.next = FIRST_PAUSE;
        }
        let pause = match action {
            Action::StandBy => STANDBY_PAUSE,
            Action::Stop => LONGEST_PAUSE,
            Action::Retry => {
                let pause = self.next;
                self.next = (self.next * 2).min(LONGEST_PAUSE);
                pause
            }
        };
        pause.mul_f64(jitter())
    }
}

/// Between 0.75 and 1.25, from the clock: enough to keep processes from retrying in step.
pub(crate) fn jitter() -> f64 {
    let nanos = std::time::SystemTime::UNIX_EPOCH.elapsed().map_or(0, |elapsed| elapsed.subsec_nanos());
    0.75 + f64::from(nanos % 1_000) / 2_000.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_to_a_bound_and_start_over_after_a_stable_run() {
        let mut backoff = Backoff::default();
        let first = backoff.next_pause(Action::Retry, Duration::ZERO);
        for _ in 0..20 {
            assert!(backoff.next_pause(Action::Retry, Duration::ZERO) <= LONGEST_PAUSE.mul_f64(1.25));
        }
        assert!(backoff.next_pause(Action::Retry, STABLE_AFTER) <= first * 2);
    }
}
