//! Detects another outbox that writes to the same partitions with the same `ce_source`: two databases of the same name,
//! or clones of one server.
//!
//! Its records look like this outbox's records, so Kafka no longer shows which rows were delivered. Delivery stops as
//! soon as one record is known to come from another outbox, before a row is treated as delivered because of such a
//! record.

use std::time::Instant;

use outbox::Position;
use pg_replication::EndLsn;

use crate::error::{ErrorKind, RelayError};
use crate::kafka::scan::Stray;
use crate::progress::fingerprints::{Fingerprint, RecentRows, WrittenBy};
use crate::progress::lineage::commit_lsn;
use crate::status::Status;
use crate::topics::partitions::PartitionId;
use crate::topics::registry::{PartitionName, TopicRegistry};

/// Maximum number of records that wait until the stream has reached their position. Normally there are none.
const MAX_WAITING: usize = 1024;

/// Strays: records with this outbox's `ce_source` that this process has not sent, between records that it has sent.
/// They wait here until the stream shows which outbox they belong to.
#[derive(Debug, Default)]
pub(super) struct Strays {
    waiting: Vec<(PartitionId, Stray, Instant)>,
    /// The position up to which the stream has been read.
    passed: EndLsn,
    recent: RecentRows,
}

impl Strays {
    /// The stream has been read up to `end`.
    pub(super) fn on_passed(&mut self, end: EndLsn) {
        self.passed = self.passed.max(end);
    }

    /// A row was read.
    pub(super) fn on_row(&mut self, position: Position, fingerprint: Fingerprint) {
        self.recent.on_row(position, fingerprint);
    }

    /// Strays were found between the records that this process has sent.
    pub(super) fn add(&mut self, partition: PartitionId, strays: Vec<Stray>) {
        let now = Instant::now();
        self.waiting.extend(strays.into_iter().map(|stray| (partition, stray, now)));
        self.waiting.truncate(MAX_WAITING);
    }

    /// Decides which outbox the strays belong to. A stray whose row is in this database was sent by another relay
    /// process of this outbox, so the event is in Kafka twice. Any other stray comes from another outbox. Returns the
    /// number of duplicates.
    pub(super) fn check(
        &mut self,
        status: &Status,
        topics: &TopicRegistry,
        source: &str,
    ) -> Result<u64, RelayError> {
        let mut duplicates = 0;
        for (partition, stray, since) in std::mem::take(&mut self.waiting) {
            let Stray { position, fingerprint } = stray;
            let passed = self.passed.covers(commit_lsn(position));
            match self.recent.writer_of(position, fingerprint, passed) {
                WrittenBy::ThisOutbox | WrittenBy::Unknown => duplicates += 1,
                WrittenBy::NotReached if !is_beyond_server(status, position, since) => {
                    self.waiting.push((partition, stray, since));
                }
                WrittenBy::AnotherOutbox | WrittenBy::NotReached => {
                    return Err(stray_error(topics.name_of(partition), position, source));
                }
            }
        }
        Ok(duplicates)
    }
}

/// Whether the server's WAL ended before `position` when it was queried after `since`.
fn is_beyond_server(status: &Status, position: Position, since: Instant) -> bool {
    let end = status.server_end(since);
    end.is_some_and(|end| !end.covers(commit_lsn(position)))
}

fn stray_error(name: PartitionName<'_>, position: Position, source: &str) -> RelayError {
    let what = format!(
        "{name} received an event of source {source} at {position}, but this database has no such row: \
         another outbox writes to the topic under the same source name"
    );
    RelayError::new(ErrorKind::EventSourceShared, what)
}

/// A partition has a record with this outbox's `ce_source`, on the server's timeline, beyond the end of the server's
/// WAL.
pub(super) fn record_ahead_error(
    name: PartitionName<'_>,
    position: Position,
    by_another_server: bool,
    source: &str,
) -> RelayError {
    let record = format!("{name} has an event of source {source} at {position}");
    if by_another_server {
        let what = format!(
            "{record}, which is beyond the end of the server's WAL, and was written while this server was running: \
             another outbox writes to the topic under the same source name"
        );
        return RelayError::new(ErrorKind::EventSourceShared, what);
    }
    let what = format!(
        "{record}, which is on the server's timeline but beyond the end of its WAL: the database was restored to an \
         earlier state without a new timeline, or another outbox writes to the topic under the same source name"
    );
    RelayError::new(ErrorKind::HistoryChanged, what)
}
