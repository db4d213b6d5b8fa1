//! The destination of a row: the current mapping, and earlier mappings that still matter.
//!
//! A *mapping* determines the destination of each row: the routing rule, the size limits, and for each topic the number
//! of partitions in use. Deduplication depends on it: a row is a duplicate if *its* partition has it, so a row that may
//! have been sent must be compared with the partition it was sent to. Therefore mappings are part of the checkpoint. A
//! mapping is stored before the first record is sent by it, and after a change the earlier mapping is kept for the rows
//! that may have been sent by it:
//!
//! - Each earlier mapping has an `until`: no row committed at or after it was sent by this mapping.
//! - A row committed before `until` goes where the earlier mapping sends it, **if** it has a destination there. A row
//!   without one was certainly not sent by that mapping, so the next mapping decides.
//! - Earlier mappings form a chain, oldest first. Each is immutable, and is dropped once everything before its `until`
//!   is confirmed. A change while an earlier mapping is still needed makes the chain one longer. A change never has to
//!   wait, and never alters the destination of a row that was sent: the first mapping in the chain that has a
//!   destination for the row stays the first.
//!
//! Rows are delivered in stream order, and a row without a destination blocks everything after it. So each partition
//! still gets a prefix of *its* rows in position order, across any number of changes and crashes.
//!
//! A row that Kafka refused for a topic has no destination there in any mapping: see [`RefusedRows`].

mod chain;
mod compiled;
mod refused;
mod stored;
#[cfg(test)]
pub(super) mod testing;

use std::collections::{BTreeMap, BTreeSet};
use std::convert::Infallible;

use outbox::Position;
use pg_replication::{CommitLsn, EndLsn};

pub use self::chain::{MappingChain, Superseded};
use self::compiled::{CompiledRouting, Route};
pub use self::refused::{RefusedRow, RefusedRows};
pub use self::stored::{RoutingConfig, RoutingHistory, TopicShape};
use crate::event::poison::Poison;
use crate::routing::error::RoutingError;
use crate::routing::router::{InvalidRule, partition};
use crate::topics::partitions::PartitionNumber;
use crate::topics::registry::{TopicId, TopicRegistry};

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Destination {
    pub topic: TopicId,
    pub number: PartitionNumber,
    /// The row may be sent once the committed checkpoint has this routing revision.
    pub revision: Revision,
    /// Why the row goes there as a dead letter, if it does.
    pub poison: Option<Poison>,
}

/// The destination of a row by the current mapping.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CurrentDestination {
    Partition(Destination),
    /// A topic that is not part of the mapping yet.
    NewTopic(String),
}

/// The destination of a row by an earlier mapping.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum EarlierDestination {
    /// The row still goes there.
    Kept(Destination),
    /// The topic does not accept the row any more. If the row was not sent there then, the current mapping decides.
    Superseded(Destination),
}

/// The properties of a row that determine its destination.
pub struct RoutingInput<'a, F> {
    /// The bytes that choose the partition: the key, or its substitute.
    pub key: &'a [u8],
    /// The size of the record.
    pub bytes: usize,
    /// Whether the record has a key.
    pub has_key: bool,
    /// The row's position; a replayed dead letter has none.
    pub position: Option<Position>,
    /// Why the row cannot be converted to a record, if it cannot.
    pub invalid: Option<&'a Poison>,
    /// Returns the text of a column.
    pub column: F,
}

/// Counts the changes of a session's routing that have to be stored before rows are sent by them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Revision(u64);

impl Revision {
    fn increment(&mut self) {
        self.0 += 1;
    }
}

/// Determines destinations, and keeps the mappings to store.
pub struct RoutingTable {
    mappings: MappingChain<CompiledRouting>,
    /// Incremented with each change that has to be stored.
    revision: Revision,
    /// Topics that were added or changed in this session, and the revision of the change.
    changed_topics: BTreeMap<TopicId, Revision>,
}

