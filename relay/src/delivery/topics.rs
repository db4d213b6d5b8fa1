//! Topics that are new, grow, change or vanish while events go to them.

use std::collections::{BTreeMap, HashSet};
use std::time::{Duration, Instant};

use pg_replication::EndLsn;

use super::Delivery;
use crate::kafka::search::FoundTopic;
use crate::routing::mapping::TopicShape;
use crate::topics::settings::TopicSettings;
use crate::topics::watch::{News, Seen, TopicWatch};
use crate::trouble::{Reason, Trouble};

/// How often the metadata of the topics in use is looked at: what happens to them shows within seconds.
const LOOK_EVERY: Duration = Duration::from_secs(2);
/// How often a topic's settings are read while they keep a row from it.
const READ_SETTINGS_EVERY: Duration = Duration::from_secs(5);

/// What is being found out about topics.
pub(super) struct Inquiries {
    /// Topics being looked for.
    wanted: Vec<String>,
    watch: TopicWatch,
    /// When the metadata was asked for last, and whether the answer is still to come.
    looked: (Instant, bool),
    /// Topics whose growth is being looked at.
    growing: HashSet<String>,
    /// What topics have become; events are spread over all of it once everything before is acknowledged.
    pub(super) grown: BTreeMap<String, TopicShape>,
    /// The topic whose settings keep a row from it, and when they were read last.
    unfit_for: Option<(String, Instant)>,
}

impl Default for Inquiries {
    fn default() -> Self {
        Inquiries {
            wanted: Vec::new(),
            watch: TopicWatch::default(),
            looked: (Instant::now(), false),
            growing: HashSet::new(),
            grown: BTreeMap::new(),
            unfit_for: None,
        }
    }
}

impl Delivery {
    /// Whether a row waits for a topic that somebody has to make.
    pub fn waits_for_topic(&self) -> bool {
        !self.inquiries.wanted.is_empty()
    }

    /// Looks for a topic that is not part of the mapping yet.
    pub(super) fn want(&mut self, topic: &str) {
        if !self.inquiries.wanted.iter().any(|wanted| wanted == topic) {
            self.inquiries.wanted.push(topic.to_owned());
            self.jobs.find_topic(topic);
        }
    }

    pub(super) fn watch_topics(&mut self) {
        let (at, answer_to_come) = self.inquiries.looked;
        if !answer_to_come && at.elapsed() >= LOOK_EVERY {
            let topics: Vec<String> = self.mapper.topics().into_iter().map(str::to_owned).collect();
            self.inquiries.looked = (Instant::now(), !topics.is_empty());
            if !topics.is_empty() {
                self.jobs.look(topics);
            }
        }
        if let Some((topic, read)) = &mut self.inquiries.unfit_for
            && read.elapsed() >= READ_SETTINGS_EVERY
        {
            *read = Instant::now();
            self.jobs.describe(topic);
        }
    }

    /// From now on the settings of `topic` are read regularly.
    pub(super) fn was_unfit_for(&mut self, topic: &str) {
        if self.inquiries.unfit_for.as_ref().is_none_or(|(known, _)| known != topic) {
            self.inquiries.unfit_for = Some((topic.to_owned(), Instant::now()));
        }
    }

    /// A topic that was looked for exists.
    pub(super) fn found(&mut self, topic: &str, found: &FoundTopic) {
        self.inquiries.wanted.retain(|wanted| wanted != topic);
        let shape = self.take_in(topic, found);
        self.mapper.add(topic, shape);
    }

    /// The growth of a topic was looked at.
    pub(super) fn has_grown(&mut self, topic: String, found: &FoundTopic) {
        self.inquiries.growing.remove(&topic);
        let shape = self.take_in(&topic, found);
        self.inquiries.grown.insert(topic, shape);
    }

