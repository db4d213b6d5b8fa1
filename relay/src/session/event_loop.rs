//! The event loop: the only task that owns the stream. It reads while the in-flight budget has room, processes
//! acknowledgements, requests checkpoints, and confirms to PostgreSQL the position of a committed checkpoint. It never
//! waits for Kafka: when the budget is used up it stops reading, while a timer keeps confirmations going.

mod read_pacing;
mod snapshot;

use std::time::{Duration, Instant};

use pg_replication::{EndLsn, Frame, Stream};
use prometheus::IntCounter;
use tokio::sync::{mpsc, watch};
use tokio::time::MissedTickBehavior;

use self::read_pacing::ReadPacing;
use self::snapshot::{SnapshotRows, next_page};
use crate::dead_letters::replay::ReplayRequest;
use crate::delivery::{
    CAUSE_START, CheckpointSchedule, Delivery, InputStop, LostRecords, Refusal, StreamInput,
};
use crate::error::{ErrorKind, RelayError};
use crate::failpoint::{self, Boundary};
use crate::kafka::producers::AckQueue;
use crate::kafka::query::QueryResult;
use crate::postgres::checkpoint::Writer;
use crate::session::Context;
use crate::session::end::SessionEnd;
use crate::session::slot_guard::{Now, SlotGuard};
use crate::status::metrics::Metrics;
use crate::status::{Phase, SessionStats, StallReason, Status};

/// Interval of checkpoints under load, and of status and metrics. After a crash the relay reads this much again, and
/// skips what is in Kafka.
const TICK: Duration = Duration::from_millis(100);

/// See the module documentation.
pub struct EventLoop {
    stream: Stream,
    delivery: Delivery,
    acks: std::sync::Arc<AckQueue>,
    query_results: mpsc::UnboundedReceiver<QueryResult>,
    writer: Writer,
    /// The initial snapshot, which is delivered before the stream is read.
    snapshot: Option<SnapshotRows>,
    /// A dead letter that waits to be replayed.
    replay: Option<ReplayRequest>,
    slot_guard: SlotGuard,
    drain_within: Duration,
    status: Status,
    metrics: Metrics,
    input: StreamInput,
    checkpoints: CheckpointSchedule,
    pacing: ReadPacing,
    copied_rows: IntCounter,
}

/// What the loop does next, besides timers, acknowledgements and query results.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum NextStep {
    /// All buffered messages are processed: read from the stream.
    ReadStream,
    /// The initial snapshot needs its next page.
    ReadPage,
    /// There is more to process; a burst has ended.
    Continue,
    /// Nothing can be processed before something else happens.
    Wait,
}

impl EventLoop {
    /// The loop for a stream that has just been opened.
    pub fn new(
        stream: Stream,
        delivery: Delivery,
        acks: std::sync::Arc<AckQueue>,
        query_results: mpsc::UnboundedReceiver<QueryResult>,
        writer: Writer,
        slot_guard: SlotGuard,
        context: &Context,
    ) -> EventLoop {
        let copied_rows = context.metrics.refilled_rows_total.with_label_values(&[CAUSE_START]);
        let checkpoints = CheckpointSchedule::new(&writer.committed(), &delivery, Instant::now());
        EventLoop {
            stream,
            delivery,
            acks,
            query_results,
            writer,
            snapshot: None,
            replay: None,
            slot_guard,
            drain_within: context.config.shutdown.drain(),
            status: context.status.clone(),
            metrics: context.metrics.clone(),
            input: StreamInput::new(context.status.clone()),
            checkpoints,
            pacing: ReadPacing::new(Instant::now()),
            copied_rows,
        }
    }

