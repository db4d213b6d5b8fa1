//! The relay's state as it reports it: written by the session and the monitor tasks, read by `/readyz`, `/status` and
//! the metrics. Four words are never mixed: *received* (read from the stream), *sent* (passed to a producer),
//! *acknowledged* (by Kafka, contiguously), *confirmed* (to PostgreSQL).
//!
//! A problem is either an error that ended a session, or a condition of an open stream. The latter is never stored: it
//! is evaluated at each request, so it is gone when its cause is. An error that ended an open stream is not over when
//! the next stream opens: that stream may end in the same way a moment later. It is over when delivery has passed the
//! point where it happened.

pub mod failover_readiness;
pub mod heartbeat;
mod kafka_state;
pub mod metrics;
mod observation;
pub mod page;
mod problems;
mod session_state;
mod signals;
mod slot_state;
mod state;
mod status_json;
mod unread_lag;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use outbox::Position;
use pg_replication::{EndLsn, Host};
use process::Readiness;
use serde_json::Value;

use self::failover_readiness::{FailoverReadiness, PrimaryState, Standby};
use self::problems::Problem;
pub use self::signals::{
    KafkaAnswers, Maintenance, ObservedCheckpoint, Phase, SessionStats, SilentPartition, StallReason,
    WaitsFor,
};
pub use self::slot_state::{LastSlotObservation, SlotState};
use self::state::State;
use crate::config::Config;
use crate::error::{ErrorKind, RelayError};
use crate::event::dead_letter::DeadLetterSummary;
use crate::progress::phantoms::Phantoms;

/// How often a standby checks whether the slot is free: it takes over within about a second.
pub const STANDBY_POLL_INTERVAL: Duration = Duration::from_millis(500);

/// Shared between the session, the observer and the admin listener.
#[derive(Clone)]
pub struct Status(Arc<Mutex<State>>);

