//! One process of a relay: delivery, and around it what the event loop does.

use std::time::Instant;

use pg_replication::{EndLsn, Frame, Lsn, PgTime, TimelineHistory};

use super::memory_kafka::MemoryKafka;
use super::outbox_stream::{Transaction, relation};
use crate::config::Config;
use crate::delivery::{
    CheckpointSchedule, Delivery, InitialState, InputStop, OutboxTable, StreamForm, StreamInput,
};
use crate::error::RelayError;
use crate::kafka::own_records::OwnRecords;
use crate::postgres::checkpoint::{CheckpointUpdate, CommittedCheckpoint};
use crate::postgres::missing_rows::Xid8;
use crate::progress::lineage::Lineage;
use crate::routing::mapping::{Revision, RoutingHistory};
use crate::status::Status;
use crate::status::metrics::Metrics;
use crate::testing;
use crate::topics::kafka_time::KafkaTime;
use crate::topics::registry::TopicRegistry;

/// What all processes of a relay have in common.
pub(super) struct Relay {
    pub(super) config: Config,
    status: Status,
    metrics: Metrics,
}

pub(super) struct Process {
    pub(super) delivery: Delivery<MemoryKafka>,
    kafka: MemoryKafka,
    input: StreamInput,
    metrics: Metrics,
    /// The duplicates that earlier processes have counted.
    detected_before: u64,
    checkpoints: CheckpointSchedule,
    committed: CommittedCheckpoint,
    /// The checkpoint that is being written.
    written: Option<CheckpointUpdate>,
    /// The next transaction of the stream that was not received, and the next of its messages.
    pub(super) next: (usize, usize),
}

impl Relay {
    pub(super) fn new() -> Relay {
        let config = testing::config();
        Relay { status: Status::new(&config), metrics: Metrics::new().unwrap(), config }
    }

    /// Starts a process from the `stored` checkpoint, and stores the one that delivery begins with. PostgreSQL sends
    /// everything after `confirmed`. No row committed at or after `horizon` can be in Kafka.
    pub(super) fn start(
        &self,
        kafka: &MemoryKafka,
        stored: &mut Option<CheckpointUpdate>,
        confirmed: EndLsn,
        horizon: EndLsn,
        stream: &[Transaction],
    ) -> Process {
        let Relay { config, status, metrics } = self;
        let (checkpoint, mappings, offsets) = stored.take().map_or_else(Default::default, |stored| {
            (stored.confirmed, Some(stored.mappings), stored.offsets)
        });
        let mappings = RoutingHistory::at_start(mappings, config.routing_rule(), checkpoint, horizon);
        let first = CheckpointUpdate {
            confirmed: checkpoint,
            snapshot_cursor: None,
            mappings,
            revision: Revision::default(),
            offsets,
        };
        let lineage = Lineage::new(TimelineHistory::parse(1, "").unwrap(), horizon);
        let source = config.source.event_source();
        kafka.begin_session(OwnRecords { source, lineage: lineage.clone(), server_started: KafkaTime(0) });
        let initial = InitialState {
            confirmed: checkpoint,
            snapshot_cursor: None,
            refill: None,
            form: StreamForm::Binary,
            lineage,
            server_started: KafkaTime(0),
            mappings: first.mappings.clone(),
            topics: TopicRegistry::new(first.mappings.topics(), &first.offsets),
            table: OutboxTable { name: config.source.table.clone(), oid: None },
            refusal: None,
        };
        let mut delivery =
            Delivery::new(config, initial, kafka.clone(), status.clone(), metrics.clone()).unwrap();
        delivery.on_message(&relation(), Revision::default()).unwrap();
        let committed = first.committed(Xid8(0));
        let checkpoints = CheckpointSchedule::new(&committed, Instant::now());
        *stored = Some(first);
        let sent = stream.iter().take_while(|transaction| confirmed.covers(transaction.commit())).count();
        Process {
            delivery,
            kafka: kafka.clone(),
            input: StreamInput::new(status.clone()),
            metrics: metrics.clone(),
            detected_before: metrics.duplicates_detected_total.get(),
            checkpoints,
            committed,
            written: None,
            next: (sent, 0),
        }
    }
}

