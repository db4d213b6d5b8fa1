//! Sends dead letters again, through the running relay: it knows the current routing and the partitions, holds the
//! slot, and counts what is sent against its in-flight limit. A replayed event has no position, because its dead letter
//! has its place in the order. It confirms nothing, so it is not in the ledger. Replayed twice, it is in Kafka twice.
//!
//! One dead letter is in flight at a time, so that they keep their order.

use std::collections::BTreeSet;
use std::ops::ControlFlow;
use std::sync::{Arc, Mutex, PoisonError};

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};

use super::reader::{DeadLetter, Reader};
use crate::config::Config;
use crate::error::RelayError;
use crate::kafka::credentials;
use crate::topics::partitions::PartitionNumber;

/// Result lines buffered for the client.
const LINES: usize = 16;

/// Which dead letters to send again.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Selection {
    /// Dead letters with these event ids.
    #[serde(default)]
    pub ids: BTreeSet<String>,
    /// All dead letters.
    #[serde(default)]
    pub all: bool,
    /// Only those written at this time or later.
    #[serde(default)]
    pub since: Option<DateTime<Utc>>,
}

impl Selection {
    fn matches(&self, letter: &DeadLetter) -> bool {
        self.all || letter.id.as_ref().is_some_and(|id| self.ids.contains(id))
    }
}

/// Why the request is rejected.
#[derive(Debug, thiserror::Error)]
pub enum ReplayRejected {
    /// Neither `ids` nor `all` is given.
    #[error("nothing selected: give 'ids', or 'all': true")]
    NothingSelected,
    /// No dead-letter topic is configured.
    #[error("delivery.deadLetterTopic is not set")]
    NoTopic,
    /// Only the relay that holds the slot may send.
    #[error(
        "this relay does not stream: ask the one that holds the slot, or wait until /readyz says 'streaming'"
    )]
    NotStreaming,
    /// The files with the credentials for Kafka cannot be read.
    #[error("{0}")]
    Credentials(RelayError),
    /// Another replay is running.
    #[error("another replay of dead letters is running")]
    Busy,
}

/// The result for one dead letter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SendOutcome {
    /// Kafka acknowledged the event.
    Sent { topic: String, partition: PartitionNumber },
    /// It still cannot be delivered, and stays a dead letter.
    Refused(String),
    /// The relay does not know the topic, and must not wait for a topic that may never be created.
    UnknownTopic(String),
}

/// One line of the response.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum ReplayLine {
    /// The result for one dead letter.
    Replayed(Replayed),
    /// The last line.
    Summary(Summary),
}

/// The result for one dead letter, as reported.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Replayed {
    pub id: Option<String>,
    #[serde(flatten)]
    pub outcome: ReplayOutcome,
}

/// What became of a dead letter, and where it is now, or why it was not sent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "outcome", rename_all = "lowercase")]
pub enum ReplayOutcome {
    /// Kafka acknowledged the event.
    Sent { topic: String, partition: PartitionNumber },
    /// It still cannot be delivered.
    Refused { error: String },
    /// The outbox has no such dead letter.
    Missing { error: String },
    /// The session ended before the result was known.
    Unknown { error: String },
}

/// How many were sent and refused, and why not all were considered.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Summary {
    /// Acknowledged by Kafka.
    pub sent: u64,
    /// Still dead letters.
    pub refused: u64,
    /// Why the topic was not read to its end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

impl From<Option<SendOutcome>> for ReplayOutcome {
    /// `None` when the session has ended.
    fn from(outcome: Option<SendOutcome>) -> Self {
        match outcome {
            Some(SendOutcome::Sent { topic, partition }) => ReplayOutcome::Sent { topic, partition },
            Some(SendOutcome::Refused(error)) => ReplayOutcome::Refused { error },
            Some(SendOutcome::UnknownTopic(topic)) => {
                ReplayOutcome::Refused { error: format!("topic {topic} does not exist") }
            }
            None => ReplayOutcome::Unknown {
                error: "the relay's session ended before Kafka acknowledged it; check the topic before trying again"
                    .to_owned(),
            },
        }
    }
}