impl RoutingTable {
    /// Continues from the stored mappings. Adds their topics to the registry, unless it has them.
    pub fn new(stored: &RoutingHistory, registry: &mut TopicRegistry) -> Result<RoutingTable, InvalidRule> {
        let no_starts = BTreeMap::new();
        let mappings = stored.try_map(|RoutingConfig { rule, topics }| {
            let by_id =
                topics.iter().map(|(name, shape)| (registry.add(name, shape.partitions, &no_starts), *shape));
            CompiledRouting::new(rule.clone(), by_id.collect())
        })?;
        Ok(RoutingTable { mappings, revision: Revision::default(), changed_topics: BTreeMap::new() })
    }

    /// The destination of a row that an earlier mapping may have sent; `None` if none has a destination for it. `commit`
    /// is the commit LSN of the row's transaction.
    pub fn earlier_destination<'a, F: Fn(&str) -> Option<&'a str>>(
        &mut self,
        input: &RoutingInput<'a, F>,
        commit: CommitLsn,
        registry: &TopicRegistry,
    ) -> Option<EarlierDestination> {
        let MappingChain { current, previous, refused, .. } = &mut self.mappings;
        let mut applicable = previous.iter_mut().filter(|earlier| earlier.until.covers(commit));
        // No row was sent by a mapping to a topic that is not part of it.
        let found = applicable.find_map(|earlier| match earlier.mapping.route(input, refused, registry) {
            Ok((Route::Known(topic, shape), poison)) => Some((topic, shape, poison)),
            _ => None,
        });
        let (topic, shape, poison) = found?;
        let kept = poison.is_some() || current.accepts(topic, input.bytes, input.has_key);
        let destination = self.partition(topic, shape, input.key, poison);
        Some(match kept {
            true => EarlierDestination::Kept(destination),
            false => EarlierDestination::Superseded(destination),
        })
    }

    pub fn current_destination<'a, F: Fn(&str) -> Option<&'a str>>(
        &mut self,
        input: &RoutingInput<'a, F>,
        registry: &TopicRegistry,
    ) -> Result<CurrentDestination, RoutingError> {
        let MappingChain { current, refused, .. } = &mut self.mappings;
        let (route, poison) = current.route(input, refused, registry)?;
        Ok(match route {
            Route::Known(topic, shape) => {
                CurrentDestination::Partition(self.partition(topic, shape, input.key, poison))
            }
            Route::New(topic) => CurrentDestination::NewTopic(topic),
        })
    }

    fn partition(
        &self,
        topic: TopicId,
        shape: TopicShape,
        key: &[u8],
        poison: Option<Poison>,
    ) -> Destination {
        let revision = self.changed_topics.get(&topic).copied().unwrap_or_default();
        Destination { topic, number: partition(key, shape.partitions), revision, poison }
    }

    /// The size of the largest record that a topic accepts now. For topics known only to earlier mappings this limit is
    /// not tracked: those mappings keep the limit they were created with.
    pub fn limit(&self, topic: TopicId) -> usize {
        self.mappings.current.limit(topic)
    }

    /// Makes a row that Kafka refused routable again. The row has no other destination, so it was not sent elsewhere.
    pub fn retry(&mut self, position: Position, registry: &TopicRegistry) {
        let topics = self.mappings.refused.forget(position);
        if !topics.is_empty() {
            self.revision.increment();
            // The row waits until the checkpoint has this revision. Otherwise a restart would route it elsewhere. A
            // topic that is not in use gets a revision when it is added.
            let known = topics.iter().filter_map(|topic| registry.find(topic));
            self.changed_topics.extend(known.map(|topic| (topic, self.revision)));
        }
    }

    /// Adds a topic. This does not affect rows that were sent, because none was sent to this topic.
    pub fn add_topic(&mut self, topic: TopicId, shape: TopicShape) {
        self.revision.increment();
        self.mappings.current.topics.insert(topic, shape);
        self.changed_topics.insert(topic, self.revision);
    }

