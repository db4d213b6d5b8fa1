//! Where a row goes: the mapping, and what is remembered of mappings that came before it.
//!
//! The destination of a row is a pure function of the row and the mapping: the routing rule, the size limits, and
//! for each topic the number of partitions its events are spread over. High marks rest on it: a row is judged by
//! what *its* partition holds, so a row that may have been sent must be judged where it was sent. Therefore the
//! mapping is part of the state: it is stored in the checkpoint before the first record goes out under it, and after
//! a change the one before stays, for the rows it may have sent:
//!
//! - Each earlier mapping has an `until`: no row committed at or beyond it was ever sent under it.
//! - A row committed before `until` goes where the earlier mapping sends it, **if** that is a place at all. A row
//!   the earlier mapping had no place for was certainly not sent under it, and the next mapping decides.
//! - Earlier mappings form a chain, oldest first; each is frozen, and forgotten once everything before its `until`
//!   is confirmed. A change while an earlier mapping is still needed makes the chain one longer. Nothing has to be
//!   finished first, and no answer that the chain has given is changed by another change: the first mapping in it
//!   that has a place for a row stays the first.
//!
//! Rows are delivered in stream order and a row without a place holds up everything behind it, so each partition
//! still gets a prefix of *its* rows in position order, across any number of changes and crashes.
//!
//! A row that Kafka refused for a topic has no place there, in whichever mapping: see [`RefusedRows`].

mod generation;
mod refused;
mod stored;

use std::collections::{BTreeMap, BTreeSet, HashMap};

use outbox::Position;
use pg_replication::{CommitLsn, EndLsn};

use self::generation::CompiledRouting;
pub use self::refused::{RefusedRow, RefusedRows};
pub use self::stored::{RoutingConfig, RoutingHistory, Superseded, TopicShape};
use crate::event::poison::Poison;
use crate::routing::error::RoutingError;
use crate::routing::router::InvalidRule;

/// Where a row goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Destination<'m> {
    /// Into a partition.
    Partition {
        /// Topic.
        topic: &'m str,
        /// Partition number.
        number: i32,
        /// The row may go once the checkpoint has this revision of the mapping.
        revision: u64,
        /// Why it goes there as a dead letter.
        poison: Option<Poison>,
    },
    /// Into a topic that is not part of the mapping yet.
    NewTopic(&'m str),
}

/// What decides where a row goes.
pub struct RoutingInput<'a, F> {
    /// What the partition is chosen by: the key, or what stands in for it.
    pub key: &'a [u8],
    /// Size of its record.
    pub bytes: usize,
    /// Whether its record has a key.
    pub has_key: bool,
    /// Its position; a dead letter that is sent again has none.
    pub position: Option<Position>,
    /// Why it cannot be a record, wherever it would go.
    pub flaw: Option<&'a Poison>,
    /// Its commit.
    pub commit: CommitLsn,
    /// Value of a column, as text.
    pub column: F,
}

/// Answers where rows go, and keeps what is to be stored.
pub struct RoutingTable {
    version: i32,
    current: CompiledRouting,
    previous: Vec<(EndLsn, CompiledRouting)>,
    refused: RefusedRows,
    /// Counts what has to be stored; larger numbers hold more.
    revision: u64,
    /// Topics of the current mapping that were added or changed here, and the revision that has it.
    news: HashMap<String, u64>,
}

impl RoutingTable {
    /// Goes on from what is stored.
    pub fn new(stored: RoutingHistory) -> Result<RoutingTable, InvalidRule> {
        let previous = stored.previous.into_iter();
        Ok(RoutingTable {
            version: stored.version,
            current: CompiledRouting::new(stored.current)?,
            previous: previous
                .map(|earlier| Ok((earlier.until, CompiledRouting::new(earlier.mapping)?)))
                .collect::<Result<_, _>>()?,
            refused: stored.refused,
            revision: 0,
            news: HashMap::new(),
        })
    }