/// What the session does with a dead letter for a topic that it does not know.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UnknownTopic {
    /// Returns it: the topic may not exist.
    Return,
    /// Waits for the topic, which exists.
    WaitFor,
}

/// A dead letter on its way to the session.
pub struct ReplayRequest {
    pub letter: DeadLetter,
    pub unknown_topic: UnknownTopic,
    /// Receives the result.
    pub answer: oneshot::Sender<SendOutcome>,
}

/// Passes requests from the admin listener to the current session.
#[derive(Clone)]
pub struct ReplayHandle {
    session: Arc<Mutex<Option<mpsc::Sender<ReplayRequest>>>>,
    one_at_a_time: Arc<Semaphore>,
}

impl Default for ReplayHandle {
    fn default() -> Self {
        ReplayHandle { session: Arc::default(), one_at_a_time: Arc::new(Semaphore::new(1)) }
    }
}

impl ReplayHandle {
    /// A session starts to accept requests. Dropping the receiver ends that.
    pub fn open(&self) -> mpsc::Receiver<ReplayRequest> {
        let (sender, requests) = mpsc::channel(1);
        *self.session.lock().unwrap_or_else(PoisonError::into_inner) = Some(sender);
        requests
    }

    /// Starts to send the dead letters of `selection` again. Each result is one line; the last line is a summary.
    pub fn replay(
        &self,
        config: &Arc<Config>,
        selection: Selection,
    ) -> Result<mpsc::Receiver<Value>, ReplayRejected> {
        if selection.ids.is_empty() && !selection.all {
            return Err(ReplayRejected::NothingSelected);
        }
        let topic = config.delivery.dead_letter_topic.clone().ok_or(ReplayRejected::NoTopic)?;
        let session = self.session.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let session = session.filter(|session| !session.is_closed()).ok_or(ReplayRejected::NotStreaming)?;
        // The files may have changed since the process started.
        let config = Arc::new(credentials::current(config).map_err(ReplayRejected::Credentials)?);
        let permit = Arc::clone(&self.one_at_a_time).try_acquire_owned().map_err(|_| ReplayRejected::Busy)?;
        let (lines, answer) = mpsc::channel(LINES);
        let replay = Replay {
            missing: selection.ids.clone(),
            source: config.source.event_source(),
            config,
            topic,
            selection,
            session,
            lines,
            summary: Summary::default(),
            runtime: tokio::runtime::Handle::current(),
            _permit: permit,
        };
        tokio::task::spawn_blocking(move || replay.run());
        Ok(answer)
    }
}

/// One request, on a dedicated thread.
struct Replay {
    config: Arc<Config>,
    source: String,
    topic: String,
    selection: Selection,
    session: mpsc::Sender<ReplayRequest>,
    lines: mpsc::Sender<Value>,
    summary: Summary,
    /// Requested ids that were not found yet.
    missing: BTreeSet<String>,
    runtime: tokio::runtime::Handle,
    _permit: OwnedSemaphorePermit,
}

impl Replay {
    fn run(mut self) {
        let since = self.selection.since;
        let read = Reader::new(&self.config.sink, &self.topic)
            .and_then(|reader| reader.read(since, |letter| self.replay_one(&reader, letter)));
        match read {
            Ok(()) => self.report_missing(),
            Err(error) => self.summary.error = Some(error.to_string()),
        }
        let Summary { sent, refused, .. } = self.summary;
        tracing::info!(sent, refused, "replayed dead letters");
        let _ = self.write_line(ReplayLine::Summary(self.summary.clone()));
    }

