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

use std::collections::{BTreeMap, BTreeSet, HashMap};

use pg_replication::{CommitLsn, EndLsn, Lsn};
use serde::{Deserialize, Serialize};

use crate::config::{Config, Routing};
use crate::dead_letter::Poison;
use crate::routing::router::{InvalidRule, Router, Unroutable, partition};

/// What the configuration says about destinations.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Rule {
    /// Which topic an event goes to.
    pub routing: Routing,
    /// Largest record in bytes.
    pub max_message_bytes: usize,
    /// The topic of rows that have no other place; without one they stop delivery.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dead_letter_topic: Option<String>,
}

impl Rule {
    /// The rule of a configuration.
    pub fn of(config: &Config) -> Rule {
        Rule {
            routing: config.routing.clone(),
            max_message_bytes: config.sink.max_message_bytes,
            dead_letter_topic: config.delivery.dead_letters().map(str::to_owned),
        }
    }
}

/// What the mapping knows of a topic.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TopicShape {
    /// Number of partitions events are spread over.
    pub partitions: i32,
    /// The topic's own limit in bytes, where it may be read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_message_bytes: Option<usize>,
}

/// One mapping, as it is stored.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Mapping {
    /// What was configured.
    #[serde(flatten)]
    pub rule: Rule,
    /// Topics that may have got records.
    #[serde(default)]
    pub topics: BTreeMap<String, TopicShape>,
}

/// A mapping that is no longer the current one, as it is stored.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Earlier {
    /// No row committed at or beyond it was sent under this mapping.
    #[serde(with = "lsn_text")]
    pub until: EndLsn,
    /// The mapping.
    #[serde(flatten)]
    pub mapping: Mapping,
}

/// The mapping and those before it, as the checkpoint has them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mappings {
    /// Counts changes. It has a column of its own, so that a person sees it without reading JSON.
    #[serde(skip)]
    pub version: i32,
    /// Where rows go.
    pub current: Mapping,
    /// Where rows went that may be replayed; oldest first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub previous: Vec<Earlier>,
}

impl Mappings {
    /// The first mapping of a relay.
    pub fn first(rule: Rule) -> Mappings {
        Mappings { version: 1, current: Mapping { rule, topics: BTreeMap::new() }, previous: Vec::new() }
    }

    /// Without what only concerns rows before `confirmed`.
    pub fn without_what_is_confirmed(mut self, confirmed: EndLsn) -> Mappings {
        self.previous.retain(|earlier| earlier.until > confirmed);
        self
    }

    /// What holds from now on under `rule`; nothing committed at or beyond `horizon` was sent yet.
    pub fn under(mut self, rule: Rule, horizon: EndLsn) -> Mappings {
        if self.current.rule == rule {
            return self;
        }
        // With other routes other topics may be in use. One that still is will be found again.
        let same_routes = self.current.rule.routing == rule.routing;
        let topics = if same_routes { self.current.topics.clone() } else { BTreeMap::new() };
        self.replace(Mapping { rule, topics }, horizon);
        self
    }

    fn replace(&mut self, mapping: Mapping, until: EndLsn) {
        let mapping = std::mem::replace(&mut self.current, mapping);
        self.previous.push(Earlier { until, mapping });
        self.version += 1;
    }

    /// Every topic with the highest number of partitions it has in any of them.
    pub fn topics(&self) -> BTreeMap<&str, i32> {
        let mut topics = BTreeMap::new();
        let all = self.previous.iter().map(|earlier| &earlier.mapping).chain([&self.current]);
        for (name, shape) in all.flat_map(|mapping| &mapping.topics) {
            let partitions = topics.entry(name.as_str()).or_default();
            *partitions = shape.partitions.max(*partitions);
        }
        topics
    }

    /// Whether a topic is selected by the column of that name in any of them.
    pub fn read(&self, column: &str) -> bool {
        let all = self.previous.iter().map(|earlier| &earlier.mapping).chain([&self.current]);
        all.into_iter().any(|mapping| mapping.rule.routing.by_field == column)
    }

    /// The smallest limit of any topic: no batch may be larger.
    pub fn smallest_limit(&self) -> Option<usize> {
        self.current.smallest_limit()
    }
}

