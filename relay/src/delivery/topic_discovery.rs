//! Topics that appear, grow, change or disappear while events are sent to them.

use std::collections::{BTreeMap, HashSet};
use std::time::{Duration, Instant};

use pg_replication::EndLsn;

use super::{Broker, Delivery};
use crate::error::{ErrorKind, RelayError};
use crate::kafka::query::Query;
use crate::kafka::scanner::FoundTopic;
use crate::routing::mapping::TopicShape;
use crate::topics::registry::TopicId;
use crate::topics::settings::TopicSettings;
use crate::topics::watch::{TopicChange, TopicState, TopicWatch};

/// How often to query the metadata of the topics in use, so that changes show within seconds.
const METADATA_EVERY: Duration = Duration::from_secs(2);
/// How often to read the settings of a topic that rejects a row because of them.
const READ_SETTINGS_EVERY: Duration = Duration::from_secs(5);

/// Queries about topics that are in progress or due.
pub(super) struct TopicDiscovery {
    /// The largest batch that the producers send.
    pub(super) largest_batch: usize,
    /// New topics that rows wait for.
    requested: Vec<String>,
    watch: TopicWatch,
    /// When the last metadata query started, and whether it is still running.
    metadata_query: (Instant, bool),
    /// Topics with new partitions whose query is running.
    growing: HashSet<TopicId>,
    /// The new shapes of topics that have grown. They are used once all earlier records are acknowledged.
    pub(super) grown: BTreeMap<TopicId, TopicShape>,
    /// The topic that rejects a row because of its settings, and when these were last read.
    watched_settings: Option<(String, Instant)>,
}

impl TopicDiscovery {
    pub(super) fn new(largest_batch: usize) -> TopicDiscovery {
        TopicDiscovery {
            largest_batch,
            requested: Vec::new(),
            watch: TopicWatch::default(),
            metadata_query: (Instant::now(), false),
            growing: HashSet::new(),
            grown: BTreeMap::new(),
            watched_settings: None,
        }
    }
}

impl<B: Broker> Delivery<B> {
    /// Whether a row waits for a topic that does not exist or is not known yet.
    pub fn waits_for_topic(&self) -> bool {
        !self.discovery.requested.is_empty()
    }

    /// Queries a topic that is not part of the routing yet.
    pub(super) fn request_topic(&mut self, topic: &str) {
        if !self.discovery.requested.iter().any(|requested| requested == topic) {
            self.discovery.requested.push(topic.to_owned());
            self.broker.query(Query::FindTopic(topic));
        }
    }

    pub(super) fn watch_topics(&mut self) {
        let (started, is_running) = self.discovery.metadata_query;
        if !is_running && started.elapsed() >= METADATA_EVERY {
            let name = |topic| self.topics.topic(topic).name.clone();
            let topics: Vec<String> = self.routing.topics().into_iter().map(name).collect();
            self.discovery.metadata_query = (Instant::now(), !topics.is_empty());
            if !topics.is_empty() {
                self.broker.query(Query::TopicStates(topics));
            }
        }
        if let Some((topic, read)) = &mut self.discovery.watched_settings
            && read.elapsed() >= READ_SETTINGS_EVERY
        {
            *read = Instant::now();
            self.broker.query(Query::Settings(topic));
        }
    }

    /// Reads the settings of `topic` regularly from now on.
    pub(super) fn watch_settings(&mut self, topic: &str) {
        if self.discovery.watched_settings.as_ref().is_none_or(|(known, _)| known != topic) {
            self.discovery.watched_settings = Some((topic.to_owned(), Instant::now()));
        }
    }

    /// A requested topic exists.
    pub(super) fn on_topic_found(&mut self, topic: &str, found: &FoundTopic) {
        self.discovery.requested.retain(|requested| requested != topic);
        let (topic, shape) = self.register_topic(topic, found);
        self.routing.add_topic(topic, shape);
    }

    /// The new partitions of a topic are known.
    pub(super) fn on_topic_grown(&mut self, topic: &str, found: &FoundTopic) {
        let (topic, shape) = self.register_topic(topic, found);
        self.discovery.growing.remove(&topic);
        self.discovery.grown.insert(topic, shape);
    }

    /// Registers the partitions and settings of a new or grown topic. Nothing was sent to the new partitions, so they
    /// need no verification.
    fn register_topic(&mut self, name: &str, found: &FoundTopic) -> (TopicId, TopicShape) {
        let known = self.topics.find(name).map_or(0, |topic| self.topics.topic(topic).partition_count());
        let topic = self.topics.add(name, found.partitions, &found.ends);
        self.topics.topic_mut(topic).settings = found.settings;
        for new in self.topics.to_verify(topic).into_iter().skip(known) {
            self.topics.partition_mut(new.id).mark_verified(new.start.search);
        }
        let limit = found.settings.and_then(|settings| settings.lower_limit(self.sink.max_message_bytes));
        let known = self.routing.shape(topic).is_some_and(|shape| shape.compacted);
        let compacted = found.settings.map_or(known, |settings| settings.compacted);
        (topic, TopicShape { partitions: found.partitions, max_message_bytes: limit, compacted })
    }

