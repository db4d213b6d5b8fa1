//! Mappings as the checkpoint stores them.

use std::collections::BTreeMap;

use pg_replication::{EndLsn, Lsn};
use serde::{Deserialize, Serialize};

use super::RefusedRows;
use crate::routing::rule::Rule;

/// Values up to this size are read completely even if the limits are smaller, so that dead letters contain as much of
/// them as possible.
const LARGEST_VALUE_AT_LEAST: usize = 1024 * 1024;

/// The properties of a topic that a mapping depends on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TopicShape {
    /// The number of partitions in use.
    pub partitions: i32,
    /// The topic's own limit in bytes, if it is known and below the configured one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_message_bytes: Option<usize>,
    /// Whether the topic is known to be compacted, so that its records need a key.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub compacted: bool,
}

/// One mapping, as stored.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RoutingConfig {
    /// The configuration.
    #[serde(flatten)]
    pub rule: Rule,
    /// Topics that records may have been sent to.
    #[serde(default)]
    pub topics: BTreeMap<String, TopicShape>,
}

/// An earlier mapping, as stored.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Superseded {
    /// No row committed at or after this position was sent by this mapping.
    #[serde(with = "lsn_text")]
    pub until: EndLsn,
    /// The mapping.
    #[serde(flatten)]
    pub mapping: RoutingConfig,
}

/// The current mapping and the earlier ones, as the checkpoint stores them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RoutingHistory {
    /// The number of the current mapping. The checkpoint has a separate column for it, so that people need not read
    /// JSON.
    #[serde(skip)]
    pub version: i32,
    /// The current mapping.
    pub current: RoutingConfig,
    /// Earlier mappings, oldest first, for rows that may be read again.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub previous: Vec<Superseded>,
    /// Rows that Kafka refused at the destination of a mapping.
    #[serde(default, skip_serializing_if = "RefusedRows::is_empty")]
    pub refused: RefusedRows,
}

impl RoutingHistory {
    /// The first mapping of a relay.
    pub fn first(rule: Rule) -> RoutingHistory {
        let current = RoutingConfig { rule, topics: BTreeMap::new() };
        RoutingHistory { version: 1, current, previous: Vec::new(), refused: RefusedRows::default() }
    }

    /// The history that a session starts with. Rows before `confirmed` are in Kafka, and no row committed at or after
    /// `horizon` was sent yet.
    pub fn at_start(
        stored: Option<RoutingHistory>,
        rule: Rule,
        confirmed: EndLsn,
        horizon: EndLsn,
    ) -> RoutingHistory {
        match stored {
            Some(stored) => stored.prune_confirmed(confirmed).with_rule(rule, horizon),
            None => RoutingHistory::first(rule),
        }
    }

    /// Drops what only concerns rows before `confirmed`.
    pub fn prune_confirmed(mut self, confirmed: EndLsn) -> RoutingHistory {
        self.previous.retain(|earlier| earlier.until > confirmed);
        self.refused.remove_confirmed(confirmed);
        self
    }

    /// The history with `rule` as the current rule. No row committed at or after `horizon` was sent yet.
    pub fn with_rule(mut self, rule: Rule, horizon: EndLsn) -> RoutingHistory {
        if self.current.rule == rule {
            return self;
        }
        // Different routing may use different topics. A topic that is still in use will be discovered again.
        let same_routes = self.current.rule.routing == rule.routing;
        let topics = if same_routes { self.current.topics.clone() } else { BTreeMap::new() };
        self.replace(RoutingConfig { rule, topics }, horizon);
        self
    }

    fn replace(&mut self, mapping: RoutingConfig, until: EndLsn) {
        let mapping = std::mem::replace(&mut self.current, mapping);
        self.previous.push(Superseded { until, mapping });
        self.version += 1;
    }

    /// Every topic, with its highest number of partitions in any mapping.
    pub fn topics(&self) -> BTreeMap<&str, i32> {
        let mut topics = BTreeMap::new();
        for (name, shape) in self.all().flat_map(|mapping| &mapping.topics) {
            let partitions = topics.entry(name.as_str()).or_default();
            *partitions = shape.partitions.max(*partitions);
        }
        topics
    }

    /// Whether any mapping routes by the column of this name.
    pub fn routes_by(&self, column: &str) -> bool {
        self.all().any(|mapping| mapping.rule.routing.by_field == column)
    }

    /// The largest value of a row to keep in memory. A larger one does not fit into a record of any mapping. The limit
    /// is the same for rows of the stream and of the snapshot, so that both result in the same dead letter.
    pub fn largest_value(&self) -> usize {
        self.all().map(|mapping| mapping.rule.max_message_bytes).fold(LARGEST_VALUE_AT_LEAST, usize::max)
    }

    /// The smallest limit of any topic. No batch may be larger.
    pub fn smallest_limit(&self) -> Option<usize> {
        self.all()
            .flat_map(|mapping| mapping.topics.values())
            .filter_map(|shape| shape.max_message_bytes)
            .min()
    }

    fn all(&self) -> impl Iterator<Item = &RoutingConfig> {
        self.previous.iter().map(|earlier| &earlier.mapping).chain([&self.current])
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
