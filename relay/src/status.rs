//! What the relay says of itself: one place that the session writes and that `/readyz`, `/status` and the lag
//! metric read. Four words are never mixed: *received* (read from the stream), *sent* (handed to a producer),
//! *acknowledged* (by Kafka, contiguously), *confirmed* (told to Postgres).

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use admin::Readiness;
use chrono::{DateTime, SecondsFormat, Utc};
use pg_replication::{EndLsn, PgTime};
use serde_json::{Value, json};

use crate::dead_letter::Note;
use crate::search::Phantoms;
use crate::source::SlotState;
use crate::trouble::{Reason, Trouble};

/// Rows that wait this long without one acknowledgement make the relay not ready: a fault shows within 10 s.
const STALLED_AFTER: Duration = Duration::from_secs(5);

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

/// Why delivery does not go on, as shown.
#[derive(Clone, Debug)]
struct Shown {
    reason: Reason,
    what: String,
    since: SystemTime,
}

/// Numbers the session reports at every tick.
#[derive(Clone, Copy, Debug, Default)]
pub struct Numbers {
    /// Last LSN read from the stream.
    pub received: EndLsn,
    /// End of the contiguous acknowledged prefix.
    pub acknowledged: EndLsn,
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

struct State {
    phase: Phase,
    trouble: Option<Shown>,
    /// A row cannot go on for a reason outside the session, such as a topic that does not exist.
    blocked: Option<Shown>,
    numbers: Numbers,
    /// Last time the acknowledged prefix moved or nothing waited.
    moved: Instant,
    /// (server LSN, when it was seen): how old what was not yet read is.
    unread: Vec<(EndLsn, Instant)>,
    slot: Option<SlotState>,
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
        Status(Arc::new(Mutex::new(State {
            phase: Phase::Starting,
            trouble: None,
            blocked: None,
            numbers: Numbers::default(),
            moved: Instant::now(),
            unread: Vec::new(),
            slot: None,
            phantoms: Phantoms::default(),
            maintained: None,
            dead_letters: DeadLetters::default(),
        })))
    }
}

