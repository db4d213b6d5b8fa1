//! What the session sees of Kafka: whether it responds, and what it acknowledges.

use std::time::{Instant, SystemTime};

use super::problems::Problem;
use super::signals::{KafkaAnswers, SessionStats, SilentPartition};
use super::state::STALLED_AFTER;
use crate::error::ErrorKind;

pub(super) struct KafkaState {
    pub(super) answers: KafkaAnswers,
    changed: Instant,
    /// The client's last connection error.
    connection_error: Option<String>,
    /// Last time Kafka acknowledged something, or nothing waited.
    pub(super) progress_at: Instant,
    pub(super) acknowledged_at: Option<SystemTime>,
    /// Partitions without progress, the longest silent first.
    pub(super) silent: Vec<SilentPartition>,
}

impl KafkaState {
    pub(super) fn new(now: Instant) -> KafkaState {
        KafkaState {
            answers: KafkaAnswers::Unknown,
            changed: now,
            connection_error: None,
            progress_at: now,
            acknowledged_at: None,
            silent: Vec::new(),
        }
    }

    /// The session's counters have changed.
    pub(super) fn on_stats(&mut self, before: &SessionStats, stats: &SessionStats, now: Instant) {
        if stats.acknowledged_events > before.acknowledged_events {
            self.acknowledged_at = Some(SystemTime::now());
        }
        // A row that is already in Kafka counts as acknowledged.
        let settled = |stats: &SessionStats| (stats.acknowledged_events, stats.suppressed_events);
        if settled(stats) != settled(before) || stats.oldest_commit.is_none() {
            self.progress_at = now;
        }
    }

    pub(super) fn set_answers(&mut self, answers: KafkaAnswers, connection_error: Option<String>) {
        self.connection_error = connection_error;
        if self.answers != answers {
            self.answers = answers;
            self.changed = Instant::now();
        }
    }

    /// Kafka does not respond.
    pub(super) fn unreachable(&self, now: Instant) -> Option<Problem> {
        if self.answers != KafkaAnswers::No {
            return None;
        }
        let lasted = now.saturating_duration_since(self.changed);
        let error = self.connection_error.as_ref().map(|error| format!(": {error}")).unwrap_or_default();
        Some(Problem::new(ErrorKind::KafkaUnreachable, format!("Kafka does not respond{error}"), lasted))
    }

    /// The partition that has been silent longest, even while others progress.
    pub(super) fn silent_partition(&self, now: Instant) -> Option<Problem> {
        let lasted = |silent: &SilentPartition| now.saturating_duration_since(silent.since);
        let mut silent = self.silent.iter().filter(|silent| lasted(silent) > STALLED_AFTER);
        let first = silent.next()?;
        let what = match silent.count() {
            0 => first.text(now),
            more => format!("{}, and {more} more", first.text(now)),
        };
        Some(Problem::new(ErrorKind::NoAcknowledgement, what, lasted(first)))
    }
}