    /// Where a row goes.
    pub fn destination<'a, F: Fn(&str) -> Option<&'a str>>(
        &mut self,
        subject: &RoutingInput<'a, F>,
    ) -> Result<Destination<'_>, RoutingError> {
        for (until, earlier) in &mut self.previous {
            // A topic that is not in it got nothing under it.
            if until.covers(subject.commit)
                && let Ok((topic, Some(number), poison)) = earlier.destination(subject, &self.refused)
            {
                let revision = self.news.get(topic).copied().unwrap_or(0);
                return Ok(Destination::Partition { topic, number, revision, poison });
            }
        }
        let (topic, number, poison) = self.current.destination(subject, &self.refused)?;
        let revision = self.news.get(topic).copied().unwrap_or(0);
        Ok(match number {
            Some(number) => Destination::Partition { topic, number, revision, poison },
            None => Destination::NewTopic(topic),
        })
    }

    /// The size of the largest record a topic takes now. Of one that only earlier mappings know that is not followed: each
    /// of them has placed rows by what it was then.
    pub fn limit(&self, topic: &str) -> usize {
        self.current.mapping.limit(topic).0
    }

    /// Whether a topic takes a record of that size, with or without a key, now.
    pub fn takes_now(&self, topic: &str, bytes: usize, has_key: bool) -> bool {
        bytes <= self.limit(topic) && (has_key || !self.current.mapping.is_compacted(topic))
    }

    /// A row that Kafka refused and that has no other place is tried once more. It has not been sent elsewhere.
    pub fn try_again(&mut self, position: Position) {
        let topics = self.refused.forget(position);
        if !topics.is_empty() {
            self.revision += 1;
            // Not before the checkpoint has it, or a start would look for the row elsewhere.
            self.news.extend(topics.into_iter().map(|topic| (topic, self.revision)));
        }
    }

    /// Adds a topic. This changes the destination of no row that was sent: there was none for this topic.
    pub fn add_topic(&mut self, topic: &str, shape: TopicShape) {
        self.revision += 1;
        self.current.mapping.topics.insert(topic.to_owned(), shape);
        self.news.insert(topic.to_owned(), self.revision);
    }

    /// Changes topics; no row committed at or beyond `until` was sent before.
    pub fn change_topics(
        &mut self,
        shapes: &BTreeMap<String, TopicShape>,
        until: EndLsn,
    ) -> Result<(), InvalidRule> {
        let mut mapping = self.current.mapping.clone();
        mapping.topics.extend(shapes.iter().map(|(name, shape)| (name.clone(), *shape)));
        let earlier = std::mem::replace(&mut self.current, CompiledRouting::new(mapping)?);
        self.previous.push((until, earlier));
        self.version += 1;
        self.revision += 1;
        let changed = shapes.keys().map(|name| (name.clone(), self.revision));
        self.news.extend(changed);
        Ok(())
    }

    /// Everything before `confirmed` is confirmed: what only concerns rows before it is forgotten.
    pub fn on_confirmed(&mut self, confirmed: EndLsn) {
        let before = self.previous.len();
        self.previous.retain(|(until, _)| *until > confirmed);
        if self.refused.confirm(confirmed) || self.previous.len() < before {
            self.revision += 1;
        }
    }

    /// The smallest limit of any topic: no batch may be larger.
    pub fn smallest_limit(&self) -> Option<usize> {
        let earlier = self.previous.iter().map(|(_, generation)| generation);
        earlier.chain([&self.current]).filter_map(|generation| generation.mapping.smallest_limit()).min()
    }

    /// What a topic looks like in the current mapping.
    pub fn shape(&self, topic: &str) -> Option<TopicShape> {
        self.current.mapping.topics.get(topic).copied()
    }

    /// Topics of all mappings.
    pub fn topics(&self) -> BTreeSet<&str> {
        let earlier = self.previous.iter().map(|(_, generation)| generation);
        earlier.chain([&self.current]).flat_map(|g| g.mapping.topics.keys().map(String::as_str)).collect()
    }

    /// Changes with everything that has to be stored.
    pub fn revision(&self) -> u64 {
        self.revision
    }

    /// What is to be stored.
    pub fn stored(&self) -> RoutingHistory {
        let earlier = |(until, generation): &(EndLsn, CompiledRouting)| Superseded {
            until: *until,
            mapping: generation.mapping.clone(),
        };
        RoutingHistory {
            version: self.version,
            current: self.current.mapping.clone(),
            previous: self.previous.iter().map(earlier).collect(),
            refused: self.refused.clone(),
        }
    }

    /// The column that the current rule reads.
    pub fn by_field(&self) -> &str {
        &self.current.mapping.rule.routing.by_field
    }
}

#[cfg(test)]
mod model;

#[cfg(test)]
mod tests {
    use pg_replication::Lsn;

    use super::*;
    use crate::event::poison::PoisonKind;
    use crate::routing::rule::{Routing, Rule};

    fn rule(replacement: &str, max_message_bytes: usize) -> Rule {
        let routing = Routing { replacement: replacement.into(), ..Routing::default() };
        Rule { routing, max_message_bytes, dead_letter_topic: None }
    }
    fn end(lsn: u64) -> EndLsn {
        EndLsn::new(Lsn::from(lsn))
    }
    fn shape(partitions: i32) -> TopicShape {
        TopicShape { partitions, max_message_bytes: None, compacted: false }
    }
    fn topic_of(mapper: &mut RoutingTable, commit: u64, bytes: usize) -> Result<String, RoutingError> {
        let commit = CommitLsn::new(Lsn::from(commit));
        let column = |_: &str| Some("x");
        let subject =
            RoutingInput { key: b"k", bytes, has_key: true, position: None, flaw: None, commit, column };
        Ok(match mapper.destination(&subject)? {
            Destination::Partition { topic, .. } => topic.to_owned(),
            Destination::NewTopic(topic) => format!("{topic}, new"),
        })
    }