    /// Takes in what a look at a new or grown topic has found.
    fn take_in(&mut self, name: &str, found: &FoundTopic) -> TopicShape {
        let known = self.partitions.count(name);
        self.partitions.add(name, found.partitions, &found.ends);
        self.partitions.set_settings(name, found.settings);
        for new in self.partitions.to_inspect(name).into_iter().skip(known) {
            self.partitions.inspected(new.id, new.floor.search);
        }
        let limit = found.settings.and_then(|settings| settings.lower_limit(&self.sink));
        let known = self.mapper.shape(name).is_some_and(|shape| shape.compacted);
        let compacted = found.settings.map_or(known, |settings| settings.compacted);
        TopicShape { partitions: found.partitions, max_message_bytes: limit, compacted }
    }

    pub(super) fn settings(&mut self, topic: &str, settings: Option<TopicSettings>) -> Result<(), Trouble> {
        self.partitions.set_settings(topic, settings);
        let (Some(settings), Some(shape)) = (settings, self.mapper.shape(topic)) else { return Ok(()) };
        let limit = settings.lower_limit(&self.sink);
        let now = TopicShape { max_message_bytes: limit, compacted: settings.compacted, ..shape };
        if now == shape {
            return Ok(());
        }
        tracing::info!(
            topic,
            bytes = limit.unwrap_or(self.sink.max_message_bytes),
            compacted = now.compacted,
            "the topic has another max.message.bytes or cleanup.policy"
        );
        let shapes = BTreeMap::from([(topic.to_owned(), now)]);
        // Whatever was sent was committed before the horizon, or is of the last transaction or one before it.
        let behind_last = EndLsn::new((self.last_commit.lsn().as_u64() + 1).into());
        self.change_mapping(&shapes, self.lineage.end().max(behind_last))
    }

    /// The look at the metadata that was asked for; `None` if Kafka did not answer.
    pub(super) fn looked(&mut self, seen: Option<BTreeMap<String, Seen>>) -> Result<(), Trouble> {
        self.inquiries.looked.1 = false;
        let Some(seen) = seen else {
            self.inquiries.watch.away();
            // Producers may get their acknowledgements all the same.
            if self.watchdog.asks() {
                self.jobs.reach(None);
            }
            return Ok(());
        };
        let partitions = &self.partitions;
        let news = self.inquiries.watch.look(seen, |topic| partitions.count(topic));
        self.news(news)
    }

    fn news(&mut self, news: Vec<(String, News)>) -> Result<(), Trouble> {
        for (topic, news) in news {
            match news {
                News::Missing => {
                    // It may come back as another topic under the same name.
                    let remembered = self.partitions.to_inspect(&topic);
                    self.partitions.doubt(&topic);
                    self.jobs.inspect(&topic, remembered, false);
                }
                News::Moved => self.jobs.inspect(&topic, self.partitions.to_inspect(&topic), false),
                News::Grown => {
                    if self.inquiries.growing.insert(topic.clone()) {
                        self.jobs.look_at_growth(&topic, self.producers.roster(None));
                    }
                }
                News::Shrunk { partitions } => {
                    let known = self.partitions.count(&topic);
                    let what =
                        format!("topic {topic} has {partitions} partitions, but {known} were written to");
                    return Err(Trouble::new(Reason::KafkaLostRecords, what));
                }
            }
        }
        Ok(())
    }

    /// Spreads events over all partitions of topics that have grown. Nothing is under way then, so that no event of a
    /// key can be in its new partition before an earlier one is in the old.
    pub(super) fn spread_over_grown(&mut self) -> Result<(), Trouble> {
        if self.inquiries.grown.is_empty() || self.transaction.is_some() || !self.ledger.is_empty() {
            return Ok(());
        }
        let grown = std::mem::take(&mut self.inquiries.grown);
        for (topic, shape) in &grown {
            tracing::info!(
                topic,
                partitions = shape.partitions,
                "the topic has grown; events are spread over all of it"
            );
        }
        self.change_mapping(&grown, self.ledger.confirmed())
    }

    fn change_mapping(
        &mut self,
        shapes: &BTreeMap<String, TopicShape>,
        until: EndLsn,
    ) -> Result<(), Trouble> {
        let changed = self.mapper.change(shapes, until);
        changed.map_err(|error| Trouble::new(Reason::PoisonRow, error.to_string()))
    }
}