impl Status {
    /// The status of a relay that is starting.
    pub fn new(config: &Config) -> Status {
        Status(Arc::new(Mutex::new(State::new(config.clone()))))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Moves to `phase`. Streaming clears the error that kept the stream from opening.
    pub fn enter(&self, phase: Phase) {
        let mut state = self.state();
        state.move_to(phase);
        if phase.delivers() {
            let now = Instant::now();
            state.problems.error = state.problems.unresolved.clone();
            (state.kafka.answers, state.kafka.progress_at) = (KafkaAnswers::Unknown, now);
            state.session.on_stream_opened(now);
            state.heartbeat.on_stream_opened(now);
        }
        if phase != Phase::Draining {
            state.clear_session();
        }
    }

    /// Every record that the checkpoint remembers is still in Kafka.
    pub fn on_kafka_verified(&self) {
        self.state().problems.clear_unresolved(|shown| shown.reason == ErrorKind::KafkaLostRecords);
    }

    /// The error that ended the previous stream and may end this one: the row that has to be delivered before it counts
    /// as resolved, where one is known.
    pub fn unresolved_error(&self) -> Option<Option<Position>> {
        self.state().problems.unresolved.as_ref().map(|shown| shown.at)
    }

    /// Delivery has passed the error that ended the previous stream.
    pub fn on_error_resolved(&self) {
        // A new session does not restore lost records: Kafka has to be checked first.
        self.state().problems.clear_unresolved(|shown| shown.reason != ErrorKind::KafkaLostRecords);
    }

    /// Moves to `phase` because of `error`. Returns whether the error is new: the stream was open before, or another
    /// kind of error was shown.
    pub fn on_error(&self, phase: Phase, error: &RelayError) -> bool {
        let mut state = self.state();
        let since = match &state.problems.error {
            Some(shown) if shown.reason == error.kind => Some(shown.since),
            _ => None,
        };
        let was_open = state.phase.has_stream();
        state.move_to(phase);
        // A session that has not begun may still have its connections.
        if phase != Phase::Starting {
            state.session.on_closed();
        }
        let shown = Problem {
            reason: error.kind,
            what: error.detail.clone(),
            since: since.unwrap_or_else(SystemTime::now),
            at: error.at,
        };
        match error.kind {
            // Another relay delivers from here on, including what this process did not.
            _ if phase == Phase::Standby => state.problems.unresolved = None,
            ErrorKind::CredentialsRotated | ErrorKind::TopicChanged => {}
            ErrorKind::KafkaLostRecords => state.problems.set_unresolved(shown.clone()),
            _ if was_open => state.problems.set_unresolved(shown.clone()),
            _ => {}
        }
        state.problems.error = Some(shown);
        state.clear_session();
        state.kafka.answers = KafkaAnswers::Unknown;
        match phase {
            Phase::Standby => state.session.stats = SessionStats::default(),
            _ => state.session.clear_in_flight(),
        }
        was_open || since.is_none()
    }

    /// A row cannot be delivered; `None` when it was sent after all. Kafka may still reject it.
    pub fn set_poison(&self, error: Option<RelayError>) {
        let poison = error
            .map(|error| Problem { at: error.at, ..Problem::new(error.kind, error.detail, Duration::ZERO) });
        self.state().problems.set_poison(poison);
    }

    /// A topic that rows are routed to does not exist.
    pub fn on_topic_missing(&self, topic: String) {
        self.state().problems.missing_topics.entry(topic).or_insert_with(SystemTime::now);
    }

    pub fn on_topic_exists(&self, topic: &str) {
        self.state().problems.missing_topics.remove(topic);
    }

    /// The session's counters; called at every tick.
    pub fn set_session_stats(&self, stats: SessionStats) {
        let mut state = self.state();
        let now = Instant::now();
        let before = state.session.stats;
        state.kafka.on_stats(&before, &stats, now);
        state.session.set_stats(stats, now);
        state.unread.on_acknowledged(stats.acknowledged);
    }

    /// Events were found in Kafka that are not part of the server's history.
    pub fn add_phantoms(&self, found: Phantoms) {
        self.state().phantoms.add(found);
    }

    /// The result of the last partition maintenance.
    pub fn set_maintenance(&self, maintained: Maintenance) {
        self.state().maintenance = Some(maintained);
    }

    /// Kafka acknowledged a dead letter.
    pub fn on_dead_letter(&self, summary: DeadLetterSummary) {
        let letters = &mut self.state().dead_letters;
        letters.count += 1;
        letters.last = Some((summary, SystemTime::now()));
    }

    /// Whether Kafka responds, and the client's last connection error.
    pub fn set_kafka_answers(&self, answers: KafkaAnswers, connection_error: Option<String>) {
        self.state().kafka.set_answers(answers, connection_error);
    }

    /// The partitions without progress; called at every tick.
    pub fn set_silent_partitions(&self, silent: Vec<SilentPartition>) {
        self.state().kafka.silent = silent;
    }

    /// The end of the server's WAL, if it was observed after `since`.
    pub fn server_end(&self, since: Instant) -> Option<EndLsn> {
        let state = self.state();
        state.observed.at.filter(|at| *at > since)?;
        state.observed.slot.as_ref()?.current
    }

    /// The observer queried the slot at `asked`: this is what the server showed, and `checkpoint` the relay's
    /// checkpoint row.
    pub fn set_slot(&self, asked: Instant, slot: Option<SlotState>, checkpoint: Option<ObservedCheckpoint>) {
        let mut state = self.state();
        state.observed.failure = None;
        state.observed.checkpoint = checkpoint.map(|checkpoint| (asked, checkpoint));
        state.set_slot(asked, slot, checkpoint.map(|checkpoint| checkpoint.age));
    }

    /// The same over the session's own connection, which works while the observer cannot connect.
    pub fn set_slot_by_session(&self, asked: Instant, slot: Option<SlotState>) {
        let mut state = self.state();
        state.session.answered_at = Some(asked);
        state.set_slot(asked, slot, None);
    }

    /// The session is connected to this address. Other connections use the same one.
    pub fn set_server(&self, server: &Host) {
        self.state().session.server = Some(server.clone());
    }

    /// The address the session is connected to; `None` when there is no session.
    pub fn server(&self) -> Option<Host> {
        self.state().session.server.clone()
    }

    /// What the primary shows that decides whether a failover would succeed; `None` while that is not known.
    pub fn set_primary(&self, primary: Option<PrimaryState>) {
        self.state().failover.primary = primary;
    }

    pub fn set_standbys(&self, standbys: Vec<Standby>) {
        self.state().failover.standbys = standbys;
    }

    /// Whether delivery would continue if a standby were promoted now.
    pub fn failover_readiness(&self) -> FailoverReadiness {
        self.state().failover.readiness()
    }

    /// The server reported over the stream that it waits for a standby.
    pub fn set_awaited_standby(&self, notice: &str) {
        self.state().session.set_awaited_standby(notice);
    }

    /// The slot as the server shows it, all zero if it does not exist; `None` while it is not known.
    pub fn slot(&self) -> Option<SlotState> {
        let state = self.state();
        state.observed.is_current(Instant::now()).then(|| state.observed.slot.clone().unwrap_or_default())
    }

    /// Whether the database responds on any connection.
    pub fn is_connected(&self) -> bool {
        self.state().is_connected(Instant::now())
    }

    /// Whether another relay holds the slot.
    pub fn is_standby(&self) -> bool {
        self.state().phase == Phase::Standby
    }

    /// Waits until the server shows that the slot is free, or until the slot cannot be observed. A standby that
    /// connects only then leaves neither connections nor errors in the server log.
    pub async fn slot_released(&self) {
        let since = Instant::now();
        loop {
            tokio::time::sleep(STANDBY_POLL_INTERVAL).await;
            let state = self.state();
            let observed = &state.observed;
            let is_newer = observed.at.is_some_and(|at| at > since);
            if observed.failure.is_some() || (is_newer && !observed.is_held()) {
                return;
            }
        }
    }

    /// The observer's query of `asked` failed.
    pub fn on_observer_failed(&self, asked: Instant, why: String) {
        self.state().observed.on_failed(asked, why);
    }

    /// Calls `judge` with the last observation of the slot.
    pub fn with_slot_seen<T>(&self, judge: impl FnOnce(LastSlotObservation<'_>) -> T) -> T {
        let state = self.state();
        let observed = &state.observed;
        judge(observed.at.map(|asked| (asked, observed.slot.as_ref())))
    }

    /// The heartbeat to send now: prefix and content, if the stream is open and one is due.
    pub fn take_due_heartbeat(&self) -> Option<(String, String)> {
        let mut state = self.state();
        if state.phase != Phase::Streaming {
            return None;
        }
        let content = state.heartbeat.take_due(Instant::now())?;
        Some((state.heartbeat.prefix().to_owned(), content))
    }

    /// The server refused the heartbeat. Returns whether for the first time.
    pub fn on_heartbeat_refused(&self) -> bool {
        self.state().heartbeat.on_refused()
    }

    pub fn on_heartbeat_not_sent(&self) {
        self.state().heartbeat.on_send_failed();
    }

    /// A logical message arrived through the stream.
    pub fn on_stream_message(&self, prefix: &str, content: &[u8]) {
        self.state().heartbeat.on_returned(prefix, content);
    }

    /// Age of the newest heartbeat that came back; `None` while none is expected.
    pub fn heartbeat_age(&self) -> Option<Duration> {
        self.state().heartbeat_age(Instant::now())
    }

    /// For how long no connection has held the slot.
    pub fn slot_inactive_for(&self) -> Duration {
        self.state().observed.inactive_for(Instant::now())
    }

    /// Age in seconds of the oldest committed row that Kafka has not acknowledged. For rows that were read: from their
    /// commit time. For unread rows: from the moment the server's WAL position first exceeded the acknowledged one;
    /// after a start from the age of the checkpoint, until they are read. 0 when caught up.
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

    /// Records the present problem, and when the last one ended, for `/status`. Called regularly.
    pub fn record_problem(&self) {
        let mut state = self.state();
        let problem = state.problem(Instant::now());
        state.problems.record(problem);
    }

    /// For `/status`.
    pub fn json(&self) -> Value {
        status_json::json(&self.state(), Instant::now())
    }
}

#[cfg(test)]
mod tests;
