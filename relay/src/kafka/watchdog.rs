//! Probes Kafka when it has been silent, and detects producers that are stuck: Kafka is reachable, but acknowledges
//! none of their records.
//!
//! Records never expire, because an expired record would leave a gap. So a producer that cannot recover after a
//! broker's restart would wait forever. An outage is different: while Kafka is unreachable, waiting is right, and
//! dropping the producers would only leave requests with an unknown outcome.

use std::time::{Duration, Instant};

/// After this much silence Kafka is probed, even if the relay is idle. Including the time of a query, an outage shows
/// within 10 s. Retries and leader changes take a second or two.
const PROBE_AFTER: Duration = Duration::from_millis(2500);
/// Producers count as stuck after this many successful probes without an acknowledgement in between. That is 50 s,
/// because a partition without enough replicas has the same symptoms, and waiting for a while is right then.
const STUCK_AFTER_PROBES: u32 = 20;

/// What the event loop has to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WatchdogAction {
    None,
    /// Query whether Kafka is reachable, then call [`Watchdog::on_probed`].
    Probe,
    Rebuild,
}

/// What happened since the last tick.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activity {
    /// Nothing is in flight.
    Idle,
    /// Records are in flight, and none was acknowledged.
    Waiting,
    /// Kafka acknowledged something.
    Acknowledged,
}

#[derive(Debug, Default)]
pub struct Watchdog {
    /// The time of the last acknowledgement or of the last probe's result.
    last_heard: Option<Instant>,
    probing: bool,
    successful_probes: u32,
}

impl Watchdog {
    /// Called at every tick. `brokers_down` is whether librdkafka has reported since the last tick that all brokers are
    /// down.
    pub fn tick(&mut self, now: Instant, activity: Activity, brokers_down: bool) -> WatchdogAction {
        match activity {
            Activity::Idle => self.successful_probes = 0,
            Activity::Waiting => {}
            Activity::Acknowledged => {
                self.successful_probes = 0;
                self.last_heard = Some(now);
            }
        }
        if self.successful_probes >= STUCK_AFTER_PROBES {
            return WatchdogAction::Rebuild;
        }
        let quiet = self.last_heard.is_none_or(|heard| now.saturating_duration_since(heard) >= PROBE_AFTER);
        if self.probing || !(quiet || brokers_down) {
            return WatchdogAction::None;
        }
        self.probing = true;
        WatchdogAction::Probe
    }

    /// Claims a probe for another reason. Returns false if one is already running.
    pub fn claim_probe(&mut self) -> bool {
        !std::mem::replace(&mut self.probing, true)
    }

    /// A probe has completed.
    pub fn on_probed(&mut self, now: Instant, is_up: bool) {
        self.probing = false;
        self.last_heard = Some(now);
        self.successful_probes = if is_up { self.successful_probes + 1 } else { 0 };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Ticks through `seconds` of `activity`, with `is_up` as the result of each probe. Returns the number of probes,
    /// and whether the watchdog found the producers stuck.
    fn ticks(seconds: u64, activity: Activity, is_up: bool) -> (u32, bool) {
        let start = Instant::now();
        let (mut watchdog, mut probes) = (Watchdog::default(), 0);
        for tick in 0..seconds * 10 {
            let now = start + Duration::from_millis(100 * tick);
            match watchdog.tick(now, activity, false) {
                WatchdogAction::None => {}
                WatchdogAction::Probe => {
                    probes += 1;
                    watchdog.on_probed(now, is_up);
                }
                WatchdogAction::Rebuild => return (probes, true),
            }
        }
        (probes, false)
    }

    #[test]
    fn producers_are_stuck_if_a_reachable_kafka_acknowledges_nothing_but_not_in_an_outage() {
        assert!(ticks(120, Activity::Waiting, true).1);
        assert!(!ticks(3600, Activity::Waiting, false).1);
        assert!(!ticks(3600, Activity::Idle, true).1, "no record is in flight");
        assert!(!ticks(20, Activity::Waiting, true).1, "a short silence is no reason");
    }

    #[test]
    fn kafka_is_probed_immediately_and_again_while_it_is_silent() {
        assert!(ticks(100, Activity::Idle, true).0 >= 40);
        assert_eq!(ticks(100, Activity::Acknowledged, true).0, 0, "acknowledgements make probes unnecessary");
    }

    #[test]
    fn one_probe_runs_at_a_time_and_lost_brokers_cause_one_immediately() {
        let now = Instant::now();
        let mut watchdog = Watchdog::default();
        assert_eq!(watchdog.tick(now, Activity::Idle, false), WatchdogAction::Probe);
        assert_eq!(
            watchdog.tick(now + PROBE_AFTER, Activity::Idle, true),
            WatchdogAction::None,
            "a probe is running"
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
