//! The problems that were reported: an error that ended a session, a row or a topic that blocks the stream. What else
//! interrupts an open stream is never stored, but judged at each request: see [`State`](super::state::State).

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use outbox::Position;

use crate::error::ErrorKind;

#[derive(Default)]
pub(super) struct Problems {
    /// The error that ended the last session, or keeps the next one from opening its stream.
    pub(super) error: Option<Problem>,
    /// The error that ended an open stream, until delivery has passed it.
    pub(super) unresolved: Option<Problem>,
    /// A row that cannot be delivered.
    pub(super) poison: Option<Problem>,
    /// Topics that do not exist, and since when that is known.
    pub(super) missing_topics: BTreeMap<String, SystemTime>,
    pub(super) last: Option<LastProblem>,
}

/// Why delivery is interrupted, as shown.
#[derive(Clone, Debug)]
pub(super) struct Problem {
    pub(super) reason: ErrorKind,
    pub(super) what: String,
    pub(super) since: SystemTime,
    /// The row that has to be delivered before the problem counts as resolved, where one is known.
    pub(super) at: Option<Position>,
}

impl Problem {
    pub(super) fn new(reason: ErrorKind, what: impl Into<String>, lasted: Duration) -> Problem {
        Problem { reason, what: what.into(), since: SystemTime::now() - lasted, at: None }
    }
}

/// The last problem, whether it is over or not.
#[derive(Clone, Debug)]
pub(super) struct LastProblem {
    pub(super) shown: Problem,
    pub(super) until: Option<SystemTime>,
}

impl Problems {
    /// What blocks the open stream: a row, or a topic that it waits for.
    pub(super) fn blocked_by(&self) -> Option<Problem> {
        self.poison.clone().or_else(|| self.missing_topic())
    }

    fn missing_topic(&self) -> Option<Problem> {
        let (topic, since) = self.missing_topics.iter().min_by_key(|(_, since)| **since)?;
        let what = match self.missing_topics.len() {
            1 => format!("topic {topic} does not exist"),
            more => format!("topic {topic} does not exist, and {} more", more - 1),
        };
        Some(Problem { reason: ErrorKind::TopicMissing, what, since: *since, at: None })
    }

    /// Remembers what ended an open stream. It is over only when delivery has passed this error and those before it.
    pub(super) fn set_unresolved(&mut self, shown: Problem) {
        let before = self.unresolved.as_ref().and_then(|before| before.at);
        let blocked = self.poison.as_ref().and_then(|poison| poison.at);
        self.unresolved = Some(Problem { at: shown.at.max(before).max(blocked), ..shown });
    }

    /// Forgets the error that ended the previous stream, if it matches.
    pub(super) fn clear_unresolved(&mut self, kind: impl Fn(&Problem) -> bool) {
        if self.unresolved.as_ref().is_some_and(kind) {
            self.unresolved = None;
            self.error = None;
        }
    }

    /// A row cannot be delivered; `None` when it was sent after all. Kafka may still reject it.
    pub(super) fn set_poison(&mut self, poison: Option<Problem>) {
        let sent = std::mem::replace(&mut self.poison, poison);
        if let Some(sent) = sent.filter(|sent| sent.at.is_some() && self.poison.is_none()) {
            self.set_unresolved(sent);
            self.error = self.unresolved.clone();
        }
    }

    /// The next session has to find out again what blocks its stream.
    pub(super) fn clear_session(&mut self) {
        self.poison = None;
        self.missing_topics.clear();
    }

    /// Records the present problem, and when the last one ended.
    pub(super) fn record(&mut self, present: Option<Problem>) {
        let current = self.last.as_ref().filter(|past| past.until.is_none());
        match (present, current) {
            (Some(now), Some(past)) if now.reason == past.shown.reason => {}
            (Some(shown), _) => {
                // An error that ended a session has been logged already.
                if self.error.is_none() {
                    let reason = shown.reason.name();
                    tracing::warn!(reason, "not ready: {}; {}", shown.what, shown.reason.remedy());
                }
                self.last = Some(LastProblem { shown, until: None });
            }
            (None, Some(past)) => {
                let reason = past.shown.reason.name();
                tracing::info!(reason, "ready again");
                self.last.as_mut().map(|past| past.until.insert(SystemTime::now()));
            }
            (None, None) => {}
        }
    }
}
