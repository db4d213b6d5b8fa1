//! Which fault comes when: a pure function of the seed.

use std::fmt;
use std::ops::Range;
use std::time::Duration;

use testbed::load::Dice;

/// A class of faults.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fault {
    /// kill -9, and a new process.
    RelayKilled,
    /// SIGTERM, and a new process.
    RelayTerminated,
    /// SIGSTOP for less than the server's patience, SIGCONT.
    RelayPaused,
    /// A second relay stands by, the first is killed.
    RelaySucceeded,
    /// A second relay takes over from one that is paused, and that one wakes up.
    RelayZombie,
    /// kill -9 of every process of the server.
    PostgresKilled,
    /// A fast shutdown.
    PostgresRestarted,
    /// An immediate shutdown.
    PostgresCrashed,
    /// pg_terminate_backend of the walsender.
    WalsenderTerminated,
    /// Another client drops the slot.
    SlotDropped,
    /// Another client advances the slot.
    SlotAdvanced,
    /// Connections to PostgreSQL are reset.
    PostgresReset,
    /// Nothing gets through to or from PostgreSQL.
    PostgresSilent,
    /// PostgreSQL is far away.
    PostgresSlow,
    /// SIGTERM to the broker.
    KafkaStopped,
    /// kill -9 of the broker.
    KafkaKilled,
    /// SIGSTOP of the broker, SIGCONT.
    KafkaPaused,
    /// Connections to Kafka are reset.
    KafkaReset,
    /// Nothing gets through to or from Kafka.
    KafkaSilent,
    /// Kafka is far away.
    KafkaSlow,
    /// The broker refuses records: the topic's limit is lowered below their size.
    KafkaRefuses,
    /// Another application writes to the same topic.
    OtherProducer,
}

/// Each fault, how likely it is, and how long it holds, in milliseconds; no time for what happens at once. A zombie
/// may leave duplicates, which are counted apart, so it is asked for.
const FAULTS: [(Fault, usize, Range<usize>); 22] = [
    (Fault::RelayKilled, 20, 0..1_500),
    (Fault::RelayTerminated, 8, 0..1_000),
    (Fault::RelayPaused, 6, 200..1_000),
    (Fault::RelaySucceeded, 8, 0..2_000),
    (Fault::RelayZombie, 0, 1_000..4_000),
    (Fault::PostgresKilled, 8, 0..3_000),
    (Fault::PostgresRestarted, 6, 0..3_000),
    (Fault::PostgresCrashed, 6, 0..3_000),
    (Fault::WalsenderTerminated, 8, 0..1),
    (Fault::SlotDropped, 6, 0..1),
    (Fault::SlotAdvanced, 6, 0..1),
    (Fault::PostgresReset, 8, 0..3_000),
    (Fault::PostgresSilent, 8, 200..8_000),
    (Fault::PostgresSlow, 4, 2_000..6_000),
    (Fault::KafkaStopped, 4, 0..6_000),
    (Fault::KafkaKilled, 6, 0..6_000),
    (Fault::KafkaPaused, 6, 500..12_000),
    (Fault::KafkaReset, 8, 0..3_000),
    (Fault::KafkaSilent, 8, 200..12_000),
    (Fault::KafkaSlow, 4, 2_000..6_000),
    (Fault::KafkaRefuses, 6, 200..4_000),
    (Fault::OtherProducer, 8, 500..6_000),
];

/// How likely a zombie is when it is asked for.
const ZOMBIES: usize = 10;
/// Between a healed fault and the next, in milliseconds: sometimes hardly recovered, sometimes long at rest.
const PAUSE: Range<usize> = 200..5_000;

/// One fault, with its times.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Step {
    /// What.
    pub fault: Fault,
    /// After which rest.
    pub pause: Duration,
    /// For how long.
    pub hold: Duration,
}

/// The steps of a seed, without end.
pub struct Schedule {
    dice: Dice,
    zombies: bool,
}

impl Schedule {
    /// The schedule of `seed`.
    pub fn new(seed: u64, zombies: bool) -> Schedule {
        Schedule { dice: Dice::new(seed), zombies }
    }

    fn weight(&self, fault: Fault, weight: usize) -> usize {
        if fault == Fault::RelayZombie && self.zombies { ZOMBIES } else { weight }
    }

    fn between(&mut self, range: &Range<usize>) -> Duration {
        let millis = range.start + self.dice.below(range.len());
        Duration::from_millis(u64::try_from(millis).unwrap_or(u64::MAX))
    }
}

impl Iterator for Schedule {
    type Item = Step;

    fn next(&mut self) -> Option<Step> {
        let all = FAULTS.iter().map(|(fault, weight, _)| self.weight(*fault, *weight)).sum();
        let mut drawn = self.dice.below(all);
        for (fault, weight, hold) in &FAULTS {
            let weight = self.weight(*fault, *weight);
            if drawn < weight {
                let pause = self.between(&PAUSE);
                return Some(Step { fault: *fault, pause, hold: self.between(hold) });
            }
            drawn -= weight;
        }
        None
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Fault::RelayKilled => "relay kill -9",
            Fault::RelayTerminated => "relay SIGTERM",
            Fault::RelayPaused => "relay paused",
            Fault::RelaySucceeded => "relay killed, standby takes over",
            Fault::RelayZombie => "relay paused, succeeded, resumed",
            Fault::PostgresKilled => "PostgreSQL kill -9",
            Fault::PostgresRestarted => "PostgreSQL fast restart",
            Fault::PostgresCrashed => "PostgreSQL immediate restart",
            Fault::WalsenderTerminated => "walsender terminated",
            Fault::SlotDropped => "slot dropped",
            Fault::SlotAdvanced => "slot advanced",
            Fault::PostgresReset => "PostgreSQL connections reset",
            Fault::PostgresSilent => "PostgreSQL silent",
            Fault::PostgresSlow => "PostgreSQL slow",
            Fault::KafkaStopped => "Kafka SIGTERM",
            Fault::KafkaKilled => "Kafka kill -9",
            Fault::KafkaPaused => "Kafka paused",
            Fault::KafkaReset => "Kafka connections reset",
            Fault::KafkaSilent => "Kafka silent",
            Fault::KafkaSlow => "Kafka slow",
            Fault::KafkaRefuses => "Kafka refuses records",
            Fault::OtherProducer => "another producer",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn steps(seed: u64, zombies: bool) -> Vec<Step> {
        Schedule::new(seed, zombies).take(2_000).collect()
    }

    #[test]
    fn a_seed_is_a_schedule() {
        assert_eq!(steps(7, false), steps(7, false));
        assert_ne!(steps(7, false), steps(8, false));
    }

    #[test]
    fn every_fault_comes_and_zombies_only_when_asked_for() {
        for (zombies, kinds) in [(false, FAULTS.len() - 1), (true, FAULTS.len())] {
            let seen: std::collections::BTreeSet<Fault> =
                steps(1, zombies).into_iter().map(|step| step.fault).collect();
            assert_eq!(seen.len(), kinds);
            assert_eq!(seen.contains(&Fault::RelayZombie), zombies);
        }
    }

    #[test]
    fn times_keep_to_their_ranges() {
        for step in steps(3, true) {
            let (_, _, hold) = FAULTS.iter().find(|(fault, ..)| *fault == step.fault).unwrap();
            assert!(hold.contains(&(step.hold.as_millis() as usize)), "{step:?}");
            assert!(PAUSE.contains(&(step.pause.as_millis() as usize)), "{step:?}");
        }
    }
}
