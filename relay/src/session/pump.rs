//! The pump: the one task that owns the stream. It reads while there is room, takes in acknowledgements, has
//! checkpoints written, and confirms to Postgres what a committed checkpoint says. It never waits for Kafka: when
//! the budget is used up it stops reading, and confirmations go on by their own timer.

mod copy;
mod gulps;

use std::time::{Duration, Instant};

use bytes::Bytes;
use pg_replication::{EndLsn, Frame, Stream};
use prometheus::IntCounter;
use tokio::sync::{mpsc, watch};
use tokio::time::MissedTickBehavior;

use self::copy::{Copy, CopyStep, next_page};
use self::gulps::Gulps;
use crate::dead_letter::replay::Candidate;
use crate::delivery::{CAUSE_START, Delivery, Flow, LostRecords, Refusal};
use crate::failpoint::{self, Boundary};
use crate::kafka::jobs::Answer;
use crate::kafka::sink::AckQueue;
use crate::postgres::checkpoint::{Committed, Progress, Writer};
use crate::session::Context;
use crate::session::ended::Ended;
use crate::session::tenure::{Now, Tenure};
use crate::status::metrics::Metrics;
use crate::status::{HoldUp, Numbers, Phase, Status};
use crate::trouble::{Reason, Trouble};

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
pub struct Pump {
    stream: Stream,
    delivery: Delivery,
    acks: std::sync::Arc<AckQueue>,
    answers: mpsc::UnboundedReceiver<Answer>,
    writer: Writer,
    /// What has to be delivered before the stream is read.
    copy: Option<Copy>,
    /// A dead letter that waits to be sent again.
    replay: Option<Candidate>,
    tenure: Tenure,
    drain_within: Duration,
    status: Status,
    metrics: Metrics,
    /// A message that could not go on.
    parked: Option<Bytes>,
    /// The parked message is a row that can never be delivered.
    poisoned: bool,
    requested: Requested,
    gulps: Gulps,
    copied_rows: IntCounter,
}

/// The last checkpoint asked for.
struct Requested {
    confirmed: EndLsn,
    copied: Option<i64>,
    /// Of the mapping.
    revision: u64,
    at: Instant,
    /// `transactions_total` at that time: whether there was more than idle progress since.
    transactions: u64,
}

impl Pump {
    /// A pump for a stream that has just been opened.
    pub fn new(
        stream: Stream,
        delivery: Delivery,
        acks: std::sync::Arc<AckQueue>,
        answers: mpsc::UnboundedReceiver<Answer>,
        writer: Writer,
        tenure: Tenure,
        context: &Context,
    ) -> Pump {
        let committed = writer.committed();
        let copied_rows = context.metrics.refilled_rows_total.with_label_values(&[CAUSE_START]);
        let requested = Requested {
            confirmed: committed.confirmed,
            copied: committed.copied,
            revision: committed.revision,
            at: Instant::now(),
            transactions: context.metrics.transactions_total.get(),
        };
        Pump {
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
            gulps: Gulps::default(),
            copied_rows,
        }
    }

