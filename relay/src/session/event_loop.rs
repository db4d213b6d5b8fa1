//! The pump: the one task that owns the stream. It reads while there is room, takes in acknowledgements, has
//! checkpoints written, and confirms to Postgres what a committed checkpoint says. It never waits for Kafka: when
//! the budget is used up it stops reading, and confirmations go on by their own timer.

mod read_pacing;
mod snapshot;

use std::time::{Duration, Instant};

use bytes::Bytes;
use pg_replication::{EndLsn, Frame, Stream};
use prometheus::IntCounter;
use tokio::sync::{mpsc, watch};
use tokio::time::MissedTickBehavior;

use self::read_pacing::ReadPacing;
use self::snapshot::{SnapshotRows, SnapshotStep, next_page};
use crate::dead_letters::replay::ReplayRequest;
use crate::delivery::{CAUSE_START, Delivery, Flow, LostRecords, Refusal};
use crate::error::{ErrorKind, RelayError};
use crate::failpoint::{self, Boundary};
use crate::kafka::producers::AckQueue;
use crate::kafka::queries::QueryResult;
use crate::postgres::checkpoint::{CheckpointUpdate, CommittedCheckpoint, Writer};
use crate::session::Context;
use crate::session::end::SessionEnd;
use crate::session::slot_guard::{Now, SlotGuard};
use crate::status::metrics::Metrics;
use crate::status::{Phase, SessionStats, StallReason, Status};

/// Pace of checkpoints under load, and of status and metrics: a crash replays this much, and drops it again.
const TICK: Duration = Duration::from_millis(100);
/// Without events, checkpoints follow the server's WAL this closely: each writes WAL itself, which would otherwise
/// be the next reason to write one.
const IDLE_CHECKPOINT_BYTES: u64 = 1024 * 1024;
/// ... or this often.
const IDLE_CHECKPOINT_EVERY: Duration = Duration::from_secs(10);
/// Messages dealt with before timers and acknowledgements get a turn.
const BURST: usize = 512;

/// See the module's text.
pub struct EventLoop {
    stream: Stream,
    delivery: Delivery,
    acks: std::sync::Arc<AckQueue>,
    answers: mpsc::UnboundedReceiver<QueryResult>,
    writer: Writer,
    /// What has to be delivered before the stream is read.
    copy: Option<SnapshotRows>,
    /// A dead letter that waits to be sent again.
    replay: Option<ReplayRequest>,
    tenure: SlotGuard,
    drain_within: Duration,
    status: Status,
    metrics: Metrics,
    /// A message that could not go on.
    parked: Option<Bytes>,
    /// The parked message is a row that can never be delivered.
    poisoned: bool,
    requested: LastRequested,
    gulps: ReadPacing,
    copied_rows: IntCounter,
}

/// The last checkpoint asked for.
struct LastRequested {
    confirmed: EndLsn,
    copied: Option<i64>,
    /// Of the mapping.
    revision: u64,
    at: Instant,
    /// `transactions_total` at that time: whether there was more than idle progress since.
    transactions: u64,
}

impl EventLoop {
    /// A pump for a stream that has just been opened.
    pub fn new(
        stream: Stream,
        delivery: Delivery,
        acks: std::sync::Arc<AckQueue>,
        answers: mpsc::UnboundedReceiver<QueryResult>,
        writer: Writer,
        tenure: SlotGuard,
        context: &Context,
    ) -> EventLoop {
        let committed = writer.committed();
        let copied_rows = context.metrics.refilled_rows_total.with_label_values(&[CAUSE_START]);
        let requested = LastRequested {
            confirmed: committed.confirmed,
            copied: committed.copied,
            revision: committed.revision,
            at: Instant::now(),
            transactions: context.metrics.transactions_total.get(),
        };
        EventLoop {
            stream,
            delivery,
            acks,
            answers,
            writer,
            copy: None,
            replay: None,
            tenure,
            drain_within: context.config.shutdown.drain(),
            status: context.status.clone(),
            metrics: context.metrics.clone(),
            parked: None,
            poisoned: false,
            requested,
            gulps: ReadPacing::default(),
            copied_rows,
        }
    }

