//! Sends events again, through the running relay: it knows the current routing and the partitions, holds the slot, and
//! counts what is sent against its in-flight limit. A replayed event has no position, because its row or dead letter has
//! its place in the order. It confirms nothing, so it is not in the ledger. Replayed twice, it is in Kafka twice.
//!
//! One event is in flight at a time, so that replayed events keep their order. They come from the dead-letter topic
//! ([`from_dead_letters`]) or from the table ([`from_table`]). The session sends them to the topics that the routing gives.
//! Rows can also go to [another topic](other_topic), and not through the session.

pub mod from_dead_letters;
pub mod from_table;
pub mod ids;
pub mod lines;
mod other_topic;

use std::ops::ControlFlow;
use std::sync::{Arc, Mutex, PoisonError};

use serde_json::{Value, json};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};

use self::ids::EventIds;
use self::lines::{ReplayLine, ReplayOutcome, Replayed, SendOutcome, Summary};
use self::other_topic::OtherTopic;
use crate::config::Config;
use crate::error::RelayError;
use crate::event::owned_row::OwnedRow;
use crate::event::record::Provenance;
use crate::kafka::credentials;
use crate::kafka::topic_reader::TopicReader;

/// Result lines buffered for the client.
const LINES: usize = 16;

/// Why a replay ends after an event whose outcome is not known.
const OUTCOME_UNKNOWN: &str = "it is not known whether the last event is in Kafka";

/// Why the request is rejected.
#[derive(Debug, thiserror::Error)]
pub enum ReplayRejected {
    #[error("nothing selected: give {0}")]
    NothingSelected(&'static str),
    #[error("delivery.deadLetterTopic is not set")]
    NoTopic,
    #[error("the name of the replay is not one to 64 letters, digits, '.', '_' or '-'")]
    Name,
    /// Only the relay that holds the slot may send.
    #[error(
        "this relay does not stream: ask the one that holds the slot, or wait until /readyz says 'streaming'"
    )]
    NotStreaming,
    /// The files with the credentials cannot be read.
    #[error("{0}")]
    Credentials(RelayError),
    #[error("another replay is running")]
    Busy,
}

/// What the session does with an event for a topic that it does not know.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UnknownTopic {
    /// Returns it: the topic may not exist.
    Return,
    /// Waits for the topic, which exists.
    WaitFor,
}

/// An event on its way to the session.
pub struct ReplayRequest {
    pub row: Arc<OwnedRow>,
    pub source: ReplaySource,
    pub unknown_topic: UnknownTopic,
    /// Receives the result.
    pub answer: oneshot::Sender<SendOutcome>,
}

/// Where a replayed event comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ReplaySource {
    DeadLetters,
    /// The table; with the name of the replay.
    Table(Arc<str>),
}

impl ReplaySource {
    /// What the record says of it.
    pub fn provenance(&self) -> Provenance<'_> {
        match self {
            ReplaySource::DeadLetters => Provenance::DeadLetter,
            ReplaySource::Table(name) => Provenance::Replay(name),
        }
    }
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

    /// Begins a replay of `source`, and returns the lines of its response. `ids` are those of events that have to be found.
    fn begin(
        &self,
        config: &Arc<Config>,
        source: ReplaySource,
        ids: EventIds,
    ) -> Result<(Replay, mpsc::Receiver<Value>), ReplayRejected> {
        let session = self.session.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let session = session.filter(|session| !session.is_closed()).ok_or(ReplayRejected::NotStreaming)?;
        // The files may have changed since the process started.
        let config = Arc::new(credentials::current(config).map_err(ReplayRejected::Credentials)?);
        let permit = Arc::clone(&self.one_at_a_time).try_acquire_owned().map_err(|_| ReplayRejected::Busy)?;
        let (lines, answer) = mpsc::channel(LINES);
        let replay = Replay {
            config,
            source,
            session,
            other_topic: None,
            lines,
            summary: Summary::default(),
            missing: ids,
            permit,
        };
        Ok((replay, answer))
    }
}

/// One replay, on a dedicated thread. Its calls block.
struct Replay {
    config: Arc<Config>,
    source: ReplaySource,
    session: mpsc::Sender<ReplayRequest>,
    /// Where all events go, instead of the topics that the routing gives.
    other_topic: Option<OtherTopic>,
    lines: mpsc::Sender<Value>,
    summary: Summary,
    /// Requested ids that were not found yet.
    missing: EventIds,
    permit: OwnedSemaphorePermit,
}

