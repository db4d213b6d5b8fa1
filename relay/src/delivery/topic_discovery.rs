//! Topics that appear, grow, change or disappear while events are sent to them.

use std::collections::{BTreeMap, HashSet};
use std::time::{Duration, Instant};

use pg_replication::EndLsn;

use super::Broker;
use super::in_flight::InFlight;
use super::source_progress::SourceProgress;
use crate::error::{ErrorKind, RelayError};
use crate::kafka::query::{Query, Verification};
use crate::kafka::scanner::FoundTopic;
use crate::routing::mapping::{Revision, RoutingTable, TopicShape};
use crate::topics::registry::{TopicId, TopicRegistry};
use crate::topics::settings::TopicSettings;
use crate::topics::watch::{TopicChange, TopicState, TopicWatch};

/// How often to query the metadata of the topics in use, so that changes show within seconds.
const METADATA_EVERY: Duration = Duration::from_secs(2);
/// How often to read the settings of a topic that rejects a row because of them.
const READ_SETTINGS_EVERY: Duration = Duration::from_secs(5);

/// Queries about topics that are in progress or due.
pub(super) struct TopicDiscovery {
    /// `sink.maxMessageBytes`.
    max_message_bytes: usize,
    /// The largest batch that the producers send.
    largest_batch: usize,
    /// New topics that rows wait for.
    requested: Vec<String>,
    watch: TopicWatch,
    /// When the last metadata query started.
    metadata_queried: Instant,
    is_querying_metadata: bool,
    /// Topics with new partitions whose query is running.
    growing: HashSet<TopicId>,
    /// The new shapes of topics that have grown. They are used once all earlier records are acknowledged.
    grown: BTreeMap<TopicId, TopicShape>,
    /// The topic that rejects a row because of its settings.
    watched_settings: Option<WatchedSettings>,
}

struct WatchedSettings {
    topic: String,
    /// When they were last read; `None` while a query is running, which lasts until Kafka responds.
    read: Option<Instant>,
}

impl TopicDiscovery {
    pub(super) fn new(max_message_bytes: usize, largest_batch: usize) -> TopicDiscovery {
        TopicDiscovery {
            max_message_bytes,
            largest_batch,
            requested: Vec::new(),
            watch: TopicWatch::default(),
            metadata_queried: Instant::now(),
            is_querying_metadata: false,
            growing: HashSet::new(),
            grown: BTreeMap::new(),
            watched_settings: None,
        }
    }

    /// Whether a row waits for a topic that does not exist or is not known yet.
    pub(super) fn is_waiting(&self) -> bool {
        !self.requested.is_empty()
    }

    /// Queries a topic that is not part of the routing yet.
    pub(super) fn request(&mut self, topic: &str, broker: &impl Broker) {
        if !self.requested.iter().any(|requested| requested == topic) {
            self.requested.push(topic.to_owned());
            broker.query(Query::FindTopic(topic));
        }
    }

    /// Starts the queries that are due.
    pub(super) fn on_tick<B: Broker>(
        &mut self,
        now: Instant,
        routing: &RoutingTable,
        in_flight: &InFlight<B>,
    ) {
        let is_due = now.saturating_duration_since(self.metadata_queried) >= METADATA_EVERY;
        if !self.is_querying_metadata && is_due {
            let name = |topic| in_flight.topics.topic(topic).name.clone();
            let topics: Vec<String> = routing.topics().into_iter().map(name).collect();
            (self.metadata_queried, self.is_querying_metadata) = (now, !topics.is_empty());
            if !topics.is_empty() {
                in_flight.broker.query(Query::TopicStates(topics));
            }
        }
        if let Some(WatchedSettings { topic, read }) = &mut self.watched_settings
            && read.is_some_and(|read| now.saturating_duration_since(read) >= READ_SETTINGS_EVERY)
        {
            *read = None;
            in_flight.broker.query(Query::Settings(topic));
        }
    }

    /// Ends the session if the producers' batches are too large for the routing in the committed checkpoint.
    pub(super) fn check_batches(
        &self,
        routing: &RoutingTable,
        committed_revision: Revision,
    ) -> Result<(), RelayError> {
        let limit = routing.smallest_limit().filter(|_| committed_revision >= routing.revision());
        let Some(limit) = limit.filter(|limit| *limit < self.largest_batch) else { return Ok(()) };
        let what = format!(
            "a topic now limits messages to {limit} bytes (max.message.bytes), less than the producers' batches"
        );
        Err(RelayError::new(ErrorKind::TopicChanged, what))
    }

    /// Reads the settings of `topic` regularly from now on.
    pub(super) fn watch_settings(&mut self, topic: &str) {
        if self.watched_settings.as_ref().is_none_or(|watched| watched.topic != topic) {
            let (topic, read) = (topic.to_owned(), Some(Instant::now()));
            self.watched_settings = Some(WatchedSettings { topic, read });
        }
    }

    /// A requested topic exists.
    pub(super) fn on_found(
        &mut self,
        name: &str,
        found: &FoundTopic,
        routing: &mut RoutingTable,
        topics: &mut TopicRegistry,
    ) {
        self.requested.retain(|requested| requested != name);
        let (topic, shape) = self.register(name, found, routing, topics);
        routing.add_topic(topic, shape);
    }