mod lsn_text {
    use super::{EndLsn, Lsn};
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    pub fn serialize<S: Serializer>(lsn: &EndLsn, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(lsn)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<EndLsn, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse::<Lsn>().map(EndLsn::new).map_err(D::Error::custom)
    }
}

/// Why the mapping has no place for a row.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unplaceable {
    /// No topic.
    #[error(transparent)]
    Unroutable(#[from] Unroutable),
    /// Larger than the limit.
    #[error("the record would have {bytes} bytes, {whose} is {limit}")]
    TooLarge {
        /// Its size.
        bytes: usize,
        /// The topic.
        topic: String,
        /// The limit.
        limit: usize,
        /// The setting that sets it.
        whose: String,
    },
    /// The row cannot be a record at all.
    #[error("{}", .0.error)]
    Flawed(Poison),
}

/// Where a row goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place<'m> {
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
pub struct Subject<'a, F> {
    /// What the partition is chosen by: the key, or what stands in for it.
    pub key: &'a [u8],
    /// Size of its record.
    pub bytes: usize,
    /// Why it cannot be a record, wherever it would go.
    pub flaw: Option<&'a Poison>,
    /// Its commit.
    pub commit: CommitLsn,
    /// Value of a column, as text.
    pub column: F,
}

/// A mapping at work.
struct Generation {
    mapping: Mapping,
    router: Router,
    /// Value of the routing column -> topic.
    routes: HashMap<String, String>,
}

impl Generation {
    fn new(mapping: Mapping) -> Result<Generation, InvalidRule> {
        let rule = &mapping.rule;
        let router = Router::new(&rule.routing)?.keeping_clear_of(rule.dead_letter_topic.as_deref());
        Ok(Generation { mapping, router, routes: HashMap::new() })
    }

    /// Where a row goes: its topic, the partition if the topic is known, and why it goes there as a dead letter.
    fn place<'a, F: Fn(&str) -> Option<&'a str>>(
        &mut self,
        subject: &Subject<'a, F>,
    ) -> Result<(&str, Option<i32>, Option<Poison>), Unplaceable> {
        let Generation { mapping, router, routes } = self;
        let (topic, poison) = match as_event(mapping, router, routes, subject) {
            Ok(topic) => (topic, None),
            Err(unplaceable) => match &mapping.rule.dead_letter_topic {
                Some(topic) => (topic.as_str(), Some(unplaceable.into())),
                None => return Err(unplaceable),
            },
        };
        let number = mapping.topics.get(topic).map(|shape| partition(subject.key, shape.partitions));
        Ok((topic, number, poison))
    }
}

fn as_event<'m, 'a, F: Fn(&str) -> Option<&'a str>>(
    mapping: &Mapping,
    router: &Router,
    routes: &'m mut HashMap<String, String>,
    subject: &Subject<'a, F>,
) -> Result<&'m str, Unplaceable> {
    let routed = route(mapping, router, routes, subject);
    if let Some(flaw) = subject.flaw {
        let topic = routed.ok().map(Into::into);
        return Err(Unplaceable::Flawed(Poison { topic, ..flaw.clone() }));
    }
    let topic = routed?;
    mapping.fits(topic, subject.bytes)?;
    Ok(topic)
}

fn route<'m, 'a, F: Fn(&str) -> Option<&'a str>>(
    mapping: &Mapping,
    router: &Router,
    routes: &'m mut HashMap<String, String>,
    subject: &Subject<'a, F>,
) -> Result<&'m str, Unroutable> {
    let value = (subject.column)(&mapping.rule.routing.by_field).ok_or(Unroutable::NoValue)?;
    if !routes.contains_key(value) {
        routes.insert(value.to_owned(), router.topic(value)?);
    }
    Ok(routes.get(value).map_or("", String::as_str))
}

impl Mapping {
    fn smallest_limit(&self) -> Option<usize> {
        self.topics.values().filter_map(|shape| shape.max_message_bytes).min()
    }

    /// The largest record, and whether it is the topic that says so.
    fn limit(&self, topic: &str) -> (usize, bool) {
        let configured = self.rule.max_message_bytes;
        let of_topic = self.topics.get(topic).and_then(|shape| shape.max_message_bytes);
        of_topic.filter(|limit| *limit < configured).map_or((configured, false), |limit| (limit, true))
    }

