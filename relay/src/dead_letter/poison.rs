//! Why a row cannot be delivered.

use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;

use outbox::Position;
use rdkafka::message::OwnedHeaders;

use crate::error::{ErrorKind, RelayError, excerpt};
use crate::event::record::RecordError;
use crate::event::row::{EventId, OutboxRow, PartialRow, RowError};
use crate::routing::mapping::RoutingError;
use crate::routing::router::Unroutable;

/// Why a row cannot be delivered, as a metric's label and a header's value.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum PoisonKind {
    /// The record would be larger than `sink.maxMessageBytes`.
    TooLarge,
    /// The routing gives it no topic.
    Unroutable,
    /// Its column `headers` cannot become Kafka headers.
    Headers,
    /// A column is NULL that must not be, or has a value that cannot be read.
    Unreadable,
    /// It has no key, and its topic is compacted.
    NoKey,
    /// Kafka refused its record.
    Refused,
    /// A column has a value that an attribute of a CloudEvent may not have.
    Attribute,
}

impl PoisonKind {
    /// All of them.
    pub const ALL: [PoisonKind; 7] = [
        PoisonKind::TooLarge,
        PoisonKind::Unroutable,
        PoisonKind::Headers,
        PoisonKind::Unreadable,
        PoisonKind::NoKey,
        PoisonKind::Refused,
        PoisonKind::Attribute,
    ];

    /// The label.
    pub fn label(self) -> &'static str {
        match self {
            PoisonKind::TooLarge => "too_large",
            PoisonKind::Unroutable => "unroutable",
            PoisonKind::Headers => "headers",
            PoisonKind::Unreadable => "unreadable",
            PoisonKind::NoKey => "no_key",
            PoisonKind::Refused => "refused",
            PoisonKind::Attribute => "attribute",
        }
    }
}

/// Why a row cannot be delivered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Poison {
    /// In one word.
    pub kind: PoisonKind,
    /// In a sentence.
    pub error: String,
    /// The topic it was meant for, when the routing gave one.
    pub topic: Option<Arc<str>>,
}

impl Poison {
    fn new(kind: PoisonKind, error: impl fmt::Display) -> Poison {
        Poison { kind, error: error.to_string(), topic: None }
    }

    /// Of a row with a value that is larger than any record may be.
    pub fn oversized(bytes: usize, limit: usize) -> Poison {
        let error = format!("the record would have {bytes} bytes, sink.maxMessageBytes is {limit}");
        Poison::new(PoisonKind::TooLarge, error)
    }
}

impl From<&RecordError> for Poison {
    fn from(error: &RecordError) -> Self {
        match error {
            RecordError::Headers | RecordError::ReservedHeader(_) | RecordError::ContentType => {
                Poison::new(PoisonKind::Headers, error)
            }
        }
    }
}

impl From<&RowError> for Poison {
    fn from(error: &RowError) -> Self {
        let kind = match error {
            RowError::Attribute { .. } => PoisonKind::Attribute,
            _ => PoisonKind::Unreadable,
        };
        Poison::new(kind, error)
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
            RoutingError::Flawed(poison) => return poison.clone(),
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

/// A row as it came: the record it would be, or why it can be none wherever it goes.
pub enum DecodedRow<'a> {
    /// It can be a record.
    Valid(OutboxRow<'a>, OwnedHeaders),
    /// It cannot.
    Invalid(PartialRow<'a>, Poison),
}

impl<'a> DecodedRow<'a> {
    /// Event id.
    pub fn id(&self) -> Option<&EventId<'_>> {
        match self {
            DecodedRow::Valid(row, _) => Some(&row.id),
            DecodedRow::Invalid(row, _) => row.id.as_ref(),
        }
    }

    /// Value of the column that selects the topic.
    pub fn routing_value(&self) -> Option<&'a str> {
        match self {
            DecodedRow::Valid(row, _) => row.route_by,
            DecodedRow::Invalid(row, _) => row.route_by,
        }
    }

    /// What the partition is chosen by: the key, or what stands in for it.
    pub fn partition_key(&self, position: Position) -> Cow<'_, [u8]> {
        let key = match self {
            DecodedRow::Valid(row, _) => row.key.as_deref(),
            DecodedRow::Invalid(row, _) => row.key.as_deref(),
        };
        match (key, self.id()) {
            (Some(key), _) => Cow::Borrowed(key),
            (None, Some(id)) => Cow::Borrowed(id.as_bytes()),
            (None, None) => Cow::Owned(position.encode().to_vec()),
        }
    }

    /// Whether its record has a key.
    pub fn has_key(&self) -> bool {
        match self {
            DecodedRow::Valid(row, _) => row.key.is_some(),
            DecodedRow::Invalid(row, _) => row.key.is_some(),
        }
    }

