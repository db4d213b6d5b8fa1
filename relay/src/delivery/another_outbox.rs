//! Another outbox writes to our partitions under our `ce_source`: two databases of one name, or the clones of one server.
//!
//! Its records look like ours, and what Kafka holds of ours can no longer be told from it. So delivery stops as soon as one
//! record is known to be another outbox's, before a row of ours is taken for delivered because of it.

use std::time::Instant;

use outbox::Position;
use pg_replication::{CommitLsn, EndLsn, Lsn};

use super::Delivery;
use crate::error::{ErrorKind, RelayError};
use crate::kafka::scan::Stray;
use crate::progress::fingerprints::Writer;
use crate::topics::partitions::PartitionId;

/// Records that wait until the stream has reached their position; there should be none.
const MAX_WAITING: usize = 1024;

/// Records under our name, in gaps between records of ours, of which the stream has not yet shown whose they are.
#[derive(Debug, Default)]
pub(super) struct Strays {
    waiting: Vec<(PartitionId, Stray, Instant)>,
    /// How far the stream has been read.
    passed: EndLsn,
}

impl Strays {
    /// The stream has brought everything before `end`.
    pub(super) fn on_passed(&mut self, end: EndLsn) {
        self.passed = self.passed.max(end);
    }
}

impl Delivery {
    /// Records of ours were found between those that this process has sent.
    pub(super) fn on_strays(
        &mut self,
        partition: PartitionId,
        strays: Vec<Stray>,
        more: u64,
    ) -> Result<(), RelayError> {
        self.count_duplicates(more);
        let now = Instant::now();
        self.strays.waiting.extend(strays.into_iter().map(|stray| (partition, stray, now)));
        self.strays.waiting.truncate(MAX_WAITING);
        self.judge_strays()
    }

    /// Another relay process of this outbox sends rows of this database: events that are there twice. Anything else is
    /// another outbox's.
    pub(super) fn judge_strays(&mut self) -> Result<(), RelayError> {
        let mut twice = 0;
        for (partition, stray, since) in std::mem::take(&mut self.strays.waiting) {
            let Stray { position, fingerprint } = stray;
            let passed = self.strays.passed.covers(CommitLsn::new(Lsn::from(position.commit_lsn)));
            match self.recent.writer_of(position, fingerprint, passed) {
                Writer::ThisOutbox | Writer::Unknown => twice += 1,
                Writer::AnotherOutbox => return Err(self.stray(partition, position)),
                Writer::NotReached if self.is_beyond_server(position, since) => {
                    return Err(self.stray(partition, position));
                }
                Writer::NotReached => self.strays.waiting.push((partition, stray, since)),
            }
        }
        self.count_duplicates(twice);
        Ok(())
    }

    /// Whether the server's log ended before `position` when it was looked at after `since`.
    fn is_beyond_server(&self, position: Position, since: Instant) -> bool {
        let end = self.status.server_end(since);
        end.is_some_and(|end| !end.covers(CommitLsn::new(Lsn::from(position.commit_lsn))))
    }

    fn stray(&self, partition: PartitionId, position: Position) -> RelayError {
        let (topic, number) = self.partitions.name_of(partition).unwrap_or_default();
        let source = &self.encoder.source;
        let what = format!(
            "{topic}/{number} got an event of source {source} at {position}, and this database has no such row: another \
             outbox writes to the topic under this name"
        );
        RelayError::new(ErrorKind::EventSourceShared, what)
    }

    /// A partition holds events that come after a row, and not the row.
    pub(super) fn not_ours(&self, partition: PartitionId, position: Position) -> RelayError {
        let (topic, number) = self.partitions.name_of(partition).unwrap_or_default();
        let source = &self.encoder.source;
        let what = format!(
            "{topic}/{number} holds events of source {source} behind {position}, but not the event of that position: another \
             outbox writes to the topic under this name, or Kafka has lost records"
        );
        RelayError::new(ErrorKind::EventSourceShared, what)
    }

    pub(super) fn ahead(
        &self,
        partition: PartitionId,
        position: Position,
        by_another_server: bool,
    ) -> RelayError {
        let (topic, number) = self.partitions.name_of(partition).unwrap_or_default();
        ahead(topic, number, position, by_another_server, &self.encoder.source)
    }
}

/// A partition holds a record under our name, on our timeline, beyond the end of the server's log.
pub(super) fn ahead(
    topic: &str,
    partition: i32,
    position: Position,
    by_another_server: bool,
    source: &str,
) -> RelayError {
    let holds = format!("{topic}/{partition} holds an event of source {source} at {position}");
    if by_another_server {
        let what = format!(
            "{holds}, which is beyond the end of the server's log, and was written while this server was running: another \
             outbox writes to the topic under this name"
        );
        return RelayError::new(ErrorKind::EventSourceShared, what);
    }
    let what = format!(
        "{holds}: Kafka has events of the server's own timeline beyond the end of its log: the database was put back to an \
         earlier state without a new timeline, or another outbox writes to the topic under this name"
    );
    RelayError::new(ErrorKind::HistoryChanged, what)
}
