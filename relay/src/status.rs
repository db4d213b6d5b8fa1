//! What the relay says of itself: one place that the session and the observer write and that `/readyz`, `/status` and
//! the metrics read. Four words are never mixed: *received* (read from the stream), *sent* (handed to a producer),
//! *acknowledged* (by Kafka, contiguously), *confirmed* (told to Postgres).
//!
//! What is wrong is either a trouble that ended a session, or something that shows in an open stream. The latter is
//! never stored: it is judged anew at each question, so it is gone when its cause is.

pub mod heartbeat;
pub mod metrics;
pub mod observer;
mod report;
mod unread;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use admin::Readiness;
use pg_replication::{EndLsn, PgTime};
use serde_json::Value;

use self::heartbeat::Heartbeat;
use self::unread::Unread;
use crate::config::Config;
use crate::dead_letter::Note;
use crate::kafka::search::Phantoms;
use crate::postgres::source::SlotState;
use crate::session::tenure::Sight;
use crate::trouble::{Reason, Trouble};

/// What stands still this long makes the relay not ready: a fault shows within 10 s, and a leader change or a
/// checkpoint of the server is none.
const STALLED_AFTER: Duration = Duration::from_secs(5);
/// Looks at the database that fail for this long, on top of the time they take, show that it is away.
const UNSEEN_AFTER: Duration = Duration::from_secs(2);

/// A relay that is idle confirms at leisure, every 10 s; so a standby, which sees no more than that, takes a slot that
/// is behind by less for one that is caught up.
const CONFIRMED_WITHIN: Duration = Duration::from_secs(15);

/// What the relay is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Connecting, checking, taking the slot.
    Starting,
    /// The stream is open and waits; the rows that were there before it are delivered.
    Copying,
    /// The stream is open.
    Streaming,
    /// Another relay holds the slot.
    Standby,
    /// A trouble ended the session; another is tried later.
    Waiting,
    /// A trouble needs a person.
    Stopped,
    /// SIGTERM: what is under way is finished.
    Draining,
}

impl Phase {
    fn name(self) -> &'static str {
        match self {
            Phase::Starting => "starting",
            Phase::Copying => "copying",
            Phase::Streaming => "streaming",
            Phase::Standby => "standby",
            Phase::Waiting => "waiting",
            Phase::Stopped => "stopped",
            Phase::Draining => "draining",
        }
    }
}

/// Why nothing is read from the stream although it is open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HoldUp {
    /// As much is sent and not acknowledged as may be.
    Budget,
    /// A row waits for its topic to exist.
    Topic,
    /// A row waits until its partition is searched, or its topic is in the checkpoint.
    Search,
    /// A row can never be delivered.
    PoisonRow,
    /// The rows that were there before the slot are delivered first.
    Copy,
}

impl HoldUp {
    fn text(self) -> &'static str {
        match self {
            HoldUp::Budget => "the budget is used up: Kafka has to acknowledge first",
            HoldUp::Topic => "a row waits for its topic",
            HoldUp::Search => "a row waits until its partition was searched for what Kafka has already",
            HoldUp::PoisonRow => "a row cannot be delivered",
            HoldUp::Copy => "the rows that were there before the slot are delivered first",
        }
    }
}

/// Why delivery does not go on, as shown.
#[derive(Clone, Debug)]
struct Shown {
    reason: Reason,
    what: String,
    since: SystemTime,
}

impl Shown {
    fn new(reason: Reason, what: String, lasted: Duration) -> Shown {
        Shown { reason, what, since: SystemTime::now() - lasted }
    }
}

/// The last problem, whether it is over or not.
#[derive(Clone, Debug)]
struct Past {
    shown: Shown,
    until: Option<SystemTime>,
}

/// Numbers the session reports at every tick. Events are counted since the stream was opened.
#[derive(Clone, Copy, Debug, Default)]
pub struct Numbers {
    /// Last LSN read from the stream.
    pub received: EndLsn,
    /// Rows read.
    pub received_events: u64,
    /// Records handed to a producer.
    pub sent_events: u64,
    /// Rows that were not sent, because Kafka had them.
    pub suppressed_events: u64,
    /// End of the contiguous acknowledged prefix.
    pub acknowledged: EndLsn,
    /// Records acknowledged by Kafka.
    pub acknowledged_events: u64,
    /// What the server was told.
    pub confirmed: EndLsn,
    /// Events sent and not acknowledged.
    pub in_flight_events: usize,
    /// Their bytes.
    pub in_flight_bytes: usize,
    /// Commit time of the oldest transaction that waits.
    pub oldest_commit: Option<PgTime>,
    /// Rows of the first copy this process has delivered; `None` when it had none to do.
    pub copied_rows: Option<u64>,
    /// Why nothing is read.
    pub hold_up: Option<HoldUp>,
}