    /// Runs until an error, or until `shutdown` turns true and everything in flight is confirmed. Replays the dead
    /// letters that arrive through `replays`.
    pub async fn run(
        &mut self,
        shutdown: &mut watch::Receiver<bool>,
        replays: &mut mpsc::Receiver<ReplayRequest>,
    ) -> Result<SessionEnd, RelayError> {
        let mut ticks = tokio::time::interval(TICK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut draining: Option<Instant> = None;
        loop {
            // First in the loop: after a long pause of this process nothing more may be sent.
            self.slot_guard.on_loop_turn(Now::read())?;
            self.delivery.process_acks(Instant::now())?;
            self.confirm()?;
            let may_read = draining.is_none() || self.delivery.in_transaction();
            let step = match self.snapshot {
                _ if !may_read => NextStep::Wait,
                Some(_) => self.process_snapshot()?,
                None => self.process_buffered()?,
            };
            if let Some(request) = self.replay.take() {
                self.replay = self.delivery.on_replay_request(request, self.writer.committed().revision)?;
            }
            if let Some(since) = draining
                && let Some(ended) = self.drained(since).await?
            {
                return Ok(ended);
            }
            if step == NextStep::ReadStream {
                self.pacing.pause(&self.stream);
            }
            tokio::select! {
                biased;
                changed = shutdown.wait_for(|stop| *stop), if draining.is_none() => {
                    if changed.is_ok() {
                        self.status.enter(Phase::Draining);
                        draining = Some(Instant::now());
                    }
                }
                _ = ticks.tick() => self.tick()?,
                () = self.acks.arrived() => {}
                changed = self.writer.changed() => changed?,
                Some(result) = self.query_results.recv() => self.delivery.on_query_result(result)?,
                Some(request) = replays.recv(), if draining.is_none() && self.accepts_replays() => {
                    self.replay = Some(request);
                }
                page = next_page(&mut self.snapshot), if step == NextStep::ReadPage => self.on_page(page?),
                read = fill_or_idle(&mut self.stream, step == NextStep::ReadStream) => {
                    self.pacing.on_read(read?, Instant::now());
                    failpoint::pass(Boundary::AfterRead);
                }
                // Last, so that a status update that is due is sent first.
                () = std::future::ready(()), if step == NextStep::Continue => {}
            }
        }
    }

    /// The position of the last committed checkpoint.
    pub fn confirmed(&self) -> EndLsn {
        self.writer.committed().confirmed
    }

    /// Stops sending: see [`Delivery::purge`].
    pub fn purge(&self, all: bool) {
        self.delivery.purge(all);
    }

    /// Adds to the error what is known about its cause: the broker's response and the row concerned.
    pub async fn explain(&mut self, error: RelayError) -> RelayError {
        let error = self.delivery.find_cause(error).await;
        self.delivery.on_session_error(error, self.input.is_blocked())
    }

    /// The record that Kafka refused, if that ended the session.
    pub fn refusal(&mut self) -> Option<Refusal> {
        self.delivery.take_refusal()
    }

    /// The records that Kafka lost, if that ended the session.
    pub fn lost(&mut self) -> Option<LostRecords> {
        self.delivery.take_lost()
    }

    /// Returns what the session has to close: the stream, `Delivery` with the producers, and the writer with its
    /// connection.
    pub fn into_parts(self) -> (Stream, Delivery, Writer) {
        (self.stream, self.delivery, self.writer)
    }

    /// Processes buffered messages, at most a burst.
    fn process_buffered(&mut self) -> Result<NextStep, RelayError> {
        let EventLoop { stream, status, delivery, input, .. } = self;
        let committed_revision = self.writer.committed().revision;
        let stopped = input.process(delivery, committed_revision, || next_frame(stream, status))?;
        if stopped == InputStop::Blocked {
            self.write_due_checkpoint();
        }
        Ok(match stopped {
            InputStop::Empty => NextStep::ReadStream,
            InputStop::BurstEnded => NextStep::Continue,
            InputStop::NoRoom | InputStop::Blocked => NextStep::Wait,
        })
    }

    /// A replayed dead letter counts in the in-flight budget.
    fn accepts_replays(&self) -> bool {
        self.replay.is_none() && self.delivery.has_room()
    }

    /// Confirms the committed checkpoint's position to PostgreSQL, but nothing beyond the received position: a stream
    /// that starts before the checkpoint reaches it later.
    fn confirm(&mut self) -> Result<(), RelayError> {
        let received = EndLsn::new(self.stream.received());
        Ok(self.stream.confirm(self.writer.committed().confirmed.min(received))?)
    }

    /// Writes a checkpoint if one is due.
    fn write_due_checkpoint(&mut self) {
        if let Some(due) = self.checkpoints.next(&mut self.delivery, Instant::now()) {
            self.writer.write(due);
        }
    }

    /// Writes a checkpoint of all progress.
    fn write_last_checkpoint(&mut self) {
        if let Some(last) = self.checkpoints.last(&mut self.delivery, Instant::now()) {
            self.writer.write(last);
        }
    }

    fn tick(&mut self) -> Result<(), RelayError> {
        self.delivery.on_tick(self.writer.committed().revision, Instant::now())?;
        let reading = self.stall_reason().is_none();
        self.status.with_slot_seen(|seen| self.slot_guard.check(Instant::now(), reading, seen))?;
        if self.stream.confirmed_sent() == self.checkpoints.confirmed() {
            failpoint::pass(Boundary::StatusSent);
        }
        self.write_due_checkpoint();
        self.report();
        if self.status.unresolved_error().is_some_and(|at| self.delivery.is_past(at)) {
            self.status.on_error_resolved();
        }
        Ok(())
    }

    /// Why the stream is not read at the moment.
    fn stall_reason(&self) -> Option<StallReason> {
        if self.input.is_poisoned() {
            Some(StallReason::PoisonRow)
        } else if self.snapshot.is_some() {
            Some(StallReason::Copy)
        } else if !self.delivery.has_room() {
            Some(StallReason::Budget)
        } else if self.input.is_blocked() {
            Some(if self.delivery.waits_for_topic() { StallReason::Topic } else { StallReason::Search })
        } else {
            None
        }
    }

    fn report(&self) {
        let (in_flight_events, in_flight_bytes) = self.delivery.in_flight();
        let ledger = self.delivery.ledger();
        let counts = self.delivery.counts();
        let numbers = SessionStats {
            received: EndLsn::new(self.stream.received()),
            received_events: counts.received,
            sent_events: counts.sent,
            suppressed_events: counts.suppressed,
            acknowledged: ledger.confirmed(),
            acknowledged_events: counts.acknowledged,
            confirmed: self.stream.confirmed_sent(),
            in_flight_events,
            in_flight_bytes,
            oldest_commit: ledger.oldest_commit_time(),
            copied_rows: (self.copied_rows.get() > 0 || self.snapshot.is_some())
                .then(|| self.copied_rows.get()),
            hold_up: self.stall_reason(),
            writing_since: self.writer.waits_since(),
        };
        self.status.set_session_stats(numbers);
        let metrics = &self.metrics;
        metrics.in_flight_events.set(gauge(in_flight_events as u64));
        metrics.in_flight_bytes.set(gauge(in_flight_bytes as u64));
        metrics.received_lsn.set(gauge(numbers.received.lsn().as_u64()));
        metrics.acknowledged_lsn.set(gauge(numbers.acknowledged.lsn().as_u64()));
        metrics.confirmed_lsn.set(gauge(numbers.confirmed.lsn().as_u64()));
        let kafka = self.delivery.kafka_answers();
        self.status.set_kafka_answers(kafka, self.acks.last_connection_error());
        metrics.connected.with_label_values(&["kafka"]).set(i64::from(kafka == Some(true)));
    }

    /// How the relay ends, once a graceful shutdown is complete or its deadline is reached.
    async fn drained(&mut self, since: Instant) -> Result<Option<SessionEnd>, RelayError> {
        failpoint::pass(Boundary::InDrain);
        let late = since.elapsed() > self.drain_within;
        // An open transaction is read to its end, unless it is blocked by a row that needs manual action.
        let stuck = self.input.is_poisoned() || self.delivery.waits_for_topic();
        let settled = self.delivery.in_flight().0 == 0 && (stuck || !self.delivery.in_transaction());
        if !settled && !late {
            return Ok(None);
        }
        self.write_last_checkpoint();
        while !self.checkpoints.is_committed(&self.writer.committed()) {
            let left = self.drain_within.saturating_sub(since.elapsed()).max(TICK);
            match tokio::time::timeout(left, self.writer.changed()).await {
                Ok(changed) => changed?,
                Err(_) => return Ok(Some(SessionEnd::Late)),
            }
        }
        self.confirm()?;
        Ok(Some(match (settled, stuck) {
            (true, true) => SessionEnd::Blocked,
            (true, false) if self.delivery.ledger().is_empty() => SessionEnd::Drained,
            _ => SessionEnd::Late,
        }))
    }
}

/// The next message, unless a notice before it ends the session.
fn next_frame(stream: &mut Stream, status: &Status) -> Result<Option<Frame>, RelayError> {
    let frame = stream.next_frame()?;
    // PostgreSQL 18 and newer skip the rows of a publication that does not exist, with only a warning. Later messages
    // must not move the position past those rows, so the warning ends the session.
    for notice in stream.take_notices() {
        if notice.skipped_publication() {
            return Err(RelayError::new(ErrorKind::PublicationMissing, notice.to_string()));
        }
        if notice.waits_for_standby() {
            status.set_awaited_standby(&notice.to_string());
        } else {
            tracing::warn!("PostgreSQL sent a notice: {notice}");
        }
    }
    Ok(frame)
}

/// Reads from the stream, or only sends confirmations. Both are cancel-safe.
async fn fill_or_idle(stream: &mut Stream, read: bool) -> Result<usize, RelayError> {
    if read { Ok(stream.fill().await?) } else { match stream.idle().await? {} }
}

fn gauge(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}
