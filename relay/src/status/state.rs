//! The observed facts, and what follows from them: is anything wrong, and how far behind is delivery? Evaluated at each
//! request.

use std::time::{Duration, Instant, SystemTime};

use super::failover_readiness::FailoverState;
use super::heartbeat::Heartbeat;
use super::kafka_state::KafkaState;
use super::observation::Observation;
use super::problems::{Problem, Problems};
use super::session_state::SessionState;
use super::signals::{Maintenance, Phase, SessionStats, StallReason};
use super::slot_state::SlotState;
use super::unread_lag::UnreadLag;
use crate::config::Config;
use crate::error::ErrorKind;
use crate::event::dead_letter::DeadLetterSummary;
use crate::progress::phantoms::Phantoms;

/// No progress for this long makes the relay not ready: a fault shows within 10 s, and a leader change or a checkpoint
/// of the server is not taken for one.
pub(super) const STALLED_AFTER: Duration = Duration::from_secs(5);
/// When queries have failed for this long, in addition to their timeout, the database counts as unreachable.
const UNREACHABLE_AFTER: Duration = Duration::from_secs(2);

/// An idle relay confirms only every 10 s. A standby sees nothing but those confirmations, so it reports no lag below
/// this.
const IDLE_CONFIRM_WITHIN: Duration = Duration::from_secs(15);

pub(super) struct State {
    pub(super) config: Config,
    pub(super) started: SystemTime,
    pub(super) phase: Phase,
    pub(super) phase_since: SystemTime,
    pub(super) problems: Problems,
    pub(super) session: SessionState,
    pub(super) kafka: KafkaState,
    pub(super) observed: Observation,
    pub(super) unread: UnreadLag,
    pub(super) heartbeat: Heartbeat,
    pub(super) failover: FailoverState,
    pub(super) phantoms: Phantoms,
    pub(super) maintenance: Option<Maintenance>,
    pub(super) dead_letters: DeadLetters,
}

impl State {
    pub(super) fn new(config: Config) -> State {
        let (now, time) = (Instant::now(), SystemTime::now());
        State {
            heartbeat: Heartbeat::new(&config),
            config,
            started: time,
            phase: Phase::Starting,
            phase_since: time,
            problems: Problems::default(),
            session: SessionState::new(now),
            kafka: KafkaState::new(now),
            observed: Observation::default(),
            unread: UnreadLag::default(),
            failover: FailoverState::default(),
            phantoms: Phantoms::default(),
            maintenance: None,
            dead_letters: DeadLetters::default(),
        }
    }

    pub(super) fn move_to(&mut self, phase: Phase) {
        if self.phase != phase {
            self.phase = phase;
            self.phase_since = SystemTime::now();
        }
    }

    pub(super) fn is_ready(&self, problem: Option<&Problem>) -> bool {
        problem.is_none() && (self.phase.delivers() || self.phase == Phase::Standby)
    }

    /// The next session has to find these out again.
    pub(super) fn clear_session(&mut self) {
        self.problems.clear_session();
        self.kafka.silent.clear();
    }

    /// What interrupts delivery. A standby has nothing to deliver, so standing by is no problem.
    pub(super) fn problem(&self, now: Instant) -> Option<Problem> {
        if self.phase == Phase::Standby {
            return None;
        }
        let of_stream = || {
            let blocked = self.problems.blocked_by();
            blocked.or_else(|| self.observed.slot_lost()).or_else(|| self.stall(now))
        };
        self.phase.has_stream().then(of_stream).flatten().or_else(|| self.problems.error.clone())
    }

    /// What has stalled on the open stream, the cause before its consequences.
    fn stall(&self, now: Instant) -> Option<Problem> {
        self.event_loop_stall(now)
            .or_else(|| self.database_stall(now))
            .or_else(|| self.checkpoint_stall(now))
            .or_else(|| self.kafka.unreachable(now))
            .or_else(|| self.kafka.silent_partition(now))
            .or_else(|| self.acknowledgement_stall(now))
            .or_else(|| self.stream_stall(now))
    }

    fn event_loop_stall(&self, now: Instant) -> Option<Problem> {
        let lasted = stalled_since(self.session.reported_at, now)?;
        Some(Problem::new(ErrorKind::StreamStalled, "the relay's event loop is stalled", lasted))
    }

