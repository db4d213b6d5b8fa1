//! When a checkpoint is due, and what it contains.

use std::time::{Duration, Instant};

use pg_replication::EndLsn;

use super::in_flight::InFlight;
use super::{Broker, Delivery};
use crate::postgres::checkpoint::{CheckpointUpdate, CommittedCheckpoint};
use crate::progress::snapshot_cursor::Seq;
use crate::routing::mapping::Revision;

/// Without events, a checkpoint is written only after this much new WAL. A checkpoint writes WAL itself, so a smaller
/// step would make each checkpoint cause the next.
const IDLE_BYTES: u64 = 1024 * 1024;
/// Without events, a checkpoint is written at least this often, if there is new WAL.
const IDLE_INTERVAL: Duration = Duration::from_secs(10);

/// The last checkpoint that was due.
#[derive(Debug)]
pub struct CheckpointSchedule {
    confirmed: EndLsn,
    snapshot_cursor: Option<Seq>,
    revision: Revision,
    at: Instant,
    /// The number of completed transactions at that time. If it has changed since, the progress is more than idle WAL.
    transactions: u64,
}

impl CheckpointSchedule {
    /// The schedule after the checkpoint that the session started with.
    pub fn new(committed: &CommittedCheckpoint, now: Instant) -> Self {
        CheckpointSchedule {
            confirmed: committed.confirmed,
            snapshot_cursor: committed.snapshot_cursor,
            revision: committed.revision,
            at: now,
            transactions: 0,
        }
    }

    /// The checkpoint that is due. A new routing revision is stored immediately, because rows wait for it.
    pub fn next<B: Broker>(&mut self, delivery: &mut Delivery<B>, now: Instant) -> Option<CheckpointUpdate> {
        let advanced = self.advanced(delivery);
        let has_events = delivery.counts().transactions != self.transactions;
        let waited = now.saturating_duration_since(self.at) >= IDLE_INTERVAL;
        self.update(delivery, now, advanced > 0 && (has_events || waited || advanced >= IDLE_BYTES))
    }

    /// The checkpoint of all progress, however small.
    pub fn last<B: Broker>(&mut self, delivery: &mut Delivery<B>, now: Instant) -> Option<CheckpointUpdate> {
        let advanced = self.advanced(delivery);
        self.update(delivery, now, advanced > 0)
    }

    /// The LSN of the last checkpoint that was due.
    pub fn confirmed(&self) -> EndLsn {
        self.confirmed
    }

    /// Whether the committed checkpoint contains all progress of the last one that was due.
    pub fn is_committed(&self, committed: &CommittedCheckpoint) -> bool {
        committed.confirmed >= self.confirmed && committed.snapshot_cursor == self.snapshot_cursor
    }

    fn advanced<B: Broker>(&self, delivery: &Delivery<B>) -> u64 {
        delivery.ledger().acknowledged().bytes_since(self.confirmed)
    }

    fn update<B: Broker>(
        &mut self,
        delivery: &mut Delivery<B>,
        now: Instant,
        is_due: bool,
    ) -> Option<CheckpointUpdate> {
        let confirmed = delivery.ledger().acknowledged();
        let routing = &mut delivery.dispatch.routing;
        routing.on_confirmed(confirmed);
        let revision = routing.revision();
        delivery.in_flight.progress.advance_snapshot_cursor();
        let snapshot_cursor = delivery.in_flight.progress.snapshot_cursor();
        if !is_due && revision == self.revision && snapshot_cursor == self.snapshot_cursor {
            return None;
        }
        let transactions = delivery.counts().transactions;
        *self = CheckpointSchedule { confirmed, snapshot_cursor, revision, at: now, transactions };
        let InFlight { topics, progress, .. } = &mut delivery.in_flight;
        let mappings = delivery.dispatch.routing.history(topics);
        let offsets = topics.advance_scan_starts(progress.ledger.first_unacknowledged(), confirmed);
        Some(CheckpointUpdate { confirmed, snapshot_cursor, mappings, revision, offsets })
    }
}
