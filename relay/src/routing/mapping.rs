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

mod generation;
mod stored;

use std::collections::{BTreeMap, BTreeSet, HashMap};

use pg_replication::{CommitLsn, EndLsn};

use self::generation::Generation;
pub use self::stored::{Earlier, Mapping, Mappings, Rule, TopicShape};
use crate::dead_letter::Poison;
use crate::routing::router::{InvalidRule, Unroutable};

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

    /// The size of the largest record a topic takes now. Of one that only earlier mappings know that is not followed: each
    /// of them has placed rows by what it was then.
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
    use pg_replication::Lsn;

    use super::*;
    use crate::config::Routing;

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
    fn no_batch_is_too_large_for_a_topic_that_only_an_earlier_mapping_knows() {
        let mut old = Mappings::first(rule("old.${routedByValue}", 100));
        old.current.topics.insert("old.x".into(), TopicShape { partitions: 3, max_message_bytes: Some(50) });
        let both = old.under(rule("new.${routedByValue}", 200), end(50));
        assert_eq!(both.smallest_limit(), Some(50));
        let mut mapper = Mapper::new(both).unwrap();
        mapper.add("new.x", TopicShape { partitions: 3, max_message_bytes: Some(70) });
        assert_eq!(mapper.smallest_limit(), Some(50));
        mapper.confirm(end(50));
        assert_eq!(mapper.smallest_limit(), Some(70), "forgotten");
    }

    #[test]
    fn values_without_end_do_not_fill_the_memory() {
        let mut mapper = Mapper::new(Mappings::first(Rule {
            routing: Routing { regex: "x.*".into(), replacement: "t".into(), ..Routing::default() },
            max_message_bytes: 100,
            dead_letter_topic: None,
        }))
        .unwrap();
        for n in 0..100_000 {
            let value = format!("x{n}");
            let commit = CommitLsn::new(Lsn::from(1));
            let column = |_: &str| Some(value.as_str());
            mapper.place(&Subject { key: b"k", bytes: 1, flaw: None, commit, column }).unwrap();
        }
        assert!(mapper.current.remembered() < 20_000);
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
