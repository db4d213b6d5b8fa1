//! The initial snapshot in the event loop: rows from before the slot are read in pages and delivered before the stream
//! is read. They go the same way as stream messages, under the same in-flight budget, while the stream is open and
//! unread.

use std::collections::VecDeque;

use super::{EventLoop, NextStep};
use crate::delivery::{BURST, Flow};
use crate::error::RelayError;
use crate::postgres::backfill::{Pages, StoredRow};
use crate::status::Phase;

/// The rows of the initial snapshot.
pub(super) struct SnapshotRows {
    pages: Pages,
    page: VecDeque<StoredRow>,
    /// All pages were read.
    exhausted: bool,
}

impl EventLoop {
    /// Delivers the rows of `pages` before anything from the stream.
    pub fn with_snapshot(mut self, pages: Pages) -> EventLoop {
        self.snapshot = Some(SnapshotRows { pages, page: VecDeque::new(), exhausted: false });
        self
    }

    /// Processes rows of the snapshot, at most a burst.
    pub(super) fn process_snapshot(&mut self) -> Result<NextStep, RelayError> {
        let committed_revision = self.writer.committed().revision;
        for _ in 0..BURST {
            let Some(snapshot) = &mut self.snapshot else { return Ok(NextStep::Continue) };
            let Some(row) = snapshot.page.front() else {
                return if snapshot.exhausted { self.finish_snapshot() } else { Ok(NextStep::ReadPage) };
            };
            if !self.delivery.has_room() {
                return Ok(NextStep::Wait);
            }
            let flow = self.delivery.on_snapshot_row(snapshot.pages.layout(), row, committed_revision);
            if self.input.block_on_poison(flow)? == Flow::Blocked {
                self.write_due_checkpoint();
                return Ok(NextStep::Wait);
            }
            snapshot.page.pop_front();
        }
        Ok(NextStep::Continue)
    }

    /// Once all snapshot rows are in Kafka, records that in the checkpoint. The stream is read after that write.
    fn finish_snapshot(&mut self) -> Result<NextStep, RelayError> {
        if !self.delivery.ledger().is_empty() {
            return Ok(NextStep::Wait);
        }
        self.delivery.finish_snapshot();
        self.write_last_checkpoint();
        if self.writer.committed().copied.is_some() {
            return Ok(NextStep::Wait);
        }
        self.snapshot = None;
        self.status.enter(Phase::Streaming);
        tracing::info!("the initial snapshot is delivered; streaming");
        Ok(NextStep::Continue)
    }

    pub(super) fn on_page(&mut self, page: Option<Vec<StoredRow>>) {
        let Some(snapshot) = &mut self.snapshot else { return };
        match page {
            Some(rows) => snapshot.page.extend(rows),
            None => snapshot.exhausted = true,
        }
    }
}

/// The next page, or `None` after the last. Cancel-safe.
pub(super) async fn next_page(
    snapshot: &mut Option<SnapshotRows>,
) -> Result<Option<Vec<StoredRow>>, RelayError> {
    match snapshot {
        Some(snapshot) => snapshot.pages.next().await,
        None => std::future::pending().await,
    }
}