    /// Runs until a trouble, or until `shutdown` turns true and everything under way is finished. Dead letters that
    /// come in through `replays` are sent again.
    pub async fn run(
        &mut self,
        shutdown: &mut watch::Receiver<bool>,
        replays: &mut mpsc::Receiver<ReplayRequest>,
    ) -> Result<SessionEnd, RelayError> {
        let mut ticks = tokio::time::interval(TICK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut draining: Option<Instant> = None;
        loop {
            // Before anything else: after a pause nothing more may be sent.
            self.tenure.on_loop_turn(Now::read())?;
            self.delivery.process_acks()?;
            self.confirm()?;
            let may_read = draining.is_none() || self.delivery.in_transaction();
            let (wants_input, wants_page, goes_on) = match self.copy {
                Some(_) if may_read => {
                    let step = self.process_snapshot()?;
                    (false, step == SnapshotStep::NeedsPage, step == SnapshotStep::HasMore)
                }
                _ => (self.copy.is_none() && may_read && self.process_buffered()?, false, false),
            };
            if let Some(candidate) = self.replay.take() {
                self.replay = self.delivery.on_replay_request(candidate, self.writer.committed().revision)?;
            }
            if let Some(since) = draining
                && let Some(ended) = self.drained(since).await?
            {
                return Ok(ended);
            }
            if wants_input {
                self.gulps.pause();
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
                Some(answer) = self.answers.recv() => self.delivery.on_query_result(answer)?,
                Some(candidate) = replays.recv(), if draining.is_none() && self.takes_replays() => {
                    self.replay = Some(candidate);
                }
                () = std::future::ready(()), if goes_on => {}
                page = next_page(&mut self.copy), if wants_page => self.on_page(page?),
                filled = fill_or_idle(&mut self.stream, wants_input) => {
                    filled?;
                    failpoint::pass(Boundary::AfterRead);
                    self.gulps.on_read(self.stream.last_read_len());
                }
            }
        }
    }

    /// What the last committed checkpoint says.
    pub fn confirmed(&self) -> EndLsn {
        self.writer.committed().confirmed
    }

    /// Sends nothing more: see [`Delivery::purge`].
    pub fn give_up(&self, all: bool) {
        self.delivery.purge(all);
    }

    /// Says what ended the session as far as it can be known: the answer of a broker behind it, and the row it is about.
    pub async fn explain(&mut self, error: RelayError) -> RelayError {
        let error = self.delivery.find_cause(error).await;
        self.delivery.on_session_error(error, self.parked.is_some())
    }

    /// A record that Kafka refused, if that ended the session.
    pub fn refusal(&mut self) -> Option<Refusal> {
        self.delivery.take_refusal()
    }

    /// What ended the session, if Kafka lost records.
    pub fn lost(&mut self) -> Option<LostRecords> {
        self.delivery.take_lost()
    }

    /// Gives back what the session has to end: the stream, the producers within `Delivery`, and the writer with its connection.
    pub fn into_parts(self) -> (Stream, Delivery, Writer) {
        (self.stream, self.delivery, self.writer)
    }

    /// Deals with what is buffered, a burst at most. Answers whether it is time to read more.
    fn process_buffered(&mut self) -> Result<bool, RelayError> {
        for _ in 0..BURST {
            if !self.delivery.has_room() {
                return Ok(false);
            }
            let data = match self.parked.take() {
                Some(data) => data,
                None => match self.next_frame()? {
                    None => return Ok(true),
                    Some(Frame::Keepalive { wal_end, .. }) => {
                        self.delivery.on_keepalive(wal_end);
                        continue;
                    }
                    Some(Frame::XLogData { data, .. }) => data,
                },
            };
            let flow = match self.delivery.on_message(&data, self.writer.committed().revision) {
                Err(error) if error.kind == ErrorKind::PoisonRow => self.on_poison(error),
                flow => flow?,
            };
            if flow == Flow::Next {
                self.on_poison_cleared();
            }
            if flow == Flow::Blocked {
                self.parked = Some(data);
                self.request_checkpoint(false);
                return Ok(false);
            }
        }
        // More is buffered: `fill` returns at once, after the timers had their turn.
        Ok(true)
    }

    /// A row that can never be delivered stops what is behind it, and nothing else: what was sent before it is
    /// acknowledged, stored and confirmed as ever.
    fn on_poison(&mut self, error: RelayError) -> Flow {
        if !std::mem::replace(&mut self.poisoned, true) {
            tracing::error!(reason = error.kind.name(), "delivery stopped: {error}");
            self.status.set_poison(Some(error));
        }
        Flow::Blocked
    }

    fn on_poison_cleared(&mut self) {
        if std::mem::take(&mut self.poisoned) {
            tracing::info!("the row that stopped delivery can be delivered now");
            self.status.set_poison(None);
        }
    }

    /// A dead letter that is sent again counts in the budget.
    fn takes_replays(&self) -> bool {
        self.replay.is_none() && self.delivery.has_room()
    }

    /// Tells Postgres what the committed checkpoint says. A stream replayed from before it gets there later.
    fn confirm(&mut self) -> Result<(), RelayError> {
        let received = EndLsn::new(self.stream.received());
        Ok(self.stream.confirm(self.writer.committed().confirmed.min(received))?)
    }

    /// Asks for a checkpoint when there is something new to store. A mapping is stored at once, because rows wait.
    fn request_checkpoint(&mut self, force: bool) {
        let confirmed = self.delivery.ledger().confirmed();
        let revision = self.delivery.mapper().revision();
        let transactions = self.metrics.transactions_total.get();
        let advanced = confirmed.lsn().as_u64().saturating_sub(self.requested.confirmed.lsn().as_u64());
        let idle_due =
            advanced >= IDLE_CHECKPOINT_BYTES || self.requested.at.elapsed() >= IDLE_CHECKPOINT_EVERY;
        let due = advanced > 0 && (force || transactions != self.requested.transactions || idle_due);
        let copied = self.delivery.snapshot_cursor();
        if !due && revision == self.requested.revision && copied == self.requested.copied {
            return;
        }
        self.requested = LastRequested { confirmed, copied, revision, at: Instant::now(), transactions };
        let first_unconfirmed = self.delivery.ledger().first_unconfirmed();
        let mappings = self.delivery.mapper().stored();
        let offsets = self.delivery.partitions().take_offsets(first_unconfirmed, confirmed);
        self.writer.write(CheckpointUpdate { confirmed, copied, mappings, revision, offsets });
    }

    fn tick(&mut self) -> Result<(), RelayError> {
        self.delivery.on_tick(self.writer.committed().revision)?;
        let reading = self.stall_reason().is_none();
        self.status.with_slot_seen(|seen| self.tenure.check(Instant::now(), reading, seen))?;
        if self.stream.confirmed_sent() == self.requested.confirmed {
            failpoint::pass(Boundary::StatusSent);
        }
        self.request_checkpoint(false);
        self.report();
        if self.status.unresolved_error().is_some_and(|at| self.delivery.is_past(at)) {
            self.status.on_error_resolved();
        }
        Ok(())
    }

    /// Why nothing is read.
    fn stall_reason(&self) -> Option<StallReason> {
        if self.poisoned {
            Some(StallReason::PoisonRow)
        } else if self.copy.is_some() {
            Some(StallReason::Copy)
        } else if !self.delivery.has_room() {
            Some(StallReason::Budget)
        } else if self.parked.is_some() {
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
            copied_rows: (self.copied_rows.get() > 0 || self.copy.is_some()).then(|| self.copied_rows.get()),
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

    /// The next message, unless the server said something before it that makes it worthless.
    fn next_frame(&mut self) -> Result<Option<Frame>, RelayError> {
        let frame = self.stream.next_frame()?;
        self.refuse_notices()?;
        Ok(frame)
    }

    /// Postgres 18 and newer skip the rows of a publication they do not find, with no more than a warning. What
    /// comes behind it must not move the position past them.
    fn refuse_notices(&mut self) -> Result<(), RelayError> {
        for notice in self.stream.take_notices() {
            if notice.skipped_publication() {
                return Err(RelayError::new(ErrorKind::PublicationMissing, notice.to_string()));
            }
            if notice.waits_for_standby() {
                self.status.set_awaited_standby(&notice.to_string());
            } else {
                tracing::warn!("PostgreSQL says: {notice}");
            }
        }
        Ok(())
    }

    /// Whether a graceful stop is through.
    async fn drained(&mut self, since: Instant) -> Result<Option<SessionEnd>, RelayError> {
        failpoint::pass(Boundary::InDrain);
        let late = since.elapsed() > self.drain_within;
        // A transaction is read to its end, unless it holds a row that only a person can help on.
        let stuck = self.poisoned || self.delivery.waits_for_topic();
        let settled = self.delivery.in_flight().0 == 0 && (stuck || !self.delivery.in_transaction());
        if !settled && !late {
            return Ok(None);
        }
        self.request_checkpoint(true);
        let LastRequested { confirmed, copied, .. } = self.requested;
        let stored = |row: CommittedCheckpoint| row.confirmed >= confirmed && row.copied == copied;
        while !stored(self.writer.committed()) {
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

/// Reads, or only keeps confirmations going. Both are cancel-safe.
async fn fill_or_idle(stream: &mut Stream, read: bool) -> Result<(), RelayError> {
    if read { Ok(stream.fill().await?) } else { match stream.idle().await? {} }
}

fn gauge(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}