    /// Runs until a trouble, or until `shutdown` turns true and everything under way is finished. Dead letters that
    /// come in through `replays` are sent again.
    pub async fn run(
        &mut self,
        shutdown: &mut watch::Receiver<bool>,
        replays: &mut mpsc::Receiver<Candidate>,
    ) -> Result<Ended, Trouble> {
        let mut ticks = tokio::time::interval(TICK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut draining: Option<Instant> = None;
        loop {
            // Before anything else: after a pause nothing more may be sent.
            self.tenure.turn(Now::read())?;
            self.delivery.settle_acks()?;
            self.confirm()?;
            let may_read = draining.is_none() || self.delivery.in_transaction();
            let (wants_input, wants_page, goes_on) = match self.copy {
                Some(_) if may_read => {
                    let step = self.copy_rows()?;
                    (false, step == CopyStep::NeedsPage, step == CopyStep::HasMore)
                }
                _ => (self.copy.is_none() && may_read && self.work_off()?, false, false),
            };
            if let Some(candidate) = self.replay.take() {
                self.replay = self.delivery.replay(candidate, self.writer.committed().revision)?;
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
                Some(answer) = self.answers.recv() => self.delivery.answer(answer)?,
                Some(candidate) = replays.recv(), if draining.is_none() && self.takes_replays() => {
                    self.replay = Some(candidate);
                }
                () = std::future::ready(()), if goes_on => {}
                page = next_page(&mut self.copy), if wants_page => self.take_page(page?),
                filled = fill_or_idle(&mut self.stream, wants_input) => {
                    filled?;
                    failpoint::pass(Boundary::AfterRead);
                    self.gulps.read(self.stream.last_read_len());
                }
            }
        }
    }

    /// What the last committed checkpoint says.
    pub fn confirmed(&self) -> EndLsn {
        self.writer.committed().confirmed
    }

    /// Sends nothing more: see [`Delivery::give_up`].
    pub fn give_up(&self, all: bool) {
        self.delivery.give_up(all);
    }

    /// Says what ended the session as far as it can be known: the answer of a broker behind it, and the row it is about.
    pub async fn explained(&mut self, trouble: Trouble) -> Trouble {
        let trouble = self.delivery.cause_of(trouble).await;
        self.delivery.began(trouble, self.parked.is_some())
    }

    /// A record that Kafka refused, if that ended the session.
    pub fn refusal(&mut self) -> Option<Refusal> {
        self.delivery.refusal()
    }

    /// What ended the session, if Kafka lost records.
    pub fn lost(&mut self) -> Option<LostRecords> {
        self.delivery.lost()
    }

    /// Gives back what the session has to end: the stream, the producers within `Delivery`, and the writer with its connection.
    pub fn into_parts(self) -> (Stream, Delivery, Writer) {
        (self.stream, self.delivery, self.writer)
    }

    /// Deals with what is buffered, a burst at most. Answers whether it is time to read more.
    fn work_off(&mut self) -> Result<bool, Trouble> {
        for _ in 0..BURST {
            if !self.delivery.has_room() {
                return Ok(false);
            }
            let data = match self.parked.take() {
                Some(data) => data,
                None => match self.next_frame()? {
                    None => return Ok(true),
                    Some(Frame::Keepalive { wal_end, .. }) => {
                        self.delivery.keepalive(wal_end);
                        continue;
                    }
                    Some(Frame::XLogData { data, .. }) => data,
                },
            };
            let flow = match self.delivery.message(&data, self.writer.committed().revision) {
                Err(trouble) if trouble.reason == Reason::PoisonRow => self.poisoned(trouble),
                flow => flow?,
            };
            if flow == Flow::Next {
                self.not_poisoned();
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
    fn poisoned(&mut self, trouble: Trouble) -> Flow {
        if !std::mem::replace(&mut self.poisoned, true) {
            tracing::error!(reason = trouble.reason.name(), "delivery stopped: {trouble}");
            self.status.poisoned(Some(trouble));
        }
        Flow::Blocked
    }

    fn not_poisoned(&mut self) {
        if std::mem::take(&mut self.poisoned) {
            tracing::info!("the row that stopped delivery can be delivered now");
            self.status.poisoned(None);
        }
    }

    /// A dead letter that is sent again counts in the budget.
    fn takes_replays(&self) -> bool {
        self.replay.is_none() && self.delivery.has_room()
    }

    /// Tells Postgres what the committed checkpoint says. A stream replayed from before it gets there later.
    fn confirm(&mut self) -> Result<(), Trouble> {
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
        let copied = self.delivery.copied_up_to();
        if !due && revision == self.requested.revision && copied == self.requested.copied {
            return;
        }
        self.requested = Requested { confirmed, copied, revision, at: Instant::now(), transactions };
        let first_unconfirmed = self.delivery.ledger().first_unconfirmed();
        let mappings = self.delivery.mapper().stored();
        let offsets = self.delivery.partitions().offsets(first_unconfirmed, confirmed);
        self.writer.write(Progress { confirmed, copied, mappings, revision, offsets });
    }

    fn tick(&mut self) -> Result<(), Trouble> {
        self.delivery.watch(self.writer.committed().revision)?;
        let reading = self.hold_up().is_none();
        self.status.with_slot_seen(|seen| self.tenure.check(Instant::now(), reading, seen))?;
        if self.stream.confirmed_sent() == self.requested.confirmed {
            failpoint::pass(Boundary::StatusSent);
        }
        self.request_checkpoint(false);
        self.report();
        if self.status.unproven().is_some_and(|at| self.delivery.is_past(at)) {
            self.status.proven();
        }
        Ok(())
    }

    /// Why nothing is read.
    fn hold_up(&self) -> Option<HoldUp> {
        if self.poisoned {
            Some(HoldUp::PoisonRow)
        } else if self.copy.is_some() {
            Some(HoldUp::Copy)
        } else if !self.delivery.has_room() {
            Some(HoldUp::Budget)
        } else if self.parked.is_some() {
            Some(if self.delivery.waits_for_topic() { HoldUp::Topic } else { HoldUp::Search })
        } else {
            None
        }
    }

    fn report(&self) {
        let (in_flight_events, in_flight_bytes) = self.delivery.in_flight();
        let ledger = self.delivery.ledger();
        let counts = self.delivery.counts();
        let numbers = Numbers {
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
            hold_up: self.hold_up(),
            writing_since: self.writer.waits_since(),
        };
        self.status.numbers(numbers);
        let metrics = &self.metrics;
        metrics.in_flight_events.set(gauge(in_flight_events as u64));
        metrics.in_flight_bytes.set(gauge(in_flight_bytes as u64));
        metrics.received_lsn.set(gauge(numbers.received.lsn().as_u64()));
        metrics.acknowledged_lsn.set(gauge(numbers.acknowledged.lsn().as_u64()));
        metrics.confirmed_lsn.set(gauge(numbers.confirmed.lsn().as_u64()));
        let kafka = self.delivery.kafka_answers();
        self.status.kafka(kafka, self.acks.complaint());
        metrics.connected.with_label_values(&["kafka"]).set(i64::from(kafka == Some(true)));
    }

    /// The next message, unless the server said something before it that makes it worthless.
    fn next_frame(&mut self) -> Result<Option<Frame>, Trouble> {
        let frame = self.stream.next_frame()?;
        self.refuse_notices()?;
        Ok(frame)
    }

    /// Postgres 18 and newer skip the rows of a publication they do not find, with no more than a warning. What
    /// comes behind it must not move the position past them.
    fn refuse_notices(&mut self) -> Result<(), Trouble> {
        for notice in self.stream.take_notices() {
            if notice.skipped_publication() {
                return Err(Trouble::new(Reason::PublicationMissing, notice.to_string()));
            }
            if notice.waits_for_standby() {
                self.status.standby_awaited(&notice.to_string());
            } else {
                tracing::warn!("PostgreSQL says: {notice}");
            }
        }
        Ok(())
    }

    /// Whether a graceful stop is through.
    async fn drained(&mut self, since: Instant) -> Result<Option<Ended>, Trouble> {
        failpoint::pass(Boundary::InDrain);
        let late = since.elapsed() > self.drain_within;
        // A transaction is read to its end, unless it holds a row that only a person can help on.
        let stuck = self.poisoned || self.delivery.waits_for_topic();
        let settled = self.delivery.in_flight().0 == 0 && (stuck || !self.delivery.in_transaction());
        if !settled && !late {
            return Ok(None);
        }
        self.request_checkpoint(true);
        let Requested { confirmed, copied, .. } = self.requested;
        let stored = |row: Committed| row.confirmed >= confirmed && row.copied == copied;
        while !stored(self.writer.committed()) {
            let left = self.drain_within.saturating_sub(since.elapsed()).max(TICK);
            match tokio::time::timeout(left, self.writer.changed()).await {
                Ok(changed) => changed?,
                Err(_) => return Ok(Some(Ended::Late)),
            }
        }
        self.confirm()?;
        Ok(Some(match (settled, stuck) {
            (true, true) => Ended::Blocked,
            (true, false) if self.delivery.ledger().is_empty() => Ended::Drained,
            _ => Ended::Late,
        }))
    }
}

/// Reads, or only keeps confirmations going. Both are cancel-safe.
async fn fill_or_idle(stream: &mut Stream, read: bool) -> Result<(), Trouble> {
    if read { Ok(stream.fill().await?) } else { match stream.idle().await? {} }
}

fn gauge(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}