    fn database_stall(&self, now: Instant) -> Option<Problem> {
        let (lasted, why) = self.unanswered(now)?;
        let what = format!("PostgreSQL does not respond: {why}");
        Some(Problem::new(ErrorKind::DatabaseUnreachable, what, lasted))
    }

    fn checkpoint_stall(&self, now: Instant) -> Option<Problem> {
        let lasted = stalled_since(self.session.stats.writing_since?, now)?;
        Some(Problem::new(ErrorKind::CheckpointStalled, "the checkpoint write does not complete", lasted))
    }

    /// The duration is not part of the text: a text that changes every second would be logged and stored every second.
    fn acknowledgement_stall(&self, now: Instant) -> Option<Problem> {
        let SessionStats { oldest_commit, stall_reason, .. } = self.session.stats;
        oldest_commit?;
        let lasted = stalled_since(self.kafka.progress_at, now)?;
        let rows = match stall_reason {
            Some(StallReason::Partition) => "rows wait for their partition",
            _ => "rows wait",
        };
        let what = format!("{rows}, and Kafka does not acknowledge");
        Some(Problem::new(ErrorKind::NoAcknowledgement, what, lasted))
    }

    fn stream_stall(&self, now: Instant) -> Option<Problem> {
        let SessionStats { received, stall_reason, .. } = self.session.stats;
        let has_unread = self.unread.beyond(received, now) > STALLED_AFTER;
        if stall_reason.is_some() || !self.observed.is_current(now) || !has_unread {
            return None;
        }
        let lasted = stalled_since(self.session.received_at, now)?;
        let what = "the server has WAL that was not read, and nothing arrives on the stream";
        Some(match self.awaited_standby() {
            Some(why) => Problem::new(ErrorKind::WaitingForStandby, format!("{what}: {why}"), lasted),
            None => Problem::new(ErrorKind::StreamStalled, what, lasted),
        })
    }

    /// The standby the server waits for before it sends more, if that is the cause.
    fn awaited_standby(&self) -> Option<String> {
        let says = self.session.awaited_standby.as_ref().map(|notice| format!("PostgreSQL says: {notice}"));
        match (self.observed.awaited_standbys(), says) {
            (Some(waits), Some(says)) => Some(format!("{waits}; {says}")),
            (waits, says) => waits.or(says),
        }
    }

    /// For how long the database has answered neither the observer nor the session and has sent nothing, and why. A
    /// failure of only one connection decides nothing.
    fn unanswered(&self, now: Instant) -> Option<(Duration, &str)> {
        let (since, why) = self.observed.failure.as_ref()?;
        let unseen = now.saturating_duration_since(self.session.last_sign().max(*since));
        (unseen > UNREACHABLE_AFTER).then_some((unseen, why))
    }

    pub(super) fn is_connected(&self, now: Instant) -> bool {
        self.observed.at.is_some() && self.unanswered(now).is_none()
    }

    /// The server showed this state of the slot when it was queried at `asked`.
    pub(super) fn set_slot(
        &mut self,
        asked: Instant,
        slot: Option<SlotState>,
        checkpoint_age: Option<Duration>,
    ) {
        if let Some(slot) = &slot {
            self.unread.on_acknowledged(slot.confirmed.unwrap_or_default());
            if let Some(current) = slot.current {
                self.unread.on_observed(current, asked, checkpoint_age);
            }
        }
        self.observed.set_slot(asked, slot);
    }

    pub(super) fn lag(&self, now: Instant) -> Duration {
        let unread = match self.phase {
            Phase::Standby => self.unread.age(now).saturating_sub(IDLE_CONFIRM_WITHIN),
            _ => self.unread.age(now),
        };
        self.session.read_lag().max(unread)
    }

    /// A standby sends no heartbeats, and its last may be days old.
    pub(super) fn heartbeat_age(&self, now: Instant) -> Option<Duration> {
        self.heartbeat.age(now).filter(|_| self.phase != Phase::Standby)
    }
}

/// For how long something has stalled that happened last at `last`.
fn stalled_since(last: Instant, now: Instant) -> Option<Duration> {
    let lasted = now.saturating_duration_since(last);
    (lasted > STALLED_AFTER).then_some(lasted)
}

/// Rows that became dead letters since the process started.
#[derive(Default)]
pub(super) struct DeadLetters {
    pub(super) count: u64,
    pub(super) last: Option<(DeadLetterSummary, SystemTime)>,
}