    fn fits(&self, topic: &str, bytes: usize) -> Result<(), Unplaceable> {
        let (limit, of_topic) = self.limit(topic);
        if bytes <= limit {
            return Ok(());
        }
        let whose = if of_topic {
            format!("max.message.bytes of topic {topic}")
        } else {
            "sink.maxMessageBytes".to_owned()
        };
        Err(Unplaceable::TooLarge { bytes, topic: topic.to_owned(), limit, whose })
    }
}

/// Answers where rows go, and keeps what is to be stored.
pub struct Mapper {
    version: i32,
    current: Generation,
    previous: Vec<(EndLsn, Generation)>,
    /// Counts what has to be stored; larger numbers hold more.
    revision: u64,
    /// Topics of the current mapping that were added or changed here, and the revision that has it.
    news: HashMap<String, u64>,
}

impl Mapper {
    /// Goes on from what is stored.
    pub fn new(stored: Mappings) -> Result<Mapper, InvalidRule> {
        let previous = stored.previous.into_iter();
        Ok(Mapper {
            version: stored.version,
            current: Generation::new(stored.current)?,
            previous: previous
                .map(|earlier| Ok((earlier.until, Generation::new(earlier.mapping)?)))
                .collect::<Result<_, _>>()?,
            revision: 0,
            news: HashMap::new(),
        })
    }