    #[test]
    fn rows_before_the_change_go_where_they_would_have_gone() {
        let mut old = RoutingHistory::first(rule("old.${routedByValue}", 100));
        old.current.topics.insert("old.x".into(), shape(3));
        let mut mapper = RoutingTable::new(old.under(rule("new.${routedByValue}", 200), end(50))).unwrap();
        assert_eq!(topic_of(&mut mapper, 49, 80).unwrap(), "old.x");
        assert_eq!(topic_of(&mut mapper, 50, 80).unwrap(), "new.x, new");
        assert_eq!(
            topic_of(&mut mapper, 49, 150).unwrap(),
            "new.x, new",
            "too large for the old rule: never sent"
        );
        assert!(topic_of(&mut mapper, 49, 250).is_err());
        mapper.on_confirmed(end(50));
        assert_eq!(topic_of(&mut mapper, 49, 80).unwrap(), "new.x, new", "forgotten");
    }

    #[test]
    fn a_topic_the_old_mapping_did_not_know_got_nothing_under_it() {
        let old = RoutingHistory::first(rule("old.${routedByValue}", 100));
        let mut mapper = RoutingTable::new(old.under(rule("new.${routedByValue}", 100), end(50))).unwrap();
        assert_eq!(topic_of(&mut mapper, 10, 1).unwrap(), "new.x, new");
    }

    #[test]
    fn no_batch_is_too_large_for_a_topic_that_only_an_earlier_mapping_knows() {
        let mut old = RoutingHistory::first(rule("old.${routedByValue}", 100));
        old.current.topics.insert("old.x".into(), TopicShape { max_message_bytes: Some(50), ..shape(3) });
        let both = old.under(rule("new.${routedByValue}", 200), end(50));
        assert_eq!(both.smallest_limit(), Some(50));
        let mut mapper = RoutingTable::new(both).unwrap();
        mapper.add_topic("new.x", TopicShape { max_message_bytes: Some(70), ..shape(3) });
        assert_eq!(mapper.smallest_limit(), Some(50));
        mapper.on_confirmed(end(50));
        assert_eq!(mapper.smallest_limit(), Some(70), "forgotten");
    }

    #[test]
    fn values_without_end_do_not_fill_the_memory() {
        let mut mapper = RoutingTable::new(RoutingHistory::first(Rule {
            routing: Routing { regex: "x.*".into(), replacement: "t".into(), ..Routing::default() },
            max_message_bytes: 100,
            dead_letter_topic: None,
        }))
        .unwrap();
        for n in 0..100_000 {
            let value = format!("x{n}");
            let commit = CommitLsn::new(Lsn::from(1));
            let column = |_: &str| Some(value.as_str());
            let subject = RoutingInput {
                key: b"k",
                bytes: 1,
                has_key: true,
                position: None,
                flaw: None,
                commit,
                column,
            };
            mapper.destination(&subject).unwrap();
        }
        assert!(mapper.current.remembered() < 20_000);
    }

    /// Topic of a row without a key at that position, and why it is a dead letter there.
    fn keyless(
        mapper: &mut RoutingTable,
        position: Position,
    ) -> Result<(String, Option<PoisonKind>), RoutingError> {
        let commit = CommitLsn::new(Lsn::from(position.commit_lsn));
        let (position, column) = (Some(position), |_: &str| Some("x"));
        let subject =
            RoutingInput { key: b"id", bytes: 1, has_key: false, position, flaw: None, commit, column };
        Ok(match mapper.destination(&subject)? {
            Destination::Partition { topic, poison, .. } => {
                (topic.to_owned(), poison.map(|poison| poison.kind))
            }
            Destination::NewTopic(topic) => (format!("{topic}, new"), None),
        })
    }

    fn at(commit_lsn: u64) -> Position {
        Position { timeline: 1, commit_lsn, index: 0 }
    }

