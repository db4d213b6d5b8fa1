//! Asks whether Kafka is there while it says nothing by itself, and notices producers that are stuck: Kafka can be
//! reached, and yet nothing they have sent is acknowledged.
//!
//! Records never expire (an expired record would be a hole), so a producer that has lost its way after a broker's
//! restart would wait for ever. An outage is not that: while Kafka cannot be reached, waiting is right, and
//! throwing producers away would only leave requests behind whose fate is unknown.

use std::time::{Duration, Instant};

/// Silence this long is looked into, idle or not: with the time a question may take, an outage shows within 10 s.
/// Retries and leader changes take a second or two.
const PROBE_AFTER: Duration = Duration::from_millis(2500);
/// So many looks in a row have to find Kafka there, without one acknowledgement between them: 50 s, because a
/// partition without enough replicas looks the same, and there waiting is right for a while.
const STUCK_AFTER_PROBES: u32 = 20;

/// What the pump should do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WatchdogAction {
    /// Nothing.
    None,
    /// Ask whether Kafka can be reached, and say [`Watchdog::on_probed`].
    Probe,
    /// Throw the producers away.
    Rebuild,
}

/// What happened since the last tick.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activity {
    /// Nothing is under way.
    Idle,
    /// Something is under way, and nothing was acknowledged.
    Waiting,
    /// Kafka acknowledged something.
    Acknowledged,
}

/// See the module's text.
#[derive(Debug, Default)]
pub struct Watchdog {
    /// The last sign of Kafka, good or bad.
    last_heard: Option<Instant>,
    probing: bool,
    found_there: u32,
}

impl Watchdog {
    /// Called at every tick; `brokers_down` when the client has said since the last that it has lost all brokers.
    pub fn tick(&mut self, now: Instant, activity: Activity, brokers_down: bool) -> WatchdogAction {
        match activity {
            Activity::Idle => self.found_there = 0,
            Activity::Waiting => {}
            Activity::Acknowledged => {
                self.found_there = 0;
                self.last_heard = Some(now);
            }
        }
        if self.found_there >= STUCK_AFTER_PROBES {
            return WatchdogAction::Rebuild;
        }
        let quiet = self.last_heard.is_none_or(|heard| now.saturating_duration_since(heard) >= PROBE_AFTER);
        if self.probing || !(quiet || brokers_down) {
            return WatchdogAction::None;
        }
        self.probing = true;
        WatchdogAction::Probe
    }

    /// Somebody else has a reason to ask. Answers whether they may: there is one question at a time.
    pub fn claim_probe(&mut self) -> bool {
        !std::mem::replace(&mut self.probing, true)
    }

    /// The answer to a look.
    pub fn on_probed(&mut self, now: Instant, there: bool) {
        self.probing = false;
        self.last_heard = Some(now);
        self.found_there = if there { self.found_there + 1 } else { 0 };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Ticks through `seconds` of `activity`, answering each look with `there`: how many looks, and whether it came to
    /// be stuck.
    fn ticks(seconds: u64, activity: Activity, there: bool) -> (u32, bool) {
        let start = Instant::now();
        let (mut watchdog, mut looks) = (Watchdog::default(), 0);
        for tick in 0..seconds * 10 {
            let now = start + Duration::from_millis(100 * tick);
            match watchdog.tick(now, activity, false) {
                WatchdogAction::None => {}
                WatchdogAction::Probe => {
                    looks += 1;
                    watchdog.on_probed(now, there);
                }
                WatchdogAction::Rebuild => return (looks, true),
            }
        }
        (looks, false)
    }

    #[test]
    fn silence_of_a_kafka_that_is_there_is_stuck_and_an_outage_is_not() {
        assert!(ticks(120, Activity::Waiting, true).1);
        assert!(!ticks(3600, Activity::Waiting, false).1);
        assert!(!ticks(3600, Activity::Idle, true).1, "nothing waits");
        assert!(!ticks(20, Activity::Waiting, true).1, "a moment's silence is no reason");
    }

    #[test]
    fn kafka_is_asked_at_once_and_again_while_it_is_quiet() {
        assert!(ticks(100, Activity::Idle, true).0 >= 40);
        assert_eq!(ticks(100, Activity::Acknowledged, true).0, 0, "it speaks by itself");
    }

    #[test]
    fn one_question_at_a_time_and_lost_brokers_are_asked_for_at_once() {
        let now = Instant::now();
        let mut watchdog = Watchdog::default();
        assert_eq!(watchdog.tick(now, Activity::Idle, false), WatchdogAction::Probe);
        assert_eq!(
            watchdog.tick(now + PROBE_AFTER, Activity::Idle, true),
            WatchdogAction::None,
            "it was asked"
        );
        watchdog.on_probed(now + PROBE_AFTER, true);
        assert_eq!(watchdog.tick(now + PROBE_AFTER, Activity::Idle, false), WatchdogAction::None);
        assert_eq!(watchdog.tick(now + PROBE_AFTER, Activity::Idle, true), WatchdogAction::Probe);
    }

    #[test]
    fn one_acknowledgement_ends_the_suspicion() {
        let now = Instant::now();
        let mut watchdog = Watchdog::default();
        (0..STUCK_AFTER_PROBES).for_each(|_| watchdog.on_probed(now, true));
        assert_eq!(watchdog.tick(now, Activity::Acknowledged, false), WatchdogAction::None);
    }
}