impl Process {
    /// Processes the blocked message and the next one of the stream, if it can.
    pub(super) fn read(&mut self, stream: &[Transaction], now: Instant) -> Result<(), RelayError> {
        let mut next = self.next;
        let received = stream.get(next.0).and_then(|transaction| transaction.message(next.1));
        let mut frame = received.map(|data| {
            let (wal_start, wal_end, clock) = (Lsn::default(), Lsn::default(), PgTime::default());
            Frame::XLogData { wal_start, wal_end, clock, data: data.into() }
        });
        let processed = self.process(now, || {
            if frame.is_some() {
                let is_last = stream[next.0].message(next.1 + 1).is_none();
                next = if is_last { (next.0 + 1, 0) } else { (next.0, next.1 + 1) };
            }
            Ok(frame.take())
        });
        self.next = next;
        processed
    }

    /// Processes a keepalive, if it can.
    pub(super) fn keepalive(&mut self, wal_end: EndLsn, now: Instant) -> Result<(), RelayError> {
        let mut frame = Some(Frame::Keepalive { wal_end, clock: PgTime::default(), reply_requested: false });
        self.process(now, || Ok(frame.take()))
    }

    /// One turn of the event loop.
    fn process(
        &mut self,
        now: Instant,
        next: impl FnMut() -> Result<Option<Frame>, RelayError>,
    ) -> Result<(), RelayError> {
        self.delivery.process_acks(now)?;
        let stopped = self.input.process(&mut self.delivery, self.committed.revision, next)?;
        if stopped == InputStop::Blocked {
            self.write_due_checkpoint(now);
        }
        Ok(())
    }

    /// Whether the next row has no destination.
    pub(super) fn is_poisoned(&self) -> bool {
        self.input.is_poisoned()
    }

    pub(super) fn process_acks(&mut self, now: Instant) -> Result<(), RelayError> {
        self.delivery.process_acks(now)
    }

    /// Passes one of the answers that Kafka has ready to delivery. Like every turn, this one begins with the
    /// acknowledgements, which tell delivery the time.
    pub(super) fn answer(&mut self, index: usize, now: Instant) -> Result<(), RelayError> {
        self.delivery.process_acks(now)?;
        let Some(result) = self.kafka.answer(index) else { return Ok(()) };
        self.delivery.on_query_result(result)
    }

    pub(super) fn tick(&mut self, now: Instant) -> Result<(), RelayError> {
        self.delivery.process_acks(now)?;
        self.delivery.on_tick(self.committed.revision, now)?;
        self.write_due_checkpoint(now);
        Ok(())
    }

    pub(super) fn write_due_checkpoint(&mut self, now: Instant) {
        let due = self.checkpoints.next(&mut self.delivery, now);
        self.written = due.or(self.written.take());
    }

    /// The last checkpoint, when everything is delivered.
    pub(super) fn write_last_checkpoint(&mut self, now: Instant) {
        let last = self.checkpoints.last(&mut self.delivery, now);
        self.written = last.or(self.written.take());
    }

    /// The checkpoint that is being written is committed.
    pub(super) fn commit_checkpoint(&mut self) -> Option<CheckpointUpdate> {
        let written = self.written.take()?;
        self.committed = written.committed(Xid8(0));
        Some(written)
    }

    /// The number of duplicates that the process has counted.
    pub(super) fn detected(&self) -> u64 {
        self.metrics.duplicates_detected_total.get() - self.detected_before
    }

    /// Whether everything in `stream` is in Kafka, and nothing is left to do.
    pub(super) fn is_done(&self, stream: &[Transaction]) -> bool {
        let is_read = self.next == (stream.len(), 0);
        is_read && self.delivery.ledger().is_empty() && self.kafka.is_idle()
    }
}