    /// Changes topics. No row committed at or after `until` was sent before the change.
    pub fn change_topics(
        &mut self,
        shapes: &BTreeMap<TopicId, TopicShape>,
        until: EndLsn,
    ) -> Result<(), InvalidRule> {
        let current = &self.mappings.current;
        let mut topics = current.topics.clone();
        topics.extend(shapes);
        let changed = CompiledRouting::new(current.rule.clone(), topics)?;
        self.mappings.replace(changed, until);
        self.revision.increment();
        self.changed_topics.extend(shapes.keys().map(|topic| (*topic, self.revision)));
        Ok(())
    }

    /// Drops mappings and refused rows that only concern rows before `confirmed`.
    pub fn on_confirmed(&mut self, confirmed: EndLsn) {
        if self.mappings.drop_confirmed(confirmed) {
            self.revision.increment();
        }
    }

    /// The smallest limit of any topic. No batch may be larger.
    pub fn smallest_limit(&self) -> Option<usize> {
        self.mappings.all().filter_map(CompiledRouting::smallest_limit).min()
    }

    pub fn shape(&self, topic: TopicId) -> Option<TopicShape> {
        self.mappings.current.topics.get(&topic).copied()
    }

    /// The topics of all mappings.
    pub fn topics(&self) -> BTreeSet<TopicId> {
        self.mappings.all().flat_map(|compiled| compiled.topics.keys().copied()).collect()
    }

    /// Incremented with each change that has to be stored.
    pub fn revision(&self) -> Revision {
        self.revision
    }

    /// The mappings to store.
    pub fn history(&self, registry: &TopicRegistry) -> RoutingHistory {
        let Ok(history) = self.mappings.try_map(|mapping| Ok::<_, Infallible>(mapping.to_config(registry)));
        history
    }

    /// The column that the current rule reads.
    pub fn by_field(&self) -> &str {
        &self.mappings.current.rule.routing.by_field
    }
}

#[cfg(test)]
mod tests {
    use super::testing::RoutedTopics;
    use super::*;
    use crate::event::poison::PoisonKind;
    use crate::routing::rule::{Routing, Rule};
    use crate::testing::{at, end};

    fn rule(replacement: &str, max_message_bytes: usize) -> Rule {
        let routing = Routing { replacement: replacement.into(), ..Routing::default() };
        Rule { routing, max_message_bytes, dead_letter_topic: None }
    }
    fn shape(partitions: i32) -> TopicShape {
        TopicShape { partitions, max_message_bytes: None, compacted: false }
    }
    fn topic_of(routing: &mut RoutedTopics, commit: u64, bytes: usize) -> Result<String, RoutingError> {
        let column = |_: &str| Some("x");
        let input = RoutingInput { key: b"k", bytes, has_key: true, position: None, invalid: None, column };
        routing.topic(&input, commit).map(|(topic, _)| topic)
    }

    #[test]
    fn rows_before_a_change_are_routed_by_the_earlier_mapping() {
        let mut old = RoutingHistory::first(rule("old.${routedByValue}", 100));
        old.current.topics.insert("old.x".into(), shape(3));
        let mut table = RoutedTopics::new(old.with_rule(rule("new.${routedByValue}", 200), end(50)));
        assert_eq!(topic_of(&mut table, 49, 80).unwrap(), "old.x");
        assert_eq!(topic_of(&mut table, 50, 80).unwrap(), "new.x, new");
        assert_eq!(
            topic_of(&mut table, 49, 150).unwrap(),
            "new.x, new",
            "too large for the old rule, so it was never sent"
        );
        assert!(topic_of(&mut table, 49, 250).is_err());
        table.table.on_confirmed(end(50));
        assert_eq!(topic_of(&mut table, 49, 80).unwrap(), "new.x, new", "the earlier mapping is dropped");
    }

