//! Topics that are new, grow, change or vanish while events go to them.

use std::collections::{BTreeMap, HashSet};
use std::time::{Duration, Instant};

use pg_replication::EndLsn;

use super::Delivery;
use crate::error::{ErrorKind, RelayError};
use crate::kafka::scanner::FoundTopic;
use crate::routing::mapping::TopicShape;
use crate::topics::settings::TopicSettings;
use crate::topics::watch::{TopicChange, TopicState, TopicWatch};

/// How often the metadata of the topics in use is looked at: what happens to them shows within seconds.
const METADATA_EVERY: Duration = Duration::from_secs(2);
/// How often a topic's settings are read while they keep a row from it.
const READ_SETTINGS_EVERY: Duration = Duration::from_secs(5);

/// What is being found out about topics.
pub(super) struct TopicDiscovery {
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
    settings_wanted: Option<(String, Instant)>,
}

impl Default for TopicDiscovery {
    fn default() -> Self {
        TopicDiscovery {
            wanted: Vec::new(),
            watch: TopicWatch::default(),
            looked: (Instant::now(), false),
            growing: HashSet::new(),
            grown: BTreeMap::new(),
            settings_wanted: None,
        }
    }
}

impl Delivery {
    /// Whether a row waits for a topic that somebody has to make.
    pub fn waits_for_topic(&self) -> bool {
        !self.discovery.wanted.is_empty()
    }

    /// Looks for a topic that is not part of the mapping yet.
    pub(super) fn request_topic(&mut self, topic: &str) {
        if !self.discovery.wanted.iter().any(|wanted| wanted == topic) {
            self.discovery.wanted.push(topic.to_owned());
            self.jobs.find_topic(topic);
        }
    }

    pub(super) fn watch_topics(&mut self) {
        let (at, answer_to_come) = self.discovery.looked;
        if !answer_to_come && at.elapsed() >= METADATA_EVERY {
            let topics: Vec<String> = self.routing.topics().into_iter().map(str::to_owned).collect();
            self.discovery.looked = (Instant::now(), !topics.is_empty());
            if !topics.is_empty() {
                self.jobs.query_topic_states(topics);
            }
        }
        if let Some((topic, read)) = &mut self.discovery.settings_wanted
            && read.elapsed() >= READ_SETTINGS_EVERY
        {
            *read = Instant::now();
            self.jobs.describe(topic);
        }
    }

    /// From now on the settings of `topic` are read regularly.
    pub(super) fn watch_settings(&mut self, topic: &str) {
        if self.discovery.settings_wanted.as_ref().is_none_or(|(known, _)| known != topic) {
            self.discovery.settings_wanted = Some((topic.to_owned(), Instant::now()));
        }
    }

    /// A topic that was looked for exists.
    pub(super) fn on_topic_found(&mut self, topic: &str, found: &FoundTopic) {
        self.discovery.wanted.retain(|wanted| wanted != topic);
        let shape = self.register_topic(topic, found);
        self.routing.add_topic(topic, shape);
    }

    /// The growth of a topic was looked at.
    pub(super) fn on_topic_grown(&mut self, topic: String, found: &FoundTopic) {
        self.discovery.growing.remove(&topic);
        let shape = self.register_topic(&topic, found);
        self.discovery.grown.insert(topic, shape);
    }

    /// Takes in what a look at a new or grown topic has found.
    fn register_topic(&mut self, name: &str, found: &FoundTopic) -> TopicShape {
        let known = self.partitions.count(name);
        self.partitions.add(name, found.partitions, &found.ends);
        self.partitions.set_settings(name, found.settings);
        for new in self.partitions.to_verify(name).into_iter().skip(known) {
            self.partitions.mark_verified(new.id, new.floor.search);
        }
        let limit = found.settings.and_then(|settings| settings.lower_limit(&self.sink));
        let known = self.routing.shape(name).is_some_and(|shape| shape.compacted);
        let compacted = found.settings.map_or(known, |settings| settings.compacted);
        TopicShape { partitions: found.partitions, max_message_bytes: limit, compacted }
    }

    pub(super) fn on_settings(
        &mut self,
        topic: &str,
        settings: Option<TopicSettings>,
    ) -> Result<(), RelayError> {
        self.partitions.set_settings(topic, settings);
        let (Some(settings), Some(shape)) = (settings, self.routing.shape(topic)) else { return Ok(()) };
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
        self.change_routing(&shapes, self.lineage.end().max(behind_last))
    }

    /// The look at the metadata that was asked for; `None` if Kafka did not answer.
    pub(super) fn on_topic_states(
        &mut self,
        seen: Option<BTreeMap<String, TopicState>>,
    ) -> Result<(), RelayError> {
        self.discovery.looked.1 = false;
        let Some(seen) = seen else {
            self.discovery.watch.on_unavailable();
            // Producers may get their acknowledgements all the same.
            if self.watchdog.claim_probe() {
                self.jobs.query_reachability(None);
            }
            return Ok(());
        };
        let partitions = &self.partitions;
        let news = self.discovery.watch.on_states(seen, |topic| partitions.count(topic));
        self.on_topic_changes(news)
    }

    fn on_topic_changes(&mut self, news: Vec<(String, TopicChange)>) -> Result<(), RelayError> {
        for (topic, news) in news {
            match news {
                TopicChange::Missing => {
                    // It may come back as another topic under the same name.
                    let remembered = self.partitions.to_verify(&topic);
                    self.partitions.invalidate(&topic);
                    self.jobs.verify(&topic, remembered, false);
                }
                TopicChange::LeaderChanged => {
                    self.jobs.verify(&topic, self.partitions.to_verify(&topic), false)
                }
                TopicChange::Grown => {
                    if self.discovery.growing.insert(topic.clone()) {
                        self.jobs.query_growth(&topic, self.producers.handles(None));
                    }
                }
                TopicChange::Shrunk { partitions } => {
                    let known = self.partitions.count(&topic);
                    let what =
                        format!("topic {topic} has {partitions} partitions, but {known} were written to");
                    return Err(RelayError::new(ErrorKind::KafkaLostRecords, what));
                }
            }
        }
        Ok(())
    }

    /// Spreads events over all partitions of topics that have grown. Nothing is under way then, so that no event of a
    /// key can be in its new partition before an earlier one is in the old.
    pub(super) fn apply_growth(&mut self) -> Result<(), RelayError> {
        if self.discovery.grown.is_empty() || self.transaction.is_some() || !self.ledger.is_empty() {
            return Ok(());
        }
        let grown = std::mem::take(&mut self.discovery.grown);
        for (topic, shape) in &grown {
            tracing::info!(
                topic,
                partitions = shape.partitions,
                "the topic has grown; events are spread over all of it"
            );
        }
        self.change_routing(&grown, self.ledger.confirmed())
    }

    fn change_routing(
        &mut self,
        shapes: &BTreeMap<String, TopicShape>,
        until: EndLsn,
    ) -> Result<(), RelayError> {
        let changed = self.routing.change_topics(shapes, until);
        changed.map_err(|error| RelayError::new(ErrorKind::PoisonRow, error.to_string()))
    }
}
