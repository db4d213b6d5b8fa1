//! Keys of topics' configurations that something else sets back each time the operator has set them: Strimzi's Topic Operator, for
//! example, where it has the topic too. Two managers that correct each other never end, so the operator says so and slows down.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// So often a value is set back before it counts as contested: a person may have set it back once or twice.
const SETS: u32 = 3;
/// A value that stays for so long is not contested any more. Strimzi's Topic Operator looks every two minutes.
const WINDOW: Duration = Duration::from_mins(10);
/// A contested value is not set more often.
const PAUSE: Duration = Duration::from_mins(1);

/// Of one resource, by topic and key.
#[derive(Clone, Debug, Default)]
pub struct Contests(BTreeMap<(String, String), Contest>);

#[derive(Clone, Debug)]
struct Contest {
    value: String,
    sets: u32,
    last: Instant,
}

impl Contest {
    fn is_contested(&self, now: Instant) -> bool {
        self.sets >= SETS && self.is_recent(now)
    }

    fn is_recent(&self, now: Instant) -> bool {
        now.duration_since(self.last) < WINDOW
    }
}

impl Contests {
    /// Whether a value that Kafka does not have is to be set now.
    pub fn may_set(&self, topic: &str, key: &str, value: &str, now: Instant) -> bool {
        let contest = self.0.get(&(topic.to_owned(), key.to_owned()));
        contest.is_none_or(|contest| {
            contest.value != value || !contest.is_contested(now) || now.duration_since(contest.last) >= PAUSE
        })
    }

    /// A value was set.
    pub fn on_set(&mut self, topic: &str, key: &str, value: &str, now: Instant) {
        self.0.retain(|_, contest| contest.is_recent(now));
        let place = (topic.to_owned(), key.to_owned());
        let before =
            self.0.get(&place).filter(|contest| contest.value == value).map_or(0, |contest| contest.sets);
        self.0.insert(place, Contest { value: value.to_owned(), sets: before.saturating_add(1), last: now });
    }

    /// The keys of a topic that are contested.
    pub fn of_topic(&self, topic: &str, now: Instant) -> Vec<&str> {
        let contested = self.0.iter().filter(|((of, _), contest)| of == topic && contest.is_contested(now));
        contested.map(|((_, key), _)| key.as_str()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_that_is_set_back_again_and_again_is_contested_and_set_less_often() {
        let (mut contests, start) = (Contests::default(), Instant::now());
        let at = |seconds| start + Duration::from_secs(seconds);
        for seconds in [0, 100, 200] {
            assert_eq!(contests.of_topic("t", at(seconds)), Vec::<&str>::new());
            assert!(contests.may_set("t", "k", "v", at(seconds)));
            contests.on_set("t", "k", "v", at(seconds));
        }
        assert_eq!(contests.of_topic("t", at(200)), ["k"]);
        assert_eq!(contests.of_topic("other", at(200)), Vec::<&str>::new());
        assert!(!contests.may_set("t", "k", "v", at(259)) && contests.may_set("t", "k", "v", at(260)));
        assert!(contests.may_set("t", "k", "another", at(201)) && contests.may_set("t", "j", "v", at(201)));
        assert_eq!(contests.of_topic("t", at(799)), ["k"]);
        assert_eq!(contests.of_topic("t", at(800)), Vec::<&str>::new(), "it has stayed");
        contests.on_set("t", "k", "v", at(801));
        assert_eq!(contests.of_topic("t", at(801)), Vec::<&str>::new());
    }

    #[test]
    fn another_value_is_counted_from_one() {
        let (mut contests, now) = (Contests::default(), Instant::now());
        for value in ["1", "1", "2", "2"] {
            contests.on_set("t", "k", value, now);
        }
        assert_eq!(contests.of_topic("t", now), Vec::<&str>::new());
    }
}