    #[test]
    fn a_compacted_topic_takes_no_row_without_a_key() {
        let dead = Some("dead".to_owned());
        let mut first =
            RoutingHistory::first(Rule { dead_letter_topic: dead, ..rule("t.${routedByValue}", 100) });
        first.current.topics.insert("t.x".into(), shape(3));
        first.current.topics.insert("dead".into(), shape(1));
        let mut mapper = RoutingTable::new(first).unwrap();
        assert_eq!(keyless(&mut mapper, at(1)).unwrap(), ("t.x".into(), None));
        let compacted = TopicShape { compacted: true, ..shape(3) };
        mapper.change_topics(&BTreeMap::from([("t.x".into(), compacted)]), end(50)).unwrap();
        assert_eq!(keyless(&mut mapper, at(49)).unwrap(), ("t.x".into(), None), "may have been sent");
        assert!(!mapper.takes_now("t.x", 1, false) && mapper.takes_now("t.x", 1, true));
        assert_eq!(keyless(&mut mapper, at(50)).unwrap(), ("dead".into(), Some(PoisonKind::NoKey)));
        mapper.change_topics(&BTreeMap::from([("dead".into(), compacted)]), end(60)).unwrap();
        let error = keyless(&mut mapper, at(60)).unwrap_err();
        assert_eq!(error.decided_by_settings_of(), Some("dead"), "{error}");
        assert!(
            error.to_string().contains("cannot become a dead letter: topic dead is compacted"),
            "{error}"
        );
    }

    #[test]
    fn a_refused_row_has_no_place_in_that_topic_under_any_mapping_and_is_tried_again_once_that_is_stored() {
        let mut old = RoutingHistory::first(rule("old.${routedByValue}", 100));
        old.current.topics.insert("old.x".into(), shape(3));
        let mut both = old.under(rule("new.${routedByValue}", 100), end(50));
        both.current.topics.insert("new.x".into(), shape(3));
        let refused = |topic: &str| RefusedRow { position: at(10), topic: topic.into(), cause: "no".into() };
        assert!(both.refused.add(refused("old.x")));
        let mut mapper = RoutingTable::new(both.clone()).unwrap();
        assert_eq!(keyless(&mut mapper, at(11)).unwrap().0, "old.x");
        assert_eq!(keyless(&mut mapper, at(10)).unwrap().0, "new.x", "it was not sent there");
        assert!(both.refused.add(refused("new.x")));
        let mut mapper = RoutingTable::new(both).unwrap();
        assert!(keyless(&mut mapper, at(10)).unwrap_err().is_refusal());
        mapper.try_again(at(10));
        let commit = CommitLsn::new(Lsn::from(10));
        let (position, column) = (Some(at(10)), |_: &str| Some("x"));
        let subject =
            RoutingInput { key: b"k", bytes: 1, has_key: true, position, flaw: None, commit, column };
        let Destination::Partition { topic: "old.x", revision, .. } = mapper.destination(&subject).unwrap()
        else {
            panic!("elsewhere");
        };
        assert_eq!((revision, mapper.revision()), (1, 1));
        assert!(mapper.stored().refused.is_empty());
    }

    #[test]
    fn a_checkpoint_of_before_is_read() {
        let json = serde_json::json!({"current": {
            "routing": Routing::default(), "maxMessageBytes": 100, "topics": {"t": {"partitions": 3}},
        }});
        let mappings: RoutingHistory = serde_json::from_value(json).unwrap();
        assert_eq!(mappings.current.topics["t"], shape(3));
        assert!(mappings.refused.is_empty());
    }

    #[test]
    fn what_is_stored_is_read_back_and_an_unchanged_rule_is_no_change() {
        let mut first = RoutingHistory::first(rule("old.${routedByValue}", 100));
        first.current.topics.insert("old.x".into(), shape(3));
        let changed = first.clone().under(rule("new.${routedByValue}", 100), end(0x16_B374_D848));
        assert_eq!((first.version, changed.version), (1, 2));
        let json = serde_json::to_value(&changed).unwrap();
        assert_eq!(json["previous"][0]["until"], "16/B374D848");
        assert_eq!(json["previous"][0]["topics"]["old.x"]["partitions"], 3);
        let back: RoutingHistory = serde_json::from_value(json).unwrap();
        assert_eq!(RoutingHistory { version: 2, ..back }, changed);
        let rule = changed.current.rule.clone();
        assert_eq!(changed.clone().under(rule, end(1)), changed);
    }

    #[test]
    fn a_limit_alone_keeps_the_topics_and_a_topics_own_limit_holds() {
        let mut first = RoutingHistory::first(rule("t.${routedByValue}", 100));
        first.current.topics.insert("t.x".into(), TopicShape { max_message_bytes: Some(50), ..shape(3) });
        let mut mapper = RoutingTable::new(first.under(rule("t.${routedByValue}", 200), end(9))).unwrap();
        assert_eq!(mapper.shape("t.x").map(|shape| shape.partitions), Some(3));
        assert_eq!((mapper.limit("t.x"), mapper.limit("t.y")), (50, 200));
        let refused = topic_of(&mut mapper, 10, 60).unwrap_err().to_string();
        assert_eq!(refused, "the record would have 60 bytes, max.message.bytes of topic t.x is 50");
    }
}
