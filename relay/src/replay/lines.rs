//! The response to a replay: a line for each event, and a summary at the end.

use serde::{Deserialize, Serialize};

use crate::topics::partitions::PartitionNumber;

/// The result for one event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SendOutcome {
    /// Kafka acknowledged the event.
    Sent { topic: String, partition: PartitionNumber },
    /// It cannot be delivered.
    Refused(String),
    /// The relay does not know the topic, and must not wait for a topic that may never be created.
    UnknownTopic(String),
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum ReplayLine {
    /// The result for one event.
    Replayed(Replayed),
    Summary(Summary),
}

/// The result for one event, as reported.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Replayed {
    pub id: Option<String>,
    #[serde(flatten)]
    pub outcome: ReplayOutcome,
}

/// What became of an event, and where it is now, or why it was not sent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "outcome", rename_all = "lowercase")]
pub enum ReplayOutcome {
    /// Kafka acknowledged the event.
    Sent { topic: String, partition: PartitionNumber },
    /// It cannot be delivered.
    Refused { error: String },
    /// There is no such event to replay.
    Missing { error: String },
    /// The session ended before the result was known, or Kafka did not answer in time.
    Unknown { error: String },
}

/// How many were sent and refused, and why not all were considered.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Summary {
    /// Acknowledged by Kafka.
    pub sent: u64,
    /// Not sent.
    pub refused: u64,
    /// Why not all events were read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

impl From<Option<SendOutcome>> for ReplayOutcome {
    /// `None` when the session has ended, or Kafka did not answer in time.
    fn from(outcome: Option<SendOutcome>) -> Self {
        match outcome {
            Some(SendOutcome::Sent { topic, partition }) => ReplayOutcome::Sent { topic, partition },
            Some(SendOutcome::Refused(error)) => ReplayOutcome::Refused { error },
            Some(SendOutcome::UnknownTopic(topic)) => {
                ReplayOutcome::Refused { error: format!("topic {topic} does not exist") }
            }
            None => ReplayOutcome::Unknown {
                error: "Kafka did not acknowledge it in time, or before the relay's session ended; check the topic before \
                        trying again"
                    .to_owned(),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_line_is_read_as_it_was_written() {
        let sent = ReplayOutcome::Sent { topic: "t".into(), partition: PartitionNumber(3) };
        let refused = ReplayOutcome::from(Some(SendOutcome::UnknownTopic("t".into())));
        let line = |id: &str, outcome| ReplayLine::Replayed(Replayed { id: Some(id.into()), outcome });
        let lines = [
            (line("a", sent), json!({"id": "a", "outcome": "sent", "topic": "t", "partition": 3})),
            (line("b", refused), json!({"id": "b", "outcome": "refused", "error": "topic t does not exist"})),
            (ReplayLine::Summary(Summary::default()), json!({"sent": 0, "refused": 0})),
        ];
        for (line, written) in lines {
            assert_eq!(json!(line), written);
            assert_eq!(serde_json::from_value::<ReplayLine>(written).unwrap(), line);
        }
    }
}
