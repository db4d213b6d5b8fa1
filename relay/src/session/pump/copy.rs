//! What a pump does before it reads the stream, when there are rows from before the slot: it deals with their pages as
//! with messages, under the same budget, while the stream is open and waits.

use std::collections::VecDeque;

use super::{BURST, Pump};
use crate::delivery::Flow;
use crate::postgres::backfill::{Pages, StoredRow};
use crate::status::Phase;
use crate::trouble::{Reason, Trouble};

/// Rows that were there before the slot.
pub(super) struct Copy {
    pages: Pages,
    page: VecDeque<StoredRow>,
    /// Every page was read.
    exhausted: bool,
}

/// What a copy needs next.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum CopyStep {
    NeedsPage,
    /// Only its turn.
    HasMore,
    /// An acknowledgement, an answer, or a checkpoint.
    Waits,
}

impl Pump {
    /// Delivers the rows of `pages` before anything of the stream.
    pub fn copying(mut self, pages: Pages) -> Pump {
        self.copy = Some(Copy { pages, page: VecDeque::new(), exhausted: false });
        self
    }

    /// Deals with rows that were there before the slot, a burst at most.
    pub(super) fn copy_rows(&mut self) -> Result<CopyStep, Trouble> {
        let stored = self.writer.committed().revision;
        for _ in 0..BURST {
            let Some(copy) = &mut self.copy else { return Ok(CopyStep::HasMore) };
            let Some(row) = copy.page.front() else {
                return if copy.exhausted { self.end_copy() } else { Ok(CopyStep::NeedsPage) };
            };
            if !self.delivery.has_room() {
                return Ok(CopyStep::Waits);
            }
            let flow = match self.delivery.copied(copy.pages.layout(), row, stored) {
                Ok(Flow::Next) => {
                    copy.page.pop_front();
                    self.not_poisoned();
                    continue;
                }
                Err(trouble) if trouble.reason == Reason::PoisonRow => self.poisoned(trouble),
                flow => flow?,
            };
            if flow == Flow::Blocked {
                self.request_checkpoint(false);
                return Ok(CopyStep::Waits);
            }
        }
        Ok(CopyStep::HasMore)
    }

    /// Once everything copied is in Kafka, says so in the checkpoint, and reads the stream when that is written.
    fn end_copy(&mut self) -> Result<CopyStep, Trouble> {
        if !self.delivery.ledger().is_empty() {
            return Ok(CopyStep::Waits);
        }
        self.delivery.copy_is_done();
        self.request_checkpoint(true);
        if self.writer.committed().copied.is_some() {
            return Ok(CopyStep::Waits);
        }
        self.copy = None;
        self.status.enter(Phase::Streaming);
        tracing::info!("the rows that were there before the slot are delivered; streaming");
        Ok(CopyStep::HasMore)
    }

    pub(super) fn take_page(&mut self, page: Option<Vec<StoredRow>>) {
        let Some(copy) = &mut self.copy else { return };
        match page {
            Some(rows) => copy.page.extend(rows),
            None => copy.exhausted = true,
        }
    }
}

/// The next page to come. Cancel-safe.
pub(super) async fn next_page(copy: &mut Option<Copy>) -> Result<Option<Vec<StoredRow>>, Trouble> {
    match copy {
        Some(copy) => copy.pages.next().await,
        None => std::future::pending().await,
    }
}
