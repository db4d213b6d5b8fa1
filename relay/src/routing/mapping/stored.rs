//! Mappings as the checkpoint keeps them.

use std::collections::BTreeMap;

use pg_replication::{EndLsn, Lsn};
use serde::{Deserialize, Serialize};

use super::RefusedRows;
use crate::routing::rule::Rule;

/// With smaller limits, too, rows of this size are read whole: dead letters then have what fits of them.
const LARGEST_VALUE_AT_LEAST: usize = 1024 * 1024;

/// What the mapping knows of a topic.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TopicShape {
    /// Number of partitions events are spread over.
    pub partitions: i32,
    /// The topic's own limit in bytes, where it may be read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_message_bytes: Option<usize>,
    /// It is compacted, as far as that may be read, and so takes no record without a key.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub compacted: bool,
}

/// One mapping, as it is stored.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RoutingConfig {
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
pub struct Superseded {
    /// No row committed at or beyond it was sent under this mapping.
    #[serde(with = "lsn_text")]
    pub until: EndLsn,
    /// The mapping.
    #[serde(flatten)]
    pub mapping: RoutingConfig,
}

/// The mapping and those before it, as the checkpoint has them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RoutingHistory {
    /// Counts changes. It has a column of its own, so that a person sees it without reading JSON.
    #[serde(skip)]
    pub version: i32,
    /// Where rows go.
    pub current: RoutingConfig,
    /// Where rows went that may be replayed; oldest first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub previous: Vec<Superseded>,
    /// Rows that do not go where the mappings would send them, because Kafka refused them there.
    #[serde(default, skip_serializing_if = "RefusedRows::is_empty")]
    pub refused: RefusedRows,
}

impl RoutingHistory {
    /// The first mapping of a relay.
    pub fn first(rule: Rule) -> RoutingHistory {
        let current = RoutingConfig { rule, topics: BTreeMap::new() };
        RoutingHistory { version: 1, current, previous: Vec::new(), refused: RefusedRows::default() }
    }

    /// Without what only concerns rows before `confirmed`.
    pub fn without_what_is_confirmed(mut self, confirmed: EndLsn) -> RoutingHistory {
        self.previous.retain(|earlier| earlier.until > confirmed);
        self.refused.confirm(confirmed);
        self
    }

    /// What holds from now on under `rule`; nothing committed at or beyond `horizon` was sent yet.
    pub fn under(mut self, rule: Rule, horizon: EndLsn) -> RoutingHistory {
        if self.current.rule == rule {
            return self;
        }
        // With other routes other topics may be in use. One that still is will be found again.
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

    /// Every topic with the highest number of partitions it has in any of them.
    pub fn topics(&self) -> BTreeMap<&str, i32> {
        let mut topics = BTreeMap::new();
        for (name, shape) in self.all().flat_map(|mapping| &mapping.topics) {
            let partitions = topics.entry(name.as_str()).or_default();
            *partitions = shape.partitions.max(*partitions);
        }
        topics
    }

    /// Whether a topic is selected by the column of that name in any of them.
    pub fn read(&self, column: &str) -> bool {
        self.all().any(|mapping| mapping.rule.routing.by_field == column)
    }

    /// No value of a row needs more memory than this: a larger one fits into no record of any of them. The rule is the
    /// same for rows of the stream and of the table, so that both make the same dead letter.
    pub fn largest_value(&self) -> usize {
        self.all().map(|mapping| mapping.rule.max_message_bytes).fold(LARGEST_VALUE_AT_LEAST, usize::max)
    }

    /// The smallest limit of any topic: no batch may be larger.
    pub fn smallest_limit(&self) -> Option<usize> {
        self.all().filter_map(RoutingConfig::smallest_limit).min()
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
