//! The initial snapshot, or a refill, in the event loop: rows from before the slot are read in pages and delivered before the stream
//! is read. They go the same way as stream messages, under the same in-flight budget, while the stream is open and
//! unread.

use std::collections::VecDeque;

use super::{EventLoop, NextStep};
use crate::delivery::{BURST, Delivery, Flow, InputStop, StreamInput};
use crate::error::RelayError;
use crate::failpoint::{self, Boundary};
use crate::postgres::backfill::{Pages, StoredRow};
use crate::routing::mapping::Revision;
use crate::status::Phase;

/// Where the loop takes rows from.
pub(super) enum RowSource {
    /// The initial snapshot, or the missing rows of a refill.
    Snapshot(SnapshotRows),
    Stream,
}

/// The rows from before the slot.
pub(super) struct SnapshotRows {
    pages: Pages,
    page: VecDeque<StoredRow>,
    all_pages_read: bool,
}

impl SnapshotRows {
    /// Delivers rows of the pages that have been read, at most a burst.
    pub(super) fn process(
        &mut self,
        delivery: &mut Delivery,
        input: &mut StreamInput,
        committed_revision: Revision,
    ) -> Result<InputStop, RelayError> {
        for _ in 0..BURST {
            let Some(row) = self.page.front() else { return Ok(InputStop::Empty) };
            if !delivery.has_room() {
                return Ok(InputStop::NoRoom);
            }
            let flow = delivery.on_snapshot_row(self.pages.layout(), row, committed_revision);
            if input.block_on_poison(flow)? == Flow::Blocked {
                return Ok(InputStop::Blocked);
            }
            self.page.pop_front();
        }
        Ok(InputStop::BurstEnded)
    }

    /// Whether all its rows have been read and processed.
    pub(super) fn is_exhausted(&self) -> bool {
        self.all_pages_read && self.page.is_empty()
    }
}

impl RowSource {
    /// A page arrived, or `None` after the last one.
    pub(super) fn on_page(&mut self, page: Option<Vec<StoredRow>>) {
        match (self, page) {
            (RowSource::Snapshot(rows), Some(page)) => rows.page.extend(page),
            (RowSource::Snapshot(rows), None) => rows.all_pages_read = true,
            (RowSource::Stream, _) => {}
        }
    }
}

impl EventLoop {
    /// Delivers the rows of `pages` before anything from the stream.
    pub fn with_snapshot(mut self, pages: Pages) -> EventLoop {
        let rows = SnapshotRows { pages, page: VecDeque::new(), all_pages_read: false };
        self.source = RowSource::Snapshot(rows);
        self
    }

    /// Once all snapshot rows are in Kafka, records that in the checkpoint. The stream is read after that write.
    pub(super) fn finish_snapshot(&mut self) -> NextStep {
        if !self.delivery.ledger().is_empty() {
            return NextStep::Wait;
        }
        if self.delivery.refill_cause().is_some() {
            failpoint::pass(Boundary::RefillAcknowledged);
        }
        self.delivery.finish_snapshot();
        self.write_last_checkpoint();
        if self.writer.committed().snapshot_cursor.is_some() {
            return NextStep::Wait;
        }
        self.source = RowSource::Stream;
        self.status.enter(Phase::Streaming);
        tracing::info!("the rows from before the slot are delivered; streaming");
        NextStep::Continue
    }
}

/// The next page, or `None` after the last. Cancel-safe.
pub(super) async fn next_page(source: &mut RowSource) -> Result<Option<Vec<StoredRow>>, RelayError> {
    match source {
        RowSource::Snapshot(rows) => rows.pages.next().await,
        RowSource::Stream => std::future::pending().await,
    }
}