impl Replay {
    /// Sends an event, or reports why its row cannot be read. Breaks when the session has ended, or the client has
    /// disconnected.
    fn send<E: std::fmt::Display>(
        &mut self,
        id: Option<String>,
        row: Result<OwnedRow, E>,
        topics: &TopicReader,
    ) -> ControlFlow<()> {
        if let Some(id) = &id {
            self.missing.remove(id);
        }
        let outcome = match row {
            Ok(row) => self.send_row(row, topics),
            Err(error) => Some(SendOutcome::Refused(error.to_string())),
        };
        let outcome = ReplayOutcome::from(outcome);
        match outcome {
            ReplayOutcome::Sent { .. } => self.summary.sent += 1,
            ReplayOutcome::Refused { .. } | ReplayOutcome::Missing { .. } => self.summary.refused += 1,
            ReplayOutcome::Unknown { .. } => self.summary.error = Some(OUTCOME_UNKNOWN.to_owned()),
        }
        let written = self.write_line(ReplayLine::Replayed(Replayed { id, outcome }));
        if self.summary.error.is_some() { ControlFlow::Break(()) } else { written }
    }

    /// `None` when the outcome is not known.
    fn send_row(&mut self, row: OwnedRow, topics: &TopicReader) -> Option<SendOutcome> {
        if let Some(topic) = &mut self.other_topic {
            return topic.send(&row, self.source.provenance());
        }
        let row = Arc::new(row);
        let outcome = self.send_to_session(&row, UnknownTopic::Return)?;
        let SendOutcome::UnknownTopic(topic) = &outcome else { return Some(outcome) };
        match topics.partitions(topic) {
            Ok(0) => Some(outcome),
            Ok(_) => self.send_to_session(&row, UnknownTopic::WaitFor),
            Err(error) => Some(SendOutcome::Refused(error.to_string())),
        }
    }

    /// `None` when the session has ended.
    fn send_to_session(&self, row: &Arc<OwnedRow>, unknown_topic: UnknownTopic) -> Option<SendOutcome> {
        let (answer, outcome) = oneshot::channel();
        let (row, source) = (Arc::clone(row), self.source.clone());
        self.session.blocking_send(ReplayRequest { row, source, unknown_topic, answer }).ok()?;
        outcome.blocking_recv().ok()
    }

    /// Reports the ids that were not found, and the summary; `error` is why not all events were read.
    fn finish(mut self, error: Option<String>, not_found: &str) {
        self.summary.error = error.or(self.summary.error);
        if self.summary.error.is_none() {
            for id in self.missing.iter() {
                let outcome = ReplayOutcome::Missing { error: not_found.to_owned() };
                let line = Replayed { id: Some(id.to_owned()), outcome };
                if self.write_line(ReplayLine::Replayed(line)).is_break() {
                    break;
                }
            }
        }
        let Replay { source, lines, summary, permit, .. } = self;
        tracing::info!(sent = summary.sent, refused = summary.refused, ?source, "replayed events");
        // The client may start its next replay as soon as it has the summary.
        drop(permit);
        let _ = lines.blocking_send(json!(ReplayLine::Summary(summary)));
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
    use super::from_dead_letters::Selection;
    use super::*;
    use crate::testing;

    #[tokio::test]
    async fn a_relay_that_does_not_stream_sends_nothing() {
        let mut config = testing::config();
        config.delivery.dead_letter_topic = Some("dead".to_owned());
        let (handle, config) = (ReplayHandle::default(), Arc::new(config));
        let all = || Selection { all: true, ..Selection::default() };
        let replay = |selection| handle.replay_dead_letters(&config, selection);
        assert!(matches!(replay(all()), Err(ReplayRejected::NotStreaming)));
        drop(handle.open());
        assert!(matches!(replay(all()), Err(ReplayRejected::NotStreaming)), "its session has ended");
        assert!(matches!(replay(Selection::default()), Err(ReplayRejected::NothingSelected(_))));
        let rows = handle.replay_rows(&config, from_table::Selection::default());
        assert!(matches!(rows, Err(ReplayRejected::NothingSelected(_))));
    }
}
