//! Why a row has no destination, and the dead letter that it becomes.

use std::sync::Arc;

use crate::event::poison::{Poison, PoisonKind};
use crate::routing::router::Unroutable;

/// Why the routing has no destination for a row.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RoutingError {
    #[error(transparent)]
    Unroutable(#[from] Unroutable),
    #[error("the record would have {bytes} bytes, but {setting} is {limit}")]
    TooLarge {
        bytes: usize,
        topic: String,
        limit: usize,
        /// The setting that defines the limit.
        setting: String,
    },
    #[error("topic {topic} is compacted (cleanup.policy), so its records need a key, and the row has none")]
    NoKey { topic: String },
    #[error("Kafka refused the record for topic {topic}: {cause}")]
    Refused {
        topic: String,
        /// The error code, and what it means.
        cause: String,
    },
    /// The row cannot be converted to a record for any topic.
    #[error("{}", .0.error)]
    Invalid(Poison),
    /// The row has to become a dead letter, but that is not possible either.
    #[error("{first}; and it cannot become a dead letter: {dead_letter}")]
    NoDeadLetter {
        /// Why the row has to become a dead letter.
        first: Box<RoutingError>,
        /// Why it cannot become one.
        dead_letter: Box<RoutingError>,
    },
}

impl RoutingError {
    /// The topic whose settings cause the error, if they do.
    pub fn decided_by_settings_of(&self) -> Option<&str> {
        match self {
            RoutingError::TooLarge { topic, .. } | RoutingError::NoKey { topic } => Some(topic),
            RoutingError::NoDeadLetter { dead_letter, .. } => dead_letter.decided_by_settings_of(),
            RoutingError::Unroutable(_) | RoutingError::Refused { .. } | RoutingError::Invalid(_) => None,
        }
    }

    /// Whether a broker refused the row. It may accept the row later.
    pub fn is_refusal(&self) -> bool {
        match self {
            RoutingError::Refused { .. } => true,
            RoutingError::NoDeadLetter { first, dead_letter } => {
                first.is_refusal() || dead_letter.is_refusal()
            }
            _ => false,
        }
    }
}

impl From<RoutingError> for Poison {
    fn from(error: RoutingError) -> Self {
        let topic: Option<Arc<str>> = match &error {
            RoutingError::TooLarge { topic, .. }
            | RoutingError::NoKey { topic }
            | RoutingError::Refused { topic, .. }
            | RoutingError::Unroutable(
                Unroutable::IllegalTopic { topic }
                | Unroutable::InternalTopic { topic }
                | Unroutable::DeadLetterTopic { topic },
            ) => Some(topic.as_str().into()),
            RoutingError::Unroutable(Unroutable::NoValue | Unroutable::NoMatch { .. }) => None,
            RoutingError::Invalid(poison) => return poison.clone(),
            RoutingError::NoDeadLetter { first, .. } => {
                return Poison { error: error.to_string(), ..Poison::from((**first).clone()) };
            }
        };
        let kind = match &error {
            RoutingError::TooLarge { .. } => PoisonKind::TooLarge,
            RoutingError::NoKey { .. } => PoisonKind::NoKey,
            RoutingError::Refused { .. } => PoisonKind::Refused,
            _ => PoisonKind::Unroutable,
        };
        Poison { topic, ..Poison::new(kind, error) }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::routing::mapping::testing::RoutedTopics;
    use crate::routing::mapping::{RoutingHistory, RoutingInput, TopicShape};
    use crate::routing::rule::{Routing, Rule};
    use crate::testing::end;

    fn rule(dead_letter_topic: Option<&str>) -> Rule {
        let dead_letter_topic = dead_letter_topic.map(str::to_owned);
        Rule { routing: Routing::default(), max_message_bytes: 1_000, dead_letter_topic }
    }

    fn with_topics(mut mappings: RoutingHistory, topics: &[&str]) -> RoutingHistory {
        let shape = TopicShape { partitions: 1, max_message_bytes: None, compacted: false };
        let topics: BTreeMap<_, _> = topics.iter().map(|topic| ((*topic).to_owned(), shape)).collect();
        mappings.current.topics = topics;
        mappings
    }

    /// The topic, with the poison if the row goes there as a dead letter; or why the row has no destination.
    fn destination(
        table: &mut RoutedTopics,
        route: Option<&str>,
        bytes: usize,
        invalid: Option<&Poison>,
        commit: u64,
    ) -> Result<(String, Option<Poison>), RoutingError> {
        let column = |_: &str| route;
        let input = RoutingInput { key: b"k", bytes, has_key: true, position: None, invalid, column };
        table.topic(&input, commit)
    }

    #[test]
    fn every_kind_of_poison_goes_to_the_dead_letter_topic_and_nothing_else_does() {
        let topics = ["outbox.event.a", "dead"];
        let mut table = RoutedTopics::new(with_topics(RoutingHistory::first(rule(Some("dead"))), &topics));
        let headers = Poison::new(PoisonKind::Headers, "bad headers");
        for (route, bytes, invalid, kind, topic) in [
            (Some("a b"), 10, None, PoisonKind::Unroutable, Some("outbox.event.a b")),
            (None, 10, None, PoisonKind::Unroutable, None),
            (Some("a"), 1_001, None, PoisonKind::TooLarge, Some("outbox.event.a")),
            (Some("a"), 10, Some(&headers), PoisonKind::Headers, Some("outbox.event.a")),
        ] {
            let (destination, poison) = destination(&mut table, route, bytes, invalid, 1).unwrap();
            let poison = poison.unwrap();
            assert_eq!((destination.as_str(), poison.kind, poison.topic.as_deref()), ("dead", kind, topic));
        }
        assert_eq!(
            destination(&mut table, Some("a"), 1_000, None, 1).unwrap(),
            ("outbox.event.a".into(), None)
        );
        let mut stops = RoutedTopics::new(with_topics(RoutingHistory::first(rule(None)), &topics));
        assert!(destination(&mut stops, Some("a b"), 10, None, 1).is_err());
        assert!(destination(&mut stops, Some("a"), 10, Some(&headers), 1).is_err());
    }

    #[test]
    fn a_dead_letter_stays_one_for_a_row_that_may_have_been_sent_as_one() {
        let horizon = end(100);
        let larger = |dead| Rule { max_message_bytes: 5_000, ..rule(dead) };
        let before = with_topics(RoutingHistory::first(rule(Some("dead"))), &["outbox.event.a", "dead"]);
        // The limit was raised: a row before the horizon that was a dead letter is still routed to the dead-letter
        // topic.
        let mut table = RoutedTopics::new(before.clone().with_rule(larger(Some("dead")), horizon));
        let at =
            |table: &mut RoutedTopics, commit| destination(table, Some("a"), 2_000, None, commit).unwrap().0;
        assert_eq!((at(&mut table, 99).as_str(), at(&mut table, 100).as_str()), ("dead", "outbox.event.a"));
        // Dead letters were disabled.
        let mut table = RoutedTopics::new(before.with_rule(rule(None), horizon));
        assert_eq!(at(&mut table, 99), "dead");
        assert!(destination(&mut table, Some("a"), 2_000, None, 100).is_err());
        // Dead letters were enabled: a blocked row has no destination in the earlier version, so it was not sent.
        let before = with_topics(RoutingHistory::first(rule(None)), &["outbox.event.a"]);
        let mut table = RoutedTopics::new(before.with_rule(rule(Some("dead")), horizon));
        assert_eq!(at(&mut table, 99), "dead, new");
    }
}
