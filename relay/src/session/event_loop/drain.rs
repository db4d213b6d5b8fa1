//! The end of a graceful shutdown.

use std::time::Instant;

use super::{EventLoop, TICK};
use crate::error::RelayError;
use crate::failpoint::{self, Boundary};
use crate::session::end::SessionEnd;

impl EventLoop {
    /// Ends a graceful shutdown once it is complete or its deadline is reached: writes and confirms the last checkpoint,
    /// and returns how the relay ends.
    pub(super) async fn end_drain(&mut self) -> Result<Option<SessionEnd>, RelayError> {
        let Some(since) = self.draining_since else { return Ok(None) };
        failpoint::pass(Boundary::InDrain);
        let late = since.elapsed() > self.drain_within;
        // An open transaction is read to its end, unless it is blocked by a row that needs manual action.
        let stuck = self.input.is_poisoned() || self.delivery.waits_for_topic();
        let settled = self.delivery.load().events == 0 && (stuck || !self.delivery.in_transaction());
        if !settled && !late {
            return Ok(None);
        }
        if !self.commit_last_checkpoint(since).await? {
            return Ok(Some(SessionEnd::Late));
        }
        self.confirm()?;
        Ok(Some(match (settled, stuck) {
            (true, true) => SessionEnd::Blocked,
            (true, false) if self.delivery.ledger().is_empty() => SessionEnd::Drained,
            _ => SessionEnd::Late,
        }))
    }

    /// Writes a checkpoint of all progress. Returns whether it was committed before the deadline.
    async fn commit_last_checkpoint(&mut self, since: Instant) -> Result<bool, RelayError> {
        self.write_last_checkpoint();
        while !self.checkpoints.is_committed(&self.writer.committed()) {
            let left = self.drain_within.saturating_sub(since.elapsed()).max(TICK);
            match tokio::time::timeout(left, self.writer.changed()).await {
                Ok(changed) => changed?,
                Err(_) => return Ok(false),
            }
        }
        Ok(true)
    }
}