    pub(super) fn on_settings(
        &mut self,
        name: &str,
        settings: Option<TopicSettings>,
    ) -> Result<(), RelayError> {
        // A topic that is not in use: its settings are read because a row is too large for it.
        let Some(topic) = self.topics.find(name) else { return Ok(()) };
        self.topics.topic_mut(topic).settings = settings;
        let (Some(settings), Some(shape)) = (settings, self.routing.shape(topic)) else { return Ok(()) };
        let limit = settings.lower_limit(self.sink.max_message_bytes);
        let current = TopicShape { max_message_bytes: limit, compacted: settings.compacted, ..shape };
        if current == shape {
            return Ok(());
        }
        tracing::info!(
            topic = name,
            bytes = limit.unwrap_or(self.sink.max_message_bytes),
            compacted = current.compacted,
            "the topic's max.message.bytes or cleanup.policy has changed"
        );
        let shapes = BTreeMap::from([(topic, current)]);
        // Every row sent so far was committed before the horizon, or not after the last transaction that began.
        let behind_last = EndLsn::new((self.last_commit.lsn().as_u64() + 1).into());
        self.change_routing(&shapes, self.lineage.end().max(behind_last))
    }

    /// The result of a metadata query; `None` if Kafka did not respond.
    pub(super) fn on_topic_states(
        &mut self,
        states: Option<BTreeMap<String, TopicState>>,
    ) -> Result<(), RelayError> {
        self.discovery.metadata_query.1 = false;
        let Some(states) = states else {
            self.discovery.watch.on_unavailable();
            // Producers may receive acknowledgements nevertheless.
            if self.watchdog.claim_probe() {
                self.broker.query(Query::Reachability { of_producers: false });
            }
            return Ok(());
        };
        // A result may name only topics that were queried, which are those of the routing.
        let known = states.into_iter().filter_map(|(name, state)| Some((self.topics.find(&name)?, state)));
        let known: Vec<(TopicId, TopicState)> = known.collect();
        let count = |topic| self.topics.topic(topic).partition_count();
        let changes = self.discovery.watch.on_states(known, count);
        changes.into_iter().try_for_each(|(topic, change)| self.on_topic_change(topic, change))
    }

    fn on_topic_change(&mut self, topic: TopicId, change: TopicChange) -> Result<(), RelayError> {
        match change {
            TopicChange::Missing => {
                // The topic may be recreated under the same name, without its records.
                self.topics.invalidate(topic);
                self.verify(topic, false);
            }
            TopicChange::LeaderChanged => self.verify(topic, false),
            TopicChange::Grown => {
                if self.discovery.growing.insert(topic) {
                    self.broker.query(Query::Growth(&self.topics.topic(topic).name));
                }
            }
            TopicChange::Shrunk { partitions } => {
                let topic = self.topics.topic(topic);
                let what = format!(
                    "topic {} has {partitions} partitions, but the relay has written to {}: the topic was recreated",
                    topic.name,
                    topic.partition_count()
                );
                return Err(RelayError::new(ErrorKind::KafkaLostRecords, what));
            }
        }
        Ok(())
    }

    /// Compares the partitions of a topic with what this session knows.
    pub(super) fn verify(&self, topic: TopicId, at_start: bool) {
        let partitions = self.topics.to_verify(topic);
        let topic = &self.topics.topic(topic).name;
        self.broker.query(Query::Verify { topic, partitions, at_start });
    }

    /// Starts to use all partitions of topics that have grown. It waits until nothing is in flight, so that no event
    /// can reach its key's new partition before an earlier event of the key is in the old one.
    pub(super) fn apply_growth(&mut self) -> Result<(), RelayError> {
        if self.discovery.grown.is_empty() || self.transaction.is_some() || !self.ledger.is_empty() {
            return Ok(());
        }
        let grown = std::mem::take(&mut self.discovery.grown);
        for (topic, shape) in &grown {
            tracing::info!(
                topic = self.topics.topic(*topic).name,
                partitions = shape.partitions,
                "the topic has more partitions; events are now distributed over all of them"
            );
        }
        self.change_routing(&grown, self.ledger.confirmed())
    }

    fn change_routing(
        &mut self,
        shapes: &BTreeMap<TopicId, TopicShape>,
        until: EndLsn,
    ) -> Result<(), RelayError> {
        let changed = self.routing.change_topics(shapes, until);
        changed.map_err(|error| RelayError::new(ErrorKind::PoisonRow, error.to_string()))
    }
}