    #[test]
    fn no_row_was_sent_to_a_topic_that_the_old_mapping_did_not_know() {
        let old = RoutingHistory::first(rule("old.${routedByValue}", 100));
        let mut table = RoutedTopics::new(old.with_rule(rule("new.${routedByValue}", 100), end(50)));
        assert_eq!(topic_of(&mut table, 10, 1).unwrap(), "new.x, new");
    }

    #[test]
    fn no_batch_is_too_large_for_a_topic_that_only_an_earlier_mapping_knows() {
        let mut old = RoutingHistory::first(rule("old.${routedByValue}", 100));
        old.current.topics.insert("old.x".into(), TopicShape { max_message_bytes: Some(50), ..shape(3) });
        let both = old.with_rule(rule("new.${routedByValue}", 200), end(50));
        assert_eq!(both.smallest_limit(), Some(50));
        let mut table = RoutedTopics::new(both);
        table.add_topic("new.x", TopicShape { max_message_bytes: Some(70), ..shape(3) });
        assert_eq!(table.table.smallest_limit(), Some(50));
        table.table.on_confirmed(end(50));
        assert_eq!(table.table.smallest_limit(), Some(70), "the earlier mapping is dropped");
    }

    #[test]
    fn an_unlimited_number_of_values_does_not_fill_the_memory() {
        let mut first = RoutingHistory::first(Rule {
            routing: Routing { regex: "x.*".into(), replacement: "t".into(), ..Routing::default() },
            max_message_bytes: 100,
            dead_letter_topic: None,
        });
        first.current.topics.insert("t".into(), shape(3));
        let mut table = RoutedTopics::new(first);
        for n in 0..100_000 {
            let value = format!("x{n}");
            let column = |_: &str| Some(value.as_str());
            let input =
                RoutingInput { key: b"k", bytes: 1, has_key: true, position: None, invalid: None, column };
            table.destination(&input, 1).unwrap();
        }
        assert!((1..20_000).contains(&table.table.mappings.current.cached_routes()));
    }

    /// The topic of a row without a key at this position, and the kind of poison if it goes there as a dead letter.
    fn keyless(
        table: &mut RoutedTopics,
        position: Position,
    ) -> Result<(String, Option<PoisonKind>), RoutingError> {
        let (commit, column) = (position.commit_lsn, |_: &str| Some("x"));
        let position = Some(position);
        let input = RoutingInput { key: b"id", bytes: 1, has_key: false, position, invalid: None, column };
        let (topic, poison) = table.topic(&input, commit)?;
        Ok((topic, poison.map(|poison| poison.kind)))
    }

    #[test]
    fn a_compacted_topic_accepts_no_row_without_a_key() {
        let dead = Some("dead".to_owned());
        let mut first =
            RoutingHistory::first(Rule { dead_letter_topic: dead, ..rule("t.${routedByValue}", 100) });
        first.current.topics.insert("t.x".into(), shape(3));
        first.current.topics.insert("dead".into(), shape(1));
        let mut table = RoutedTopics::new(first);
        assert_eq!(keyless(&mut table, at(1)).unwrap(), ("t.x".into(), None));
        let compacted = TopicShape { compacted: true, ..shape(3) };
        table.change_topic("t.x", compacted, end(50));
        assert_eq!(keyless(&mut table, at(49)).unwrap(), ("t.x".into(), None), "may have been sent");
        let current = &table.table.mappings.current;
        let topic = table.registry.find("t.x").unwrap();
        assert!(!current.accepts(topic, 1, false) && current.accepts(topic, 1, true));
        assert_eq!(keyless(&mut table, at(50)).unwrap(), ("dead".into(), Some(PoisonKind::NoKey)));
        table.change_topic("dead", compacted, end(60));
        let error = keyless(&mut table, at(60)).unwrap_err();
        assert_eq!(error.decided_by_settings_of(), Some("dead"), "{error}");
        assert!(
            error.to_string().contains("cannot become a dead letter: topic dead is compacted"),
            "{error}"
        );
    }

