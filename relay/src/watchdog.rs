//! Notices producers that are stuck: Kafka can be reached, and yet nothing they have sent is acknowledged.
//!
//! Records never expire (an expired record would be a hole), so a producer that has lost its way after a broker's
//! restart would wait for ever. An outage is not that: while Kafka cannot be reached, waiting is right, and
//! throwing producers away would only leave requests behind whose fate is unknown.

use std::time::{Duration, Instant};

/// Silence this long is looked into. Retries and leader changes take a second or two.
const SUSPICIOUS_AFTER: Duration = Duration::from_secs(5);
/// Pause between two looks.
const ASK_EVERY: Duration = Duration::from_secs(5);
/// So many looks in a row have to find Kafka there, without one acknowledgement between them: 50 s, because a
/// partition without enough replicas looks the same, and there waiting is right for a while.
const LOOKS: u32 = 10;

/// What the pump should do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Suspicion {
    /// Nothing.
    None,
    /// Ask whether Kafka can be reached.
    Ask,
    /// Throw the producers away.
    Stuck,
}

/// See the module's text.
#[derive(Debug)]
pub struct Watchdog {
    last_progress: Instant,
    last_look: Instant,
    found_there: u32,
}

impl Watchdog {
    /// Begins to watch.
    pub fn new(now: Instant) -> Watchdog {
        Watchdog { last_progress: now, last_look: now, found_there: 0 }
    }

    /// Called at every tick: `progress` when something was acknowledged since the last, or nothing is under way.
    pub fn tick(&mut self, now: Instant, progress: bool) -> Suspicion {
        if progress {
            *self = Watchdog::new(now);
        }
        if self.found_there >= LOOKS {
            return Suspicion::Stuck;
        }
        let due = now.duration_since(self.last_look) >= ASK_EVERY;
        if now.duration_since(self.last_progress) < SUSPICIOUS_AFTER || !due {
            return Suspicion::None;
        }
        self.last_look = now;
        Suspicion::Ask
    }

    /// The answer to a look.
    pub fn looked(&mut self, there: bool) {
        self.found_there = if there { self.found_there + 1 } else { 0 };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Ticks through `seconds`, answering each look with `there`; whether it came to be stuck.
    fn silence(seconds: u64, there: bool) -> bool {
        let start = Instant::now();
        let mut watchdog = Watchdog::new(start);
        (0..seconds * 10).any(|tick| {
            match watchdog.tick(start + Duration::from_millis(100 * tick), false) {
                Suspicion::None => {}
                Suspicion::Ask => watchdog.looked(there),
                Suspicion::Stuck => return true,
            }
            false
        })
    }

    #[test]
    fn silence_of_a_kafka_that_is_there_is_stuck_and_an_outage_is_not() {
        assert!(silence(120, true));
        assert!(!silence(3600, false));
        assert!(!silence(20, true), "a moment's silence is no reason");
    }

    #[test]
    fn one_acknowledgement_ends_the_suspicion() {
        let start = Instant::now();
        let mut watchdog = Watchdog::new(start);
        (0..LOOKS).for_each(|_| watchdog.looked(true));
        assert_eq!(watchdog.tick(start, true), Suspicion::None);
    }
}