    /// The new partitions of a topic are known.
    pub(super) fn on_grown(
        &mut self,
        name: &str,
        found: &FoundTopic,
        routing: &RoutingTable,
        topics: &mut TopicRegistry,
    ) {
        let (topic, shape) = self.register(name, found, routing, topics);
        self.growing.remove(&topic);
        self.grown.insert(topic, shape);
    }

    /// Registers the partitions and settings of a new or grown topic. Nothing was sent to the new partitions, so they
    /// need no verification.
    fn register(
        &self,
        name: &str,
        found: &FoundTopic,
        routing: &RoutingTable,
        topics: &mut TopicRegistry,
    ) -> (TopicId, TopicShape) {
        let known = topics.find(name).map_or(0, |topic| topics.topic(topic).partition_count());
        let topic = topics.add(name, found.partitions, &found.ends);
        topics.topic_mut(topic).settings = found.settings.into();
        for new in topics.to_verify(topic).into_iter().skip(known) {
            topics.partition_mut(new.id).mark_verified(new.start.offset);
        }
        let limit = found.settings.and_then(|settings| settings.lower_limit(self.max_message_bytes));
        let known = routing.shape(topic).is_some_and(|shape| shape.compacted);
        let compacted = found.settings.map_or(known, |settings| settings.compacted);
        (topic, TopicShape { partitions: found.partitions, max_message_bytes: limit, compacted })
    }

    /// The settings of a topic were read. No row committed at or after `unsent` was sent.
    pub(super) fn on_settings(
        &mut self,
        name: &str,
        settings: Option<TopicSettings>,
        unsent: EndLsn,
        routing: &mut RoutingTable,
        topics: &mut TopicRegistry,
    ) -> Result<(), RelayError> {
        if let Some(watched) = self.watched_settings.as_mut().filter(|watched| watched.topic == name) {
            watched.read = Some(Instant::now());
        }
        // A topic that is not in use: its settings are read because a row is too large for it.
        let Some(topic) = topics.find(name) else { return Ok(()) };
        topics.topic_mut(topic).settings = settings.into();
        let (Some(settings), Some(shape)) = (settings, routing.shape(topic)) else { return Ok(()) };
        let limit = settings.lower_limit(self.max_message_bytes);
        let current = TopicShape { max_message_bytes: limit, compacted: settings.compacted, ..shape };
        if current == shape {
            return Ok(());
        }
        tracing::info!(
            topic = name,
            bytes = limit.unwrap_or(self.max_message_bytes),
            compacted = current.compacted,
            "the topic's max.message.bytes or cleanup.policy has changed"
        );
        change_routing(routing, &BTreeMap::from([(topic, current)]), unsent)
    }

    /// Kafka did not respond to a metadata query.
    pub(super) fn on_states_unavailable(&mut self) {
        self.is_querying_metadata = false;
        self.watch.on_unavailable();
    }

    /// The result of a metadata query.
    pub(super) fn on_states<B: Broker>(
        &mut self,
        states: BTreeMap<String, TopicState>,
        in_flight: &mut InFlight<B>,
    ) -> Result<(), RelayError> {
        self.is_querying_metadata = false;
        let topics = &in_flight.topics;
        // Only topics of the registry are queried.
        let known = states.into_iter().filter_map(|(name, state)| Some((topics.find(&name)?, state)));
        let changes = self.watch.on_states(known, |topic| topics.topic(topic).partition_count());
        changes.into_iter().try_for_each(|(topic, change)| self.on_change(topic, change, in_flight))
    }

    fn on_change<B: Broker>(
        &mut self,
        topic: TopicId,
        change: TopicChange,
        in_flight: &mut InFlight<B>,
    ) -> Result<(), RelayError> {
        match change {
            TopicChange::Missing => {
                // The topic may be recreated under the same name, without its records.
                in_flight.topics.invalidate(topic);
                in_flight.verify(topic, Verification::Later);
            }
            TopicChange::LeaderChanged => in_flight.verify(topic, Verification::Later),
            TopicChange::Grown => {
                if self.growing.insert(topic) {
                    in_flight.broker.query(Query::Growth(&in_flight.topics.topic(topic).name));
                }
            }
            TopicChange::Shrunk { partitions } => {
                let topic = in_flight.topics.topic(topic);
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

    /// Whether a topic has grown, and its new partitions are not used yet.
    pub(super) fn has_grown(&self) -> bool {
        !self.grown.is_empty()
    }

    /// Starts to use all partitions of topics that have grown. It waits until nothing is in flight, so that no event
    /// can reach its key's new partition before an earlier event of the key is in the old one.
    pub(super) fn apply_growth(
        &mut self,
        progress: &SourceProgress,
        routing: &mut RoutingTable,
        topics: &TopicRegistry,
    ) -> Result<(), RelayError> {
        // The ledger has an entry for a transaction that is being read.
        if self.grown.is_empty() || !progress.ledger.is_empty() {
            return Ok(());
        }
        let grown = std::mem::take(&mut self.grown);
        for (topic, shape) in &grown {
            tracing::info!(
                topic = topics.topic(*topic).name,
                partitions = shape.partitions,
                "the topic has more partitions; events are now distributed over all of them"
            );
        }
        change_routing(routing, &grown, progress.ledger.acknowledged())
    }
}

fn change_routing(
    routing: &mut RoutingTable,
    shapes: &BTreeMap<TopicId, TopicShape>,
    until: EndLsn,
) -> Result<(), RelayError> {
    let changed = routing.change_topics(shapes, until);
    changed.map_err(|error| RelayError::new(ErrorKind::PoisonRow, error.to_string()))
}
