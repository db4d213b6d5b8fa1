//! The event loop: the only task that owns the stream. It reads while the in-flight budget has room, processes
//! acknowledgements, requests checkpoints, and confirms to PostgreSQL the position of a committed checkpoint. It never
//! waits for Kafka: when the budget is used up it stops reading, while a timer keeps confirmations going.
//!
//! [`EventLoop::run`] lists what one turn does, and `next_event` what the loop waits for, in the order of priority.

mod drain;
mod read_pacing;
mod snapshot;
mod stats;

use std::time::{Duration, Instant};

use pg_replication::{EndLsn, Frame, Stream};
use prometheus::IntCounter;
use tokio::sync::{mpsc, watch};
use tokio::time::{Interval, MissedTickBehavior};

use self::read_pacing::ReadPacing;
use self::snapshot::{RowSource, next_page};
use crate::delivery::{CheckpointSchedule, Delivery, InputStop, LostRecords, Refusal, StreamInput};
use crate::error::{ErrorKind, RelayError};
use crate::failpoint::{self, Boundary};
use crate::kafka::producers::{AckQueue, Purge};
use crate::kafka::query::QueryResult;
use crate::postgres::checkpoint::Writer;
use crate::replay::ReplayRequest;
use crate::session::Context;
use crate::session::end::SessionEnd;
use crate::session::slot_guard::{Now, SlotGuard};
use crate::status::metrics::Metrics;
use crate::status::{Phase, Status};

/// Interval of checkpoints under load, and of status and metrics. After a crash the relay reads this much again, and
/// skips what is in Kafka.
const TICK: Duration = Duration::from_millis(100);

pub struct EventLoop {
    stream: Stream,
    delivery: Delivery,
    acks: std::sync::Arc<AckQueue>,
    query_results: mpsc::UnboundedReceiver<QueryResult>,
    writer: Writer,
    source: RowSource,
    /// A dead letter that waits to be replayed.
    replay: Option<ReplayRequest>,
    slot_guard: SlotGuard,
    /// Since when a shutdown is requested.
    draining_since: Option<Instant>,
    drain_within: Duration,
    ticks: Interval,
    status: Status,
    metrics: Metrics,
    input: StreamInput,
    checkpoints: CheckpointSchedule,
    pacing: ReadPacing,
    snapshot_rows: IntCounter,
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
        let snapshot_rows = delivery.snapshot_rows();
        let checkpoints = CheckpointSchedule::new(&writer.committed(), Instant::now());
        let mut ticks = tokio::time::interval(TICK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        EventLoop {
            stream,
            delivery,
            acks,
            query_results,
            writer,
            source: RowSource::Stream,
            replay: None,
            slot_guard,
            draining_since: None,
            drain_within: context.config.shutdown.drain(),
            ticks,
            status: context.status.clone(),
            metrics: context.metrics.clone(),
            input: StreamInput::new(context.status.clone()),
            checkpoints,
            pacing: ReadPacing::new(Instant::now()),
            snapshot_rows,
        }
    }

    /// Runs until an error, or until `shutdown` turns true and everything in flight is confirmed. Replays the dead
    /// letters that arrive through `replays`.
    pub async fn run(
        &mut self,
        shutdown: &mut watch::Receiver<bool>,
        replays: &mut mpsc::Receiver<ReplayRequest>,
    ) -> Result<SessionEnd, RelayError> {
        loop {
            // First, because after a long pause of this process nothing more may be sent.
            self.slot_guard.on_loop_turn(Now::read())?;
            self.delivery.process_acks(Instant::now())?;
            self.confirm()?;
            let step = self.process_input()?;
            self.process_replay()?;
            if let Some(ended) = self.end_drain().await? {
                return Ok(ended);
            }
            if step == NextStep::ReadStream {
                self.pacing.pause(&self.stream);
            }
            self.next_event(step, shutdown, replays).await?;
        }
    }