    /// Skips dead letters of other outboxes: their relays replay them.
    fn replay_one(&mut self, reader: &Reader, letter: DeadLetter) -> ControlFlow<()> {
        if letter.source.as_ref() != Some(&self.source) || !self.selection.matches(&letter) {
            return ControlFlow::Continue(());
        }
        let id = letter.id.clone();
        if let Some(id) = &id {
            self.missing.remove(id);
        }
        let outcome = ReplayOutcome::from(self.send(reader, letter));
        let is_unknown = matches!(outcome, ReplayOutcome::Unknown { .. });
        match outcome {
            ReplayOutcome::Sent { .. } => self.summary.sent += 1,
            ReplayOutcome::Refused { .. } | ReplayOutcome::Missing { .. } => self.summary.refused += 1,
            ReplayOutcome::Unknown { .. } => {}
        }
        let written = self.write_line(ReplayLine::Replayed(Replayed { id, outcome }));
        if is_unknown { ControlFlow::Break(()) } else { written }
    }

    fn report_missing(&mut self) {
        for id in std::mem::take(&mut self.missing) {
            let outcome = ReplayOutcome::Missing { error: "this outbox has no such dead letter".to_owned() };
            if self.write_line(ReplayLine::Replayed(Replayed { id: Some(id), outcome })).is_break() {
                return;
            }
        }
    }

    fn send(&self, reader: &Reader, letter: DeadLetter) -> Option<SendOutcome> {
        let letter = match self.runtime.block_on(letter.restored(&self.config)) {
            Ok(letter) => letter,
            Err(error) => return Some(SendOutcome::Refused(error.to_string())),
        };
        let outcome = self.send_to_session(letter.clone(), UnknownTopic::Return)?;
        let SendOutcome::UnknownTopic(topic) = &outcome else { return Some(outcome) };
        match reader.partitions(topic) {
            Ok(0) => Some(outcome),
            Ok(_) => self.send_to_session(letter, UnknownTopic::WaitFor),
            Err(error) => Some(SendOutcome::Refused(error.to_string())),
        }
    }

    /// `None` when the session has ended.
    fn send_to_session(&self, letter: DeadLetter, unknown_topic: UnknownTopic) -> Option<SendOutcome> {
        let (answer, outcome) = oneshot::channel();
        self.session.blocking_send(ReplayRequest { letter, unknown_topic, answer }).ok()?;
        outcome.blocking_recv().ok()
    }

    /// Breaks when the client has disconnected.
    fn write_line(&self, line: ReplayLine) -> ControlFlow<()> {
        match self.lines.blocking_send(json!(line)) {
            Ok(()) => ControlFlow::Continue(()),
            Err(_) => ControlFlow::Break(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_selection_has_ids_or_all() {
        let letter = |id: Option<&str>| DeadLetter { id: id.map(Into::into), ..DeadLetter::default() };
        let some: Selection = serde_json::from_value(json!({"ids": ["a"]})).unwrap();
        assert!(
            some.matches(&letter(Some("a")))
                && !some.matches(&letter(Some("b")))
                && !some.matches(&letter(None))
        );
        let all: Selection = serde_json::from_value(json!({"all": true})).unwrap();
        assert!(all.matches(&letter(None)));
        assert!(
            serde_json::from_value::<Selection>(json!({"id": "a"})).is_err(),
            "a typing error is no selection"
        );
    }

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

    #[tokio::test]
    async fn a_relay_that_does_not_stream_sends_nothing() {
        let config: Config = serde_json::from_value(json!({
            "version": 1, "name": "r",
            "source": {"host": "h", "database": "d", "user": "u", "publication": {"name": "p"}, "slot": {"name": "s"}},
            "sink": {"bootstrapServers": "k:1"},
            "delivery": {"deadLetterTopic": "dead"},
        }))
        .unwrap();
        let (desk, config) = (ReplayHandle::default(), Arc::new(config));
        let all = || Selection { all: true, ..Selection::default() };
        assert!(matches!(desk.replay(&config, all()), Err(ReplayRejected::NotStreaming)));
        drop(desk.open());
        assert!(
            matches!(desk.replay(&config, all()), Err(ReplayRejected::NotStreaming)),
            "its session has ended"
        );
        assert!(matches!(desk.replay(&config, Selection::default()), Err(ReplayRejected::NothingSelected)));
    }
}