/// How the last maintenance of the table's partitions went.
#[derive(Clone, Debug)]
pub struct Maintained {
    /// When it ended.
    pub at: SystemTime,
    /// What is due and was not done, and why.
    pub held: Option<String>,
    /// Why the call failed.
    pub error: Option<String>,
}

/// The relay's row in the checkpoint table, as seen by the observer.
#[derive(Clone, Copy, Debug)]
pub struct CheckpointSeen {
    /// Every commit before it is in Kafka.
    pub confirmed: Option<EndLsn>,
    /// How long ago it was written, by the server's clock.
    pub age: Duration,
}

/// Names from the configuration that are shown.
#[derive(Clone, Debug, Default)]
struct About {
    name: String,
    host: String,
    port: u16,
    database: String,
    table: String,
    publication: String,
    slot: String,
    bootstrap_servers: String,
}

struct State {
    about: About,
    started: SystemTime,
    phase: Phase,
    phase_since: SystemTime,
    trouble: Option<Shown>,
    /// A row cannot go on for a reason outside the session, such as a topic that does not exist.
    blocked: Option<Shown>,
    last: Option<Past>,
    numbers: Numbers,
    /// When the session last reported.
    ticked: Instant,
    /// Last time Kafka acknowledged something, or nothing waited.
    acknowledged_moved: Instant,
    acknowledged_at: Option<SystemTime>,
    /// Last time the stream brought something new.
    received_moved: Instant,
    unread: Unread,
    slot: Option<SlotState>,
    /// When the slot was asked for.
    slot_seen: Option<Instant>,
    /// Since when nobody holds it, as far as this process has seen.
    slot_idle: Option<Instant>,
    /// Since when the observer gets no answer, and why.
    looks_fail: Option<(Instant, String)>,
    checkpoint: Option<(Instant, CheckpointSeen)>,
    /// Whether Kafka answered last; `None` while it was not asked.
    kafka: Option<bool>,
    kafka_changed: Instant,
    kafka_says: Option<String>,
    heartbeat: Heartbeat,
    phantoms: Phantoms,
    maintained: Option<Maintained>,
    dead_letters: DeadLetters,
}

/// Rows that became dead letters since the process started.
#[derive(Default)]
struct DeadLetters {
    count: u64,
    last: Option<(Note, SystemTime)>,
}

/// Shared between the session, the observer and the admin listener.
#[derive(Clone)]
pub struct Status(Arc<Mutex<State>>);

impl Default for Status {
    fn default() -> Self {
        Status::about(About::default(), Heartbeat::default())
    }
}

impl Status {
    /// The status of a relay that starts.
    pub fn new(config: &Config) -> Status {
        let source = &config.source;
        let about = About {
            name: config.name.clone(),
            host: source.host.clone(),
            port: source.port,
            database: source.database.clone(),
            table: source.table.to_string(),
            publication: source.publication.name.clone(),
            slot: source.slot.name.clone(),
            bootstrap_servers: config.sink.bootstrap_servers.clone(),
        };
        Status::about(about, Heartbeat::new(config))
    }

