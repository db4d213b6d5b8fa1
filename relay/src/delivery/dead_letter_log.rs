//! The log of dead letters, which are counted and shown when Kafka has acknowledged them, not when they are sent.

use std::time::{Duration, Instant};

use crate::event::dead_letter::DeadLetterSummary;

/// At most one log line per second, because a faulty writer produces thousands of dead letters.
const LOG_EVERY: Duration = Duration::from_secs(1);

#[derive(Default)]
pub(super) struct DeadLetterLog {
    logged: Option<Instant>,
    unlogged: u64,
}

impl DeadLetterLog {
    pub(super) fn on_acknowledged(&mut self, summary: &DeadLetterSummary) {
        if self.logged.is_some_and(|at| at.elapsed() < LOG_EVERY) {
            self.unlogged += 1;
            return;
        }
        self.logged = Some(Instant::now());
        let unlogged = std::mem::take(&mut self.unlogged);
        tracing::warn!(reason = summary.kind.name(), unlogged, "{summary}");
    }
}