    /// Waits for one event and processes it. `biased` polls the branches in the order in which they stand, so of several
    /// events that are ready the first one here is processed. Dropping the other futures loses nothing.
    async fn next_event(
        &mut self,
        step: NextStep,
        shutdown: &mut watch::Receiver<bool>,
        replays: &mut mpsc::Receiver<ReplayRequest>,
    ) -> Result<(), RelayError> {
        let takes_replays =
            self.draining_since.is_none() && self.replay.is_none() && self.delivery.has_room();
        tokio::select! {
            biased;
            // 1. A shutdown request, once: it limits everything else.
            changed = shutdown.wait_for(|stop| *stop), if self.draining_since.is_none() => {
                if changed.is_ok() {
                    self.status.enter(Phase::Draining);
                    self.draining_since = Some(Instant::now());
                }
            }
            // 2. The tick: status, metrics and checkpoints are current under any load.
            _ = self.ticks.tick() => self.tick()?,
            // 3. Acknowledgements: each turn of the loop processes them all, which makes room for more rows.
            () = self.acks.arrived() => {}
            // 4. A checkpoint was committed: the next turn confirms it, and rows that waited for it can be sent.
            changed = self.writer.changed() => changed?,
            // 5. A query result: rows wait for it.
            Some(result) = self.query_results.recv() => self.delivery.on_query_result(result)?,
            // 6. A dead letter to replay. It counts in the in-flight budget.
            Some(request) = replays.recv(), if takes_replays => self.replay = Some(request),
            // 7. A page of the initial snapshot: new rows come after everything that deals with the rows already read.
            page = next_page(&mut self.source), if step == NextStep::ReadPage => self.source.on_page(page?),
            // 8. The stream. Polled even when nothing is to be read, because it sends the status updates that are due.
            read = poll_stream(&mut self.stream, step) => {
                self.pacing.on_read(read?, Instant::now());
                failpoint::pass(Boundary::AfterRead);
            }
            // 9. Always ready while there is more to process, so the last.
            () = std::future::ready(()), if step == NextStep::Continue => {}
        }
        Ok(())
    }

    /// The position of the last committed checkpoint.
    pub fn confirmed(&self) -> EndLsn {
        self.writer.committed().confirmed
    }

    /// Stops sending.
    pub fn purge(&self, purge: Purge) {
        self.delivery.purge(purge);
    }

    /// Adds to the error what is known about its cause: the broker's response and the row concerned.
    pub async fn explain(&mut self, error: RelayError) -> RelayError {
        let error = self.delivery.find_cause(error).await;
        self.delivery.locate_error(error, self.input.is_blocked())
    }

    /// The record that Kafka refused, if that ended the session.
    pub fn take_refusal(&mut self) -> Option<Refusal> {
        self.delivery.take_refusal()
    }

    /// The records that Kafka lost, if that ended the session.
    pub fn take_lost_records(&mut self) -> Option<LostRecords> {
        self.delivery.take_lost_records()
    }

    /// Returns what the session has to close: the stream, `Delivery` with the producers, and the writer with its
    /// connection.
    pub fn into_parts(self) -> (Stream, Delivery, Writer) {
        (self.stream, self.delivery, self.writer)
    }

    /// Processes the rows that have been read, at most a burst. While draining, only to the end of the open transaction.
    fn process_input(&mut self) -> Result<NextStep, RelayError> {
        let EventLoop { stream, delivery, source, input, status, .. } = self;
        if self.draining_since.is_some() && !delivery.in_transaction() {
            return Ok(NextStep::Wait);
        }
        let committed_revision = self.writer.committed().revision;
        let stopped = match source {
            RowSource::Snapshot(rows) => rows.process(delivery, input, committed_revision)?,
            RowSource::Stream => {
                input.process(delivery, committed_revision, || next_frame(stream, status))?
            }
        };
        if stopped == InputStop::Blocked {
            self.write_due_checkpoint();
        }
        Ok(match (stopped, &self.source) {
            (InputStop::Empty, RowSource::Stream) => NextStep::ReadStream,
            (InputStop::Empty, RowSource::Snapshot(rows)) if rows.is_exhausted() => self.finish_snapshot(),
            (InputStop::Empty, RowSource::Snapshot(_)) => NextStep::ReadPage,
            (InputStop::BurstEnded, _) => NextStep::Continue,
            (InputStop::NoRoom | InputStop::Blocked, _) => NextStep::Wait,
        })
    }

    /// Sends the dead letter that waits, if its partition is ready for it.
    fn process_replay(&mut self) -> Result<(), RelayError> {
        if let Some(request) = self.replay.take() {
            self.replay = self.delivery.on_replay_request(request, self.writer.committed().revision)?;
        }
        Ok(())
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

/// Reads from the stream if that is the next step, and otherwise only sends confirmations. Both are cancel-safe.
async fn poll_stream(stream: &mut Stream, step: NextStep) -> Result<usize, RelayError> {
    match step {
        NextStep::ReadStream => Ok(stream.fill().await?),
        NextStep::ReadPage | NextStep::Continue | NextStep::Wait => match stream.idle().await? {},
    }
}