    fn about(about: About, heartbeat: Heartbeat) -> Status {
        let (now, time) = (Instant::now(), SystemTime::now());
        Status(Arc::new(Mutex::new(State {
            about,
            started: time,
            phase: Phase::Starting,
            phase_since: time,
            trouble: None,
            blocked: None,
            last: None,
            numbers: Numbers::default(),
            ticked: now,
            acknowledged_moved: now,
            acknowledged_at: None,
            received_moved: now,
            unread: Unread::default(),
            slot: None,
            slot_seen: None,
            slot_idle: None,
            looks_fail: None,
            checkpoint: None,
            kafka: None,
            kafka_changed: now,
            kafka_says: None,
            heartbeat,
            phantoms: Phantoms::default(),
            maintained: None,
            dead_letters: DeadLetters::default(),
        })))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Moves to `phase`. Streaming clears the trouble that came before it.
    pub fn enter(&self, phase: Phase) {
        let mut state = self.state();
        state.move_to(phase);
        if matches!(phase, Phase::Copying | Phase::Streaming) {
            let now = Instant::now();
            // A new session does not bring records back: it has to look first.
            state.trouble = state.trouble.take().filter(|shown| shown.reason == Reason::KafkaLostRecords);
            state.kafka = None;
            (state.ticked, state.acknowledged_moved, state.received_moved) = (now, now, now);
            state.heartbeat.stream_opened(now);
        }
        if phase != Phase::Draining {
            state.blocked = None;
        }
    }

    /// Kafka holds everything that is remembered of it.
    pub fn kafka_is_whole(&self) {
        let mut state = self.state();
        state.trouble = state.trouble.take().filter(|shown| shown.reason != Reason::KafkaLostRecords);
    }

    /// Moves to `phase` because of `trouble`. Answers whether it is one that was not shown already: the stream was
    /// open before, or the reason was another.
    pub fn trouble(&self, phase: Phase, trouble: &Trouble) -> bool {
        let mut state = self.state();
        let since = match &state.trouble {
            Some(shown) if shown.reason == trouble.reason => Some(shown.since),
            _ => None,
        };
        state.move_to(phase);
        let shown = Shown {
            reason: trouble.reason,
            what: trouble.what.clone(),
            since: since.unwrap_or_else(SystemTime::now),
        };
        state.trouble = Some(shown);
        state.blocked = None;
        // The clients of the session are gone. What was read and not acknowledged waits on, unless it is another
        // relay's business now.
        state.kafka = None;
        state.numbers = match phase {
            Phase::Standby => Numbers::default(),
            _ => Numbers { in_flight_events: 0, in_flight_bytes: 0, hold_up: None, ..state.numbers },
        };
        since.is_none()
    }

    /// A row waits for something outside; `None` when it no longer does.
    pub fn blocked(&self, trouble: Option<Trouble>) {
        let mut state = self.state();
        let since = match (&state.blocked, &trouble) {
            (Some(shown), Some(trouble)) if shown.reason == trouble.reason => shown.since,
            _ => SystemTime::now(),
        };
        state.blocked = trouble.map(|t| Shown { reason: t.reason, what: t.what, since });
    }

    /// The session's numbers; called at every tick.
    pub fn numbers(&self, numbers: Numbers) {
        let mut state = self.state();
        let now = Instant::now();
        state.ticked = now;
        if numbers.acknowledged_events > state.numbers.acknowledged_events {
            state.acknowledged_at = Some(SystemTime::now());
        }
        if numbers.acknowledged_events != state.numbers.acknowledged_events || numbers.oldest_commit.is_none()
        {
            state.acknowledged_moved = now;
        }
        if numbers.received != state.numbers.received {
            state.received_moved = now;
        }
        state.numbers = numbers;
        state.unread.acknowledged(numbers.acknowledged);
    }

    /// Events were found in Kafka that are not of the server's history.
    pub fn phantoms(&self, found: Phantoms) {
        self.state().phantoms.add(found);
    }

    /// Partitions were maintained, or could not be.
    pub fn maintained(&self, maintained: Maintained) {
        self.state().maintained = Some(maintained);
    }

    /// Kafka has a dead letter.
    pub fn dead_letter(&self, note: Note) {
        let letters = &mut self.state().dead_letters;
        letters.count += 1;
        letters.last = Some((note, SystemTime::now()));
    }

    /// Whether Kafka answers: it acknowledged something, or was asked; and what the client said of it last.
    pub fn kafka(&self, connected: Option<bool>, says: Option<String>) {
        let mut state = self.state();
        state.kafka_says = says;
        if state.kafka != connected {
            state.kafka = connected;
            state.kafka_changed = Instant::now();
        }
    }

    /// The observer asked for the slot at `asked`, and this is what the server shows.
    pub fn slot(&self, asked: Instant, slot: Option<SlotState>, checkpoint: Option<CheckpointSeen>) {
        let mut state = self.state();
        state.looks_fail = None;
        state.slot_seen = Some(asked);
        state.checkpoint = checkpoint.map(|checkpoint| (asked, checkpoint));
        let idle = slot.as_ref().is_some_and(|slot| slot.active_pid.is_none());
        state.slot_idle = if idle { Some(state.slot_idle.unwrap_or(asked)) } else { None };
        if let Some(slot) = &slot {
            state.unread.acknowledged(slot.confirmed.unwrap_or_default());
            if let Some(current) = slot.current {
                state.unread.seen(current, asked, checkpoint.map(|checkpoint| checkpoint.age));
            }
        }
        state.slot = slot;
    }

    /// The observer asked at `asked` and got no answer.
    pub fn unseen(&self, asked: Instant, why: String) {
        let mut state = self.state();
        let since = state.looks_fail.as_ref().map_or(asked, |(since, _)| *since);
        state.looks_fail = Some((since, why));
    }

    /// Has `judge` look at what the observer knows of the slot.
    pub fn sight<T>(&self, judge: impl FnOnce(Sight<'_>) -> T) -> Option<T> {
        let state = self.state();
        let sight = match (&state.looks_fail, state.slot_seen) {
            (Some((since, _)), _) => Sight::Unanswered(*since),
            (None, Some(asked)) => Sight::Seen(asked, state.slot.as_ref()),
            (None, None) => return None,
        };
        Some(judge(sight))
    }

    /// The heartbeat to send now: prefix and content, if the stream is open and one is due.
    pub fn heartbeat_due(&self) -> Option<(String, String)> {
        let mut state = self.state();
        if state.phase != Phase::Streaming {
            return None;
        }
        let content = state.heartbeat.due(Instant::now())?;
        Some((state.heartbeat.prefix().to_owned(), content))
    }

    /// The heartbeat could not be sent.
    pub fn heartbeat_not_sent(&self) {
        self.state().heartbeat.not_sent();
    }

    /// A message came through the stream.
    pub fn message(&self, prefix: &str, content: &[u8]) {
        self.state().heartbeat.returned(prefix, content);
    }

    /// Age of the newest heartbeat that came back; `None` while none is expected.
    pub fn heartbeat_age(&self) -> Option<Duration> {
        self.state().heartbeat_age(Instant::now())
    }

    /// For how long nobody has held the slot.
    pub fn slot_inactive(&self) -> Duration {
        self.state().slot_inactive(Instant::now())
    }

    /// Age in seconds of the oldest committed row that Kafka has not acknowledged. Of rows read, by their commit time;
    /// of rows not read, by when the server's log was first seen beyond what is acknowledged, and after a start by the
    /// age of the checkpoint, until they are read. 0 when caught up.
    pub fn lag_seconds(&self) -> f64 {
        self.state().lag(Instant::now()).as_secs_f64()
    }

    /// For `/readyz`.
    pub fn readiness(&self) -> Readiness {
        let state = self.state();
        let problem = state.problem(Instant::now());
        match &problem {
            Some(shown) => Readiness::NotReady(format!(
                "{}: {}; {}",
                shown.reason.name(),
                shown.what,
                shown.reason.remedy()
            )),
            None if state.is_ready(None) => Readiness::Ready(state.phase.name().into()),
            None => Readiness::NotReady(state.phase.name().into()),
        }
    }

    /// Remembers what is wrong now, and when what was wrong is over, for people who look later. Called regularly.
    pub fn remember(&self) {
        let mut state = self.state();
        let problem = state.problem(Instant::now());
        let current = state.last.as_ref().filter(|past| past.until.is_none());
        match (problem, current) {
            (Some(now), Some(past)) if now.reason == past.shown.reason => {}
            (Some(shown), _) => {
                // A trouble that ended a session is in the log already.
                if state.trouble.is_none() {
                    let reason = shown.reason.name();
                    tracing::warn!(reason, "not ready: {}; {}", shown.what, shown.reason.remedy());
                }
                state.last = Some(Past { shown, until: None });
            }
            (None, Some(past)) => {
                let reason = past.shown.reason.name();
                tracing::info!(reason, "ready again");
                state.last.as_mut().map(|past| past.until.insert(SystemTime::now()));
            }
            (None, None) => {}
        }
    }

    /// For `/status`.
    pub fn json(&self) -> Value {
        report::json(&self.state(), Instant::now())
    }
}

impl State {
    fn move_to(&mut self, phase: Phase) {
        if self.phase != phase {
            self.phase = phase;
            self.phase_since = SystemTime::now();
        }
    }

    fn is_ready(&self, problem: Option<&Shown>) -> bool {
        problem.is_none() && matches!(self.phase, Phase::Copying | Phase::Streaming | Phase::Standby)
    }

    /// What keeps delivery from going on. A standby has nothing to deliver: that it stands by is no problem.
    fn problem(&self, now: Instant) -> Option<Shown> {
        match self.phase {
            Phase::Standby => None,
            Phase::Copying | Phase::Streaming | Phase::Draining => {
                let standing =
                    self.blocked.clone().or_else(|| self.slot_gone()).or_else(|| self.stands_still(now));
                // What is left of a trouble once the stream is open: see `enter`.
                standing.or_else(|| self.trouble.clone())
            }
            Phase::Starting | Phase::Waiting | Phase::Stopped => self.trouble.clone(),
        }
    }

    /// The server has given the slot up, while the stream from it may still look open.
    fn slot_gone(&self) -> Option<Shown> {
        let lost = self.slot.as_ref().filter(|slot| slot.is_lost())?;
        Some(Shown::new(Reason::SlotLost, lost.loss(), Duration::ZERO))
    }

    fn stands_still(&self, now: Instant) -> Option<Shown> {
        let stalled = |since: Instant| {
            let lasted = now.saturating_duration_since(since);
            (lasted > STALLED_AFTER).then_some(lasted)
        };
        if let Some(lasted) = stalled(self.ticked) {
            let what = format!("the relay's loop has not turned for {} s", lasted.as_secs());
            return Some(Shown::new(Reason::StreamStalled, what, lasted));
        }
        if let Some((since, why)) = &self.looks_fail {
            let unseen = now.saturating_duration_since((*since).max(self.received_moved));
            if unseen > UNSEEN_AFTER {
                let what = format!("no answer from Postgres for {} s: {why}", unseen.as_secs());
                return Some(Shown::new(Reason::DatabaseUnreachable, what, unseen));
            }
        }
        if self.kafka == Some(false) {
            let lasted = now.saturating_duration_since(self.kafka_changed);
            let says = self.kafka_says.as_ref().map(|says| format!(": {says}")).unwrap_or_default();
            return Some(Shown::new(
                Reason::KafkaUnreachable,
                format!("Kafka does not answer{says}"),
                lasted,
            ));
        }
        if self.numbers.oldest_commit.is_some()
            && let Some(lasted) = stalled(self.acknowledged_moved)
        {
            let rows = match self.numbers.hold_up {
                Some(HoldUp::Search) => "rows wait for a search",
                _ => "rows wait",
            };
            let what = format!("{rows}, and Kafka has acknowledged nothing for {} s", lasted.as_secs());
            return Some(Shown::new(Reason::NoAcknowledgement, what, lasted));
        }
        let beyond = self.unread.beyond(self.numbers.received, now);
        if self.numbers.hold_up.is_none()
            && self.looks_fail.is_none()
            && beyond > STALLED_AFTER
            && let Some(lasted) = stalled(self.received_moved)
        {
            let what =
                format!("the server has more to send, and nothing has arrived for {} s", lasted.as_secs());
            return Some(Shown::new(Reason::StreamStalled, what, lasted));
        }
        None
    }

    fn lag(&self, now: Instant) -> Duration {
        let read = self.numbers.oldest_commit.map_or(0, |commit| {
            // Negative when the database's clock is ahead of this machine's.
            PgTime::now().as_micros().saturating_sub(commit.as_micros()).max(0)
        });
        let unread = match self.phase {
            Phase::Standby => self.unread.age(now).saturating_sub(CONFIRMED_WITHIN),
            _ => self.unread.age(now),
        };
        Duration::from_micros(read.unsigned_abs()).max(unread)
    }

    /// A standby sends none, and its last may be days old.
    fn heartbeat_age(&self, now: Instant) -> Option<Duration> {
        self.heartbeat.age(now).filter(|_| self.phase != Phase::Standby)
    }

    fn slot_inactive(&self, now: Instant) -> Duration {
        let Some(since) = self.slot_idle else { return Duration::ZERO };
        let seen = self.slot_seen.map_or(Duration::ZERO, |seen| now.saturating_duration_since(seen));
        let told = self.slot.as_ref().and_then(|slot| slot.inactive_for);
        told.map_or_else(|| now.saturating_duration_since(since), |told| told + seen)
    }
}

#[cfg(test)]
mod tests;