    /// Where a row goes.
    pub fn place<'a, F: Fn(&str) -> Option<&'a str>>(
        &mut self,
        subject: &Subject<'a, F>,
    ) -> Result<Place<'_>, Unplaceable> {
        for (until, earlier) in &mut self.previous {
            // A topic that is not in it got nothing under it.
            if until.covers(subject.commit)
                && let Ok((topic, Some(number), poison)) = earlier.place(subject)
            {
                let revision = self.news.get(topic).copied().unwrap_or(0);
                return Ok(Place::Partition { topic, number, revision, poison });
            }
        }
        let (topic, number, poison) = self.current.place(subject)?;
        let revision = self.news.get(topic).copied().unwrap_or(0);
        Ok(match number {
            Some(number) => Place::Partition { topic, number, revision, poison },
            None => Place::NewTopic(topic),
        })
    }

    /// The size of the largest record a topic takes now.
    pub fn limit(&self, topic: &str) -> usize {
        self.current.mapping.limit(topic).0
    }

    /// Adds a topic. This changes the destination of no row that was sent: there was none for this topic.
    pub fn add(&mut self, topic: &str, shape: TopicShape) {
        self.revision += 1;
        self.current.mapping.topics.insert(topic.to_owned(), shape);
        self.news.insert(topic.to_owned(), self.revision);
    }

    /// Changes topics; no row committed at or beyond `until` was sent before.
    pub fn change(
        &mut self,
        shapes: &BTreeMap<String, TopicShape>,
        until: EndLsn,
    ) -> Result<(), InvalidRule> {
        let mut mapping = self.current.mapping.clone();
        mapping.topics.extend(shapes.iter().map(|(name, shape)| (name.clone(), *shape)));
        let earlier = std::mem::replace(&mut self.current, Generation::new(mapping)?);
        self.previous.push((until, earlier));
        self.version += 1;
        self.revision += 1;
        let changed = shapes.keys().map(|name| (name.clone(), self.revision));
        self.news.extend(changed);
        Ok(())
    }

    /// Everything before `confirmed` is confirmed: what only concerns rows before it is forgotten.
    pub fn confirm(&mut self, confirmed: EndLsn) {
        let before = self.previous.len();
        self.previous.retain(|(until, _)| *until > confirmed);
        if self.previous.len() < before {
            self.revision += 1;
        }
    }

    /// The smallest limit of any topic: no batch may be larger.
    pub fn smallest_limit(&self) -> Option<usize> {
        self.current.mapping.smallest_limit()
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
    pub fn stored(&self) -> Mappings {
        let earlier = |(until, generation): &(EndLsn, Generation)| Earlier {
            until: *until,
            mapping: generation.mapping.clone(),
        };
        Mappings {
            version: self.version,
            current: self.current.mapping.clone(),
            previous: self.previous.iter().map(earlier).collect(),
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
    use super::*;

    fn rule(replacement: &str, max_message_bytes: usize) -> Rule {
        let routing = Routing { replacement: replacement.into(), ..Routing::default() };
        Rule { routing, max_message_bytes, dead_letter_topic: None }
    }
    fn end(lsn: u64) -> EndLsn {
        EndLsn::new(Lsn::from(lsn))
    }
    fn shape(partitions: i32) -> TopicShape {
        TopicShape { partitions, max_message_bytes: None }
    }
    fn topic_of(mapper: &mut Mapper, commit: u64, bytes: usize) -> Result<String, Unplaceable> {
        let commit = CommitLsn::new(Lsn::from(commit));
        let subject = Subject { key: b"k", bytes, flaw: None, commit, column: |_: &str| Some("x") };
        Ok(match mapper.place(&subject)? {
            Place::Partition { topic, .. } => topic.to_owned(),
            Place::NewTopic(topic) => format!("{topic}, new"),
        })
    }

    #[test]
    fn rows_before_the_change_go_where_they_would_have_gone() {
        let mut old = Mappings::first(rule("old.${routedByValue}", 100));
        old.current.topics.insert("old.x".into(), shape(3));
        let mut mapper = Mapper::new(old.under(rule("new.${routedByValue}", 200), end(50))).unwrap();
        assert_eq!(topic_of(&mut mapper, 49, 80).unwrap(), "old.x");
        assert_eq!(topic_of(&mut mapper, 50, 80).unwrap(), "new.x, new");
        assert_eq!(
            topic_of(&mut mapper, 49, 150).unwrap(),
            "new.x, new",
            "too large for the old rule: never sent"
        );
        assert!(topic_of(&mut mapper, 49, 250).is_err());
        mapper.confirm(end(50));
        assert_eq!(topic_of(&mut mapper, 49, 80).unwrap(), "new.x, new", "forgotten");
    }

    #[test]
    fn a_topic_the_old_mapping_did_not_know_got_nothing_under_it() {
        let old = Mappings::first(rule("old.${routedByValue}", 100));
        let mut mapper = Mapper::new(old.under(rule("new.${routedByValue}", 100), end(50))).unwrap();
        assert_eq!(topic_of(&mut mapper, 10, 1).unwrap(), "new.x, new");
    }

    #[test]
    fn what_is_stored_is_read_back_and_an_unchanged_rule_is_no_change() {
        let mut first = Mappings::first(rule("old.${routedByValue}", 100));
        first.current.topics.insert("old.x".into(), shape(3));
        let changed = first.clone().under(rule("new.${routedByValue}", 100), end(0x16_B374_D848));
        assert_eq!((first.version, changed.version), (1, 2));
        let json = serde_json::to_value(&changed).unwrap();
        assert_eq!(json["previous"][0]["until"], "16/B374D848");
        assert_eq!(json["previous"][0]["topics"]["old.x"]["partitions"], 3);
        let back: Mappings = serde_json::from_value(json).unwrap();
        assert_eq!(Mappings { version: 2, ..back }, changed);
        let rule = changed.current.rule.clone();
        assert_eq!(changed.clone().under(rule, end(1)), changed);
    }

    #[test]
    fn a_limit_alone_keeps_the_topics_and_a_topics_own_limit_holds() {
        let mut first = Mappings::first(rule("t.${routedByValue}", 100));
        first.current.topics.insert("t.x".into(), TopicShape { partitions: 3, max_message_bytes: Some(50) });
        let mut mapper = Mapper::new(first.under(rule("t.${routedByValue}", 200), end(9))).unwrap();
        assert_eq!(mapper.shape("t.x").map(|shape| shape.partitions), Some(3));
        assert_eq!((mapper.limit("t.x"), mapper.limit("t.y")), (50, 200));
        let refused = topic_of(&mut mapper, 10, 60).unwrap_err().to_string();
        assert_eq!(refused, "the record would have 60 bytes, max.message.bytes of topic t.x is 50");
    }
}
