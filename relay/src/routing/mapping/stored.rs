//! Mappings as the checkpoint stores them.

use std::collections::BTreeMap;

use pg_replication::EndLsn;
use serde::{Deserialize, Serialize};

use super::MappingChain;
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

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RoutingConfig {
    #[serde(flatten)]
    pub rule: Rule,
    /// Topics that records may have been sent to.
    #[serde(default)]
    pub topics: BTreeMap<String, TopicShape>,
}

/// The mappings as the checkpoint stores them.
pub type RoutingHistory = MappingChain<RoutingConfig>;

impl RoutingHistory {
    pub fn first(rule: Rule) -> RoutingHistory {
        MappingChain::new(RoutingConfig { rule, topics: BTreeMap::new() })
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
        self.drop_confirmed(confirmed);
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
        self.all().filter_map(|mapping| smallest_limit(&mapping.topics)).min()
    }
}

/// The smallest limit of any of these topics.
pub(super) fn smallest_limit<K>(topics: &BTreeMap<K, TopicShape>) -> Option<usize> {
    topics.values().filter_map(|shape| shape.max_message_bytes).min()
}
