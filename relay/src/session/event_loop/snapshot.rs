//! What a pump does before it reads the stream, when there are rows from before the slot: it deals with their pages as
//! with messages, under the same budget, while the stream is open and waits.

use std::collections::VecDeque;

use super::{BURST, EventLoop};
use crate::delivery::Flow;
use crate::error::{ErrorKind, RelayError};
use crate::postgres::backfill::{Pages, StoredRow};
use crate::status::Phase;

/// Rows that were there before the slot.
pub(super) struct SnapshotRows {
    pages: Pages,
    page: VecDeque<StoredRow>,
    /// Every page was read.
    exhausted: bool,
}

/// What a copy needs next.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum SnapshotStep {
    NeedsPage,
    /// Only its turn.
    HasMore,
    /// An acknowledgement, an answer, or a checkpoint.
    Waits,
}

impl EventLoop {
    /// Delivers the rows of `pages` before anything of the stream.
    pub fn with_snapshot(mut self, pages: Pages) -> EventLoop {
        self.copy = Some(SnapshotRows { pages, page: VecDeque::new(), exhausted: false });
        self
    }

    /// Deals with rows that were there before the slot, a burst at most.
    pub(super) fn process_snapshot(&mut self) -> Result<SnapshotStep, RelayError> {
        let stored = self.writer.committed().revision;
        for _ in 0..BURST {
            let Some(copy) = &mut self.copy else { return Ok(SnapshotStep::HasMore) };
            let Some(row) = copy.page.front() else {
                return if copy.exhausted { self.finish_snapshot() } else { Ok(SnapshotStep::NeedsPage) };
            };
            if !self.delivery.has_room() {
                return Ok(SnapshotStep::Waits);
            }
            let flow = match self.delivery.on_snapshot_row(copy.pages.layout(), row, stored) {
                Ok(Flow::Next) => {
                    copy.page.pop_front();
                    self.on_poison_cleared();
                    continue;
                }
                Err(error) if error.kind == ErrorKind::PoisonRow => self.on_poison(error),
                flow => flow?,
            };
            if flow == Flow::Blocked {
                self.request_checkpoint(false);
                return Ok(SnapshotStep::Waits);
            }
        }
        Ok(SnapshotStep::HasMore)
    }

    /// Once everything copied is in Kafka, says so in the checkpoint, and reads the stream when that is written.
    fn finish_snapshot(&mut self) -> Result<SnapshotStep, RelayError> {
        if !self.delivery.ledger().is_empty() {
            return Ok(SnapshotStep::Waits);
        }
        self.delivery.finish_snapshot();
        self.request_checkpoint(true);
        if self.writer.committed().copied.is_some() {
            return Ok(SnapshotStep::Waits);
        }
        self.copy = None;
        self.status.enter(Phase::Streaming);
        tracing::info!("the rows that were there before the slot are delivered; streaming");
        Ok(SnapshotStep::HasMore)
    }

    pub(super) fn on_page(&mut self, page: Option<Vec<StoredRow>>) {
        let Some(copy) = &mut self.copy else { return };
        match page {
            Some(rows) => copy.page.extend(rows),
            None => copy.exhausted = true,
        }
    }
}

/// The next page to come. Cancel-safe.
pub(super) async fn next_page(copy: &mut Option<SnapshotRows>) -> Result<Option<Vec<StoredRow>>, RelayError> {
    match copy {
        Some(copy) => copy.pages.next().await,
        None => std::future::pending().await,
    }
}