    /// Why it can be no record.
    pub fn error(&self) -> Option<&Poison> {
        match self {
            DecodedRow::Valid(..) => None,
            DecodedRow::Invalid(_, poison) => Some(poison),
        }
    }

    /// The trouble it is where poison stops delivery.
    pub fn poison_error(&self, error: impl fmt::Display, position: Position) -> RelayError {
        let what = match self.id() {
            Some(id) => {
                let id = excerpt(&String::from_utf8_lossy(id.as_bytes()));
                format!("event {id} at {position}: {error}")
            }
            None => format!("the row at {position}: {error}"),
        };
        RelayError::new(ErrorKind::PoisonRow, what).at(position)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use pg_replication::{CommitLsn, EndLsn};

    use super::*;
    use crate::config::Routing;
    use crate::routing::mapping::{
        Destination, RoutingHistory, RoutingInput, RoutingTable, Rule, TopicShape,
    };

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

    /// Topic, and why it is a dead letter there; or why it has no place.
    fn place(
        mapper: &mut RoutingTable,
        route: Option<&str>,
        bytes: usize,
        flaw: Option<&Poison>,
        commit: u64,
    ) -> Result<(String, Option<Poison>), RoutingError> {
        let commit = CommitLsn::new(commit.into());
        let column = |_: &str| route;
        let subject = RoutingInput { key: b"k", bytes, has_key: true, position: None, flaw, commit, column };
        mapper.destination(&subject).map(|place| match place {
            Destination::Partition { topic, poison, .. } => (topic.to_owned(), poison),
            Destination::NewTopic(topic) => (format!("new {topic}"), None),
        })
    }

    #[test]
    fn every_kind_of_poison_goes_to_the_dead_letter_topic_and_nothing_else_does() {
        let topics = ["outbox.event.a", "dead"];
        let mut mapper =
            RoutingTable::new(with_topics(RoutingHistory::first(rule(Some("dead"))), &topics)).unwrap();
        let headers = Poison::new(PoisonKind::Headers, "bad headers");
        for (route, bytes, flaw, kind, topic) in [
            (Some("a b"), 10, None, PoisonKind::Unroutable, Some("outbox.event.a b")),
            (None, 10, None, PoisonKind::Unroutable, None),
            (Some("a"), 1_001, None, PoisonKind::TooLarge, Some("outbox.event.a")),
            (Some("a"), 10, Some(&headers), PoisonKind::Headers, Some("outbox.event.a")),
        ] {
            let (place, poison) = place(&mut mapper, route, bytes, flaw, 1).unwrap();
            let poison = poison.unwrap();
            assert_eq!((place.as_str(), poison.kind, poison.topic.as_deref()), ("dead", kind, topic));
        }
        assert_eq!(place(&mut mapper, Some("a"), 1_000, None, 1).unwrap(), ("outbox.event.a".into(), None));
        let mut stops = RoutingTable::new(with_topics(RoutingHistory::first(rule(None)), &topics)).unwrap();
        assert!(place(&mut stops, Some("a b"), 10, None, 1).is_err());
        assert!(place(&mut stops, Some("a"), 10, Some(&headers), 1).is_err());
    }

    #[test]
    fn a_dead_letter_stays_one_for_a_row_that_may_have_been_sent_as_one() {
        let horizon = EndLsn::new(100.into());
        let larger = |dead| Rule { max_message_bytes: 5_000, ..rule(dead) };
        let before = with_topics(RoutingHistory::first(rule(Some("dead"))), &["outbox.event.a", "dead"]);
        // The limit was raised: what was a dead letter before the horizon is judged where dead letters are.
        let mut mapper = RoutingTable::new(before.clone().under(larger(Some("dead")), horizon)).unwrap();
        let at = |mapper: &mut RoutingTable, commit| place(mapper, Some("a"), 2_000, None, commit).unwrap().0;
        assert_eq!((at(&mut mapper, 99).as_str(), at(&mut mapper, 100).as_str()), ("dead", "outbox.event.a"));
        // Dead letters were switched off.
        let mut mapper = RoutingTable::new(before.under(rule(None), horizon)).unwrap();
        assert_eq!(at(&mut mapper, 99), "dead");
        assert!(place(&mut mapper, Some("a"), 2_000, None, 100).is_err());
        // They were switched on: a row that waited has no place in the mapping before, so it was not sent.
        let before = with_topics(RoutingHistory::first(rule(None)), &["outbox.event.a"]);
        let mut mapper = RoutingTable::new(before.under(rule(Some("dead")), horizon)).unwrap();
        assert_eq!(at(&mut mapper, 99), "new dead");
    }
}
