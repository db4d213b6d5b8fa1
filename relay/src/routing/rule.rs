//! The configured part of routing.

use serde::{Deserialize, Serialize};

/// Which topic an event goes to: Debezium's outbox router rule.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Routing {
    /// Column whose text selects the topic.
    pub by_field: String,
    /// Regular expression over that text; it must match the whole of it.
    pub regex: String,
    /// The topic, with `${name}` for the groups of `regex`.
    pub replacement: String,
}

impl Default for Routing {
    fn default() -> Self {
        Routing {
            by_field: outbox::column::AGGREGATE_TYPE.into(),
            regex: "(?<routedByValue>.*)".into(),
            replacement: "outbox.event.${routedByValue}".into(),
        }
    }
}

/// The configuration that determines destinations.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Rule {
    /// Which topic an event goes to.
    pub routing: Routing,
    /// Largest record in bytes.
    pub max_message_bytes: usize,
    /// The topic for rows that cannot be delivered as events. Without one they stop delivery.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dead_letter_topic: Option<String>,
}