    #[test]
    fn a_refused_row_has_no_destination_in_its_topic_in_any_mapping_and_is_retried_once_that_is_stored() {
        let mut old = RoutingHistory::first(rule("old.${routedByValue}", 100));
        old.current.topics.insert("old.x".into(), shape(3));
        let mut both = old.with_rule(rule("new.${routedByValue}", 100), end(50));
        both.current.topics.insert("new.x".into(), shape(3));
        let refused = |topic: &str| RefusedRow { position: at(10), topic: topic.into(), cause: "no".into() };
        assert!(both.refused.add(refused("old.x")));
        let mut table = RoutedTopics::new(both.clone());
        assert_eq!(keyless(&mut table, at(11)).unwrap().0, "old.x");
        assert_eq!(keyless(&mut table, at(10)).unwrap().0, "new.x", "it was not sent there");
        assert!(both.refused.add(refused("new.x")));
        let mut table = RoutedTopics::new(both);
        assert!(keyless(&mut table, at(10)).unwrap_err().is_refusal());
        table.table.retry(at(10), &table.registry);
        let (position, column) = (Some(at(10)), |_: &str| Some("x"));
        let input = RoutingInput { key: b"k", bytes: 1, has_key: true, position, invalid: None, column };
        let CurrentDestination::Partition(Destination { topic, revision, .. }) =
            table.destination(&input, 10).unwrap()
        else {
            panic!("not routed");
        };
        assert_eq!(table.registry.topic(topic).name, "old.x");
        assert_eq!((revision, table.table.revision()), (Revision(1), Revision(1)));
        assert!(table.table.history(&table.registry).refused.is_empty());
    }

    #[test]
    fn a_checkpoint_of_an_early_version_is_read() {
        let json = serde_json::json!({"current": {
            "routing": Routing::default(), "maxMessageBytes": 100, "topics": {"t": {"partitions": 3}},
        }});
        let mappings: RoutingHistory = serde_json::from_value(json).unwrap();
        assert_eq!(mappings.current.topics["t"], shape(3));
        assert!(mappings.refused.is_empty());
    }

    #[test]
    fn a_stored_history_is_read_back_and_an_unchanged_rule_is_no_change() {
        let mut first = RoutingHistory::first(rule("old.${routedByValue}", 100));
        first.current.topics.insert("old.x".into(), shape(3));
        let changed = first.clone().with_rule(rule("new.${routedByValue}", 100), end(0x16_B374_D848));
        assert_eq!((first.version, changed.version), (1, 2));
        let json = serde_json::to_value(&changed).unwrap();
        assert_eq!(json["previous"][0]["until"], "16/B374D848");
        assert_eq!(json["previous"][0]["topics"]["old.x"]["partitions"], 3);
        let back: RoutingHistory = serde_json::from_value(json).unwrap();
        assert_eq!(RoutingHistory { version: 2, ..back }, changed);
        let rule = changed.current.rule.clone();
        assert_eq!(changed.clone().with_rule(rule, end(1)), changed);
    }

    #[test]
    fn a_limit_alone_keeps_the_topics_and_a_topics_own_limit_holds() {
        let mut first = RoutingHistory::first(rule("t.${routedByValue}", 100));
        first.current.topics.insert("t.x".into(), TopicShape { max_message_bytes: Some(50), ..shape(3) });
        let mut table = RoutedTopics::new(first.with_rule(rule("t.${routedByValue}", 200), end(9)));
        let topic = table.registry.find("t.x").unwrap();
        assert_eq!(table.table.shape(topic).map(|shape| shape.partitions), Some(3));
        let other = table.registry.add("t.y", 3, &BTreeMap::new());
        assert_eq!((table.table.limit(topic), table.table.limit(other)), (50, 200));
        let refused = topic_of(&mut table, 10, 60).unwrap_err().to_string();
        assert_eq!(refused, "the record would have 60 bytes, but max.message.bytes of topic t.x is 50");
    }
}