impl Status {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Moves to `phase`. Streaming clears the trouble that came before it.
    pub fn enter(&self, phase: Phase) {
        let mut state = self.state();
        state.phase = phase;
        if matches!(phase, Phase::Copying | Phase::Streaming) {
            // A new session does not bring records back: it has to look first.
            state.trouble = state.trouble.take().filter(|shown| shown.reason == Reason::KafkaLostRecords);
            state.moved = Instant::now();
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

    /// Moves to `phase` because of `trouble`.
    pub fn trouble(&self, phase: Phase, trouble: &Trouble) {
        let mut state = self.state();
        state.phase = phase;
        let since = match &state.trouble {
            Some(shown) if shown.reason == trouble.reason => shown.since,
            _ => SystemTime::now(),
        };
        state.trouble = Some(Shown { reason: trouble.reason, what: trouble.what.clone(), since });
        state.blocked = None;
    }

    /// A row waits for something outside; `None` when it no longer does.
    pub fn blocked(&self, trouble: Option<Trouble>) {
        self.state().blocked =
            trouble.map(|t| Shown { reason: t.reason, what: t.what, since: SystemTime::now() });
    }

    /// The session's numbers; called at every tick.
    pub fn numbers(&self, numbers: Numbers) {
        let mut state = self.state();
        let moved = |numbers: &Numbers| (numbers.acknowledged, numbers.copied_rows);
        if moved(&numbers) != moved(&state.numbers) || numbers.oldest_commit.is_none() {
            state.moved = Instant::now();
        }
        state.numbers = numbers;
        state.unread.retain(|(lsn, _)| *lsn > numbers.received);
    }

    /// Events were found in Kafka that are not of the server's history.
    pub fn phantoms(&self, found: Phantoms) {
        self.state().phantoms.add(found);
    }

    /// The slot as the observer sees it.
    pub fn slot(&self, slot: Option<SlotState>) {
        let mut state = self.state();
        if let Some(current) = slot.as_ref().and_then(|slot| slot.current) {
            let news = state.unread.last().is_none_or(|(lsn, _)| *lsn < current);
            if news && current > state.numbers.received {
                state.unread.push((current, Instant::now()));
                // One sample a second: an hour of them is plenty, and the oldest is the one that counts.
                if state.unread.len() > 3600 {
                    state.unread.remove(1);
                }
            }
        }
        state.slot = slot;
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

    /// Age in seconds of the oldest committed row that Kafka has not acknowledged: of rows read, by their commit
    /// time; of rows not read, by when the server's LSN was first seen beyond what was read. 0 when caught up.
    pub fn lag_seconds(&self) -> f64 {
        let state = self.state();
        let read = state.numbers.oldest_commit.map_or(0.0, |commit| {
            let age = PgTime::now().as_micros().saturating_sub(commit.as_micros());
            // Negative when the database's clock is ahead of this machine's.
            age.max(0) as f64 / 1e6
        });
        let unread = state.unread.first().map_or(0.0, |(_, seen)| seen.elapsed().as_secs_f64());
        read.max(unread)
    }

    /// For `/readyz`.
    pub fn readiness(&self) -> Readiness {
        let state = self.state();
        if let Some(shown) = state.blocked.as_ref().or(state.trouble.as_ref())
            && state.phase != Phase::Standby
        {
            return Readiness::NotReady(format!(
                "{}: {}; {}",
                shown.reason.name(),
                shown.what,
                shown.reason.remedy()
            ));
        }
        match state.phase {
            Phase::Standby => Readiness::Ready("standby".into()),
            _ if state.is_stalled() => Readiness::NotReady(format!(
                "{}: no acknowledgement from Kafka for {} s; {}",
                Reason::KafkaUnreachable.name(),
                state.moved.elapsed().as_secs(),
                Reason::KafkaUnreachable.remedy()
            )),
            Phase::Copying | Phase::Streaming => Readiness::Ready(state.phase.name().into()),
            phase => Readiness::NotReady(phase.name().into()),
        }
    }

    /// For `/status`.
    pub fn json(&self) -> Value {
        let lag = self.lag_seconds();
        let ready = matches!(self.readiness(), Readiness::Ready(_));
        let state = self.state();
        let shown = |shown: &Shown| {
            json!({
                "reason": shown.reason,
                "message": shown.what,
                "remedy": shown.reason.remedy(),
                "since": rfc3339(shown.since),
            })
        };
        let stalled = state.is_stalled().then(|| {
            json!({
                "reason": Reason::KafkaUnreachable,
                "message": format!("no acknowledgement from Kafka for {} s", state.moved.elapsed().as_secs()),
                "remedy": Reason::KafkaUnreachable.remedy(),
            })
        });
        json!({
            "version": env!("CARGO_PKG_VERSION"),
            "phase": state.phase.name(),
            "ready": ready,
            "trouble": state.blocked.as_ref().or(state.trouble.as_ref()).map(shown).or(stalled),
            "lagSeconds": (lag * 1000.0).round() / 1000.0,
            "receivedLsn": state.numbers.received.to_string(),
            "acknowledgedLsn": state.numbers.acknowledged.to_string(),
            "confirmedLsn": state.numbers.confirmed.to_string(),
            "inFlightEvents": state.numbers.in_flight_events,
            "inFlightBytes": state.numbers.in_flight_bytes,
            "copiedRows": state.numbers.copied_rows,
            "phantoms": { "count": state.phantoms.count, "ids": state.phantoms.ids },
            "deadLetters": state.dead_letters.json(),
            "slot": state.slot.as_ref().map(|slot| json!({
                "activePid": slot.active_pid,
                "walStatus": slot.wal_status,
                "invalidationReason": slot.invalidation_reason,
                "confirmedLsn": slot.confirmed.map(|lsn| lsn.to_string()),
                "restartLsn": slot.restart.map(|lsn| lsn.to_string()),
                "serverLsn": slot.current.map(|lsn| lsn.to_string()),
            })),
            "retention": state.maintained.as_ref().map(|maintained| json!({
                "at": rfc3339(maintained.at),
                "held": maintained.held,
                "error": maintained.error,
            })),
        })
    }
}

fn rfc3339(time: SystemTime) -> String {
    DateTime::<Utc>::from(time).to_rfc3339_opts(SecondsFormat::Secs, true)
}

impl DeadLetters {
    fn json(&self) -> Value {
        let last = self.last.as_ref().map(|(note, at)| {
            json!({
                "reason": note.kind.label(),
                "id": note.id,
                "position": note.position.to_string(),
                "topic": note.topic.as_deref(),
                "at": rfc3339(*at),
            })
        });
        json!({"count": self.count, "last": last})
    }
}

impl State {
    fn is_stalled(&self) -> bool {
        matches!(self.phase, Phase::Copying | Phase::Streaming)
            && self.numbers.oldest_commit.is_some()
            && self.moved.elapsed() > STALLED_AFTER
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lsn(value: u64) -> EndLsn {
        EndLsn::new(pg_replication::Lsn::from(value))
    }

    #[test]
    fn a_trouble_makes_it_not_ready_and_streaming_clears_it() {
        let status = Status::default();
        status.trouble(Phase::Stopped, &Trouble::new(Reason::SlotLost, "slot s is gone"));
        let Readiness::NotReady(text) = status.readiness() else { panic!("ready in trouble") };
        assert!(text.starts_with("SlotLost: slot s is gone; rows committed since"), "{text}");
        assert_eq!(status.json()["trouble"]["reason"], "SlotLost");
        status.enter(Phase::Streaming);
        assert_eq!(status.readiness(), Readiness::Ready("streaming".into()));
        assert_eq!(status.json()["trouble"], Value::Null);
    }

    #[test]
    fn lost_records_are_shown_until_kafka_was_looked_at() {
        let status = Status::default();
        status.trouble(Phase::Stopped, &Trouble::new(Reason::KafkaLostRecords, "t/0 ends early"));
        status.enter(Phase::Streaming);
        assert_eq!(status.json()["trouble"]["reason"], "KafkaLostRecords");
        status.kafka_is_whole();
        assert_eq!(status.json()["trouble"], Value::Null);
    }

    #[test]
    fn a_standby_is_ready() {
        let status = Status::default();
        status.trouble(Phase::Standby, &Trouble::new(Reason::SlotActive, "held by pid 7"));
        assert_eq!(status.readiness(), Readiness::Ready("standby".into()));
    }

    #[test]
    fn lag_counts_what_was_not_read_until_it_is() {
        let status = Status::default();
        status.slot(Some(SlotState { current: Some(lsn(100)), ..SlotState::default() }));
        assert!(status.lag_seconds() > 0.0);
        status.numbers(Numbers { received: lsn(100), ..Numbers::default() });
        assert_eq!(status.lag_seconds(), 0.0);
    }
}
