//! The observed facts, and what follows from them: is anything wrong, and how far behind is delivery? Evaluated at each
//! request.

use std::collections::BTreeMap;
use std::time::{Duration, Instant, SystemTime};

use outbox::Position;
use pg_replication::{Host, PgTime};

use super::failover::FailoverState;
use super::heartbeat::Heartbeat;
use super::signals::{Maintenance, ObservedCheckpoint, Phase, SessionStats, SilentPartition, StallReason};
use super::unread_lag::UnreadLag;
use crate::error::ErrorKind;
use crate::event::dead_letter::DeadLetterSummary;
use crate::progress::phantoms::Phantoms;
use crate::status::SlotState;

/// No progress for this long makes the relay not ready: a fault shows within 10 s, and a leader change or a checkpoint
/// of the server is not taken for one.
const STALLED_AFTER: Duration = Duration::from_secs(5);
/// When queries have failed for this long, in addition to their timeout, the database counts as unreachable.
const UNREACHABLE_AFTER: Duration = Duration::from_secs(2);

/// An older observation of the slot is not shown as current.
const CURRENT_FOR: Duration = Duration::from_secs(10);

/// An idle relay confirms only every 10 s. A standby sees nothing but those confirmations, so it reports no lag below
/// this.
const IDLE_CONFIRM_WITHIN: Duration = Duration::from_secs(15);

pub(super) struct State {
    pub(super) about: RelayInfo,
    pub(super) started: SystemTime,
    pub(super) phase: Phase,
    pub(super) phase_since: SystemTime,
    pub(super) error: Option<Problem>,
    /// The error that ended an open stream, until delivery has passed it.
    pub(super) unresolved: Option<Problem>,
    /// A row that cannot be delivered.
    pub(super) poison: Option<Problem>,
    /// Topics that do not exist, and since when that is known.
    pub(super) missing: BTreeMap<String, SystemTime>,
    pub(super) last: Option<LastProblem>,
    pub(super) numbers: SessionStats,
    /// When the session last reported.
    pub(super) ticked: Instant,
    /// Last time Kafka acknowledged something, or nothing waited.
    pub(super) acknowledged_moved: Instant,
    pub(super) acknowledged_at: Option<SystemTime>,
    /// Last time the stream brought something new.
    pub(super) received_moved: Instant,
    pub(super) unread: UnreadLag,
    pub(super) slot: Option<SlotState>,
    /// When the slot was queried.
    pub(super) slot_seen: Option<Instant>,
    /// Since when no connection holds it, as observed by this process.
    pub(super) slot_idle: Option<Instant>,
    /// Since when the observer's queries fail, and why.
    pub(super) observer_failure: Option<(Instant, String)>,
    /// When the session's own connection was last queried with success.
    pub(super) session_answered: Option<Instant>,
    /// The address the session is connected to.
    pub(super) server: Option<Host>,
    /// The server's last notice about a standby it waits for, until the stream moves again.
    pub(super) awaited_standby: Option<String>,
    pub(super) checkpoint: Option<(Instant, ObservedCheckpoint)>,
    pub(super) failover: FailoverState,
    /// Whether Kafka responded last; `None` before the first answer.
    pub(super) kafka: Option<bool>,
    pub(super) kafka_changed: Instant,
    pub(super) kafka_says: Option<String>,
    /// Partitions without progress, the longest silent first.
    pub(super) silent: Vec<SilentPartition>,
    pub(super) heartbeat: Heartbeat,
    pub(super) phantoms: Phantoms,
    pub(super) maintenance: Option<Maintenance>,
    pub(super) dead_letters: DeadLetters,
}

impl State {
    pub(super) fn move_to(&mut self, phase: Phase) {
        if self.phase != phase {
            self.phase = phase;
            self.phase_since = SystemTime::now();
        }
    }

    pub(super) fn is_ready(&self, problem: Option<&Problem>) -> bool {
        problem.is_none() && matches!(self.phase, Phase::Copying | Phase::Streaming | Phase::Standby)
    }

    /// What interrupts delivery. A standby has nothing to deliver, so standing by is no problem.
    pub(super) fn problem(&self, now: Instant) -> Option<Problem> {
        match self.phase {
            Phase::Standby => None,
            Phase::Copying | Phase::Streaming | Phase::Draining => {
                let blocked = self.poison.clone().or_else(|| self.topic_missing());
                let standing = blocked.or_else(|| self.slot_gone()).or_else(|| self.stall(now));
                standing.or_else(|| self.error.clone())
            }
            Phase::Starting | Phase::Waiting | Phase::Stopped => self.error.clone(),
        }
    }

    /// Whether a stream is open.
    pub(super) fn is_open(&self) -> bool {
        matches!(self.phase, Phase::Copying | Phase::Streaming | Phase::Draining)
    }

    /// Remembers what ended an open stream. It is over only when delivery has passed this error and those before it.
    pub(super) fn set_unresolved(&mut self, shown: Problem) {
        let before = self.unresolved.as_ref().and_then(|before| before.at);
        let blocked = self.poison.as_ref().and_then(|poison| poison.at);
        self.unresolved = Some(Problem { at: shown.at.max(before).max(blocked), ..shown });
    }

    /// Forgets the error that ended the previous stream, if it matches.
    pub(super) fn clear_unresolved(&mut self, kind: impl Fn(&Problem) -> bool) {
        if self.unresolved.as_ref().is_some_and(kind) {
            self.unresolved = None;
            self.error = None;
        }
    }

    /// The next session has to find these out again.
    pub(super) fn clear_session(&mut self) {
        self.poison = None;
        self.silent.clear();
        self.missing.clear();
    }

    fn topic_missing(&self) -> Option<Problem> {
        let (topic, since) = self.missing.iter().min_by_key(|(_, since)| **since)?;
        let what = match self.missing.len() {
            1 => format!("topic {topic} does not exist"),
            more => format!("topic {topic} does not exist, and {} more", more - 1),
        };
        Some(Problem { reason: ErrorKind::TopicMissing, what, since: *since, at: None })
    }

    /// The server has invalidated the slot, while the stream from it may still look open.
    fn slot_gone(&self) -> Option<Problem> {
        let lost = self.slot.as_ref().filter(|slot| slot.is_lost())?;
        Some(Problem::new(ErrorKind::SlotLost, lost.loss_reason(), Duration::ZERO))
    }

    /// The duration is not part of the text: a text that changes every second would be logged and stored every second.
    fn stall(&self, now: Instant) -> Option<Problem> {
        let stalled = |since: Instant| {
            let lasted = now.saturating_duration_since(since);
            (lasted > STALLED_AFTER).then_some(lasted)
        };
        if let Some(lasted) = stalled(self.ticked) {
            let what = "the relay's event loop is stalled";
            return Some(Problem::new(ErrorKind::StreamStalled, what, lasted));
        }
        if let Some((unseen, why)) = self.unanswered(now) {
            let what = format!("PostgreSQL does not respond: {why}");
            return Some(Problem::new(ErrorKind::DatabaseUnreachable, what, unseen));
        }
        if let Some(lasted) = self.numbers.writing_since.and_then(stalled) {
            let what = "the checkpoint write does not complete";
            return Some(Problem::new(ErrorKind::CheckpointStalled, what, lasted));
        }
        if self.kafka == Some(false) {
            let lasted = now.saturating_duration_since(self.kafka_changed);
            let says = self.kafka_says.as_ref().map(|says| format!(": {says}")).unwrap_or_default();
            return Some(Problem::new(
                ErrorKind::KafkaUnreachable,
                format!("Kafka does not respond{says}"),
                lasted,
            ));
        }
        if let Some(shown) = self.silent_partition(now) {
            return Some(shown);
        }
        if self.numbers.oldest_commit.is_some()
            && let Some(lasted) = stalled(self.acknowledged_moved)
        {
            let rows = match self.numbers.hold_up {
                Some(StallReason::Partition) => "rows wait for their partition",
                _ => "rows wait",
            };
            let what = format!("{rows}, and Kafka does not acknowledge");
            return Some(Problem::new(ErrorKind::NoAcknowledgement, what, lasted));
        }
        let beyond = self.unread.beyond(self.numbers.received, now);
        if self.numbers.hold_up.is_none()
            && self.slot_is_known(now)
            && beyond > STALLED_AFTER
            && let Some(lasted) = stalled(self.received_moved)
        {
            let what = "the server has WAL that was not read, and nothing arrives on the stream";
            return Some(match self.standby_waited_for() {
                Some(why) => Problem::new(ErrorKind::WaitingForStandby, format!("{what}: {why}"), lasted),
                None => Problem::new(ErrorKind::StreamStalled, what, lasted),
            });
        }
        None
    }

    /// The partition that has been silent longest, even while others progress.
    fn silent_partition(&self, now: Instant) -> Option<Problem> {
        let lasted = |silent: &SilentPartition| now.saturating_duration_since(silent.since);
        let mut silent = self.silent.iter().filter(|silent| lasted(silent) > STALLED_AFTER);
        let first = silent.next()?;
        let what = match silent.count() {
            0 => first.text(now),
            more => format!("{}, and {more} more", first.text(now)),
        };
        Some(Problem::new(ErrorKind::NoAcknowledgement, what, lasted(first)))
    }

    /// The standby the server waits for before it sends more, if that is the cause.
    fn standby_waited_for(&self) -> Option<String> {
        let setting = self.slot.as_ref().and_then(|slot| slot.waits_for_standbys.as_ref());
        let waits = setting.map(|slots| {
            format!("it waits for the standbys that synchronized_standby_slots = '{slots}' names")
        });
        let says = self.awaited_standby.as_ref().map(|notice| format!("PostgreSQL says: {notice}"));
        match (waits, says) {
            (Some(waits), Some(says)) => Some(format!("{waits}; {says}")),
            (waits, says) => waits.or(says),
        }
    }

    /// For how long the database has answered neither the observer nor the session and has sent nothing, and why. A
    /// failure of only one connection decides nothing.
    fn unanswered(&self, now: Instant) -> Option<(Duration, &str)> {
        let (since, why) = self.observer_failure.as_ref()?;
        let answered = self.session_answered.map_or(self.received_moved, |at| at.max(self.received_moved));
        let unseen = now.saturating_duration_since(answered.max(*since));
        (unseen > UNREACHABLE_AFTER).then_some((unseen, why))
    }

    pub(super) fn is_connected(&self, now: Instant) -> bool {
        self.slot_seen.is_some() && self.unanswered(now).is_none()
    }

    /// Whether the last observation of the slot is recent enough to be shown as current.
    pub(super) fn slot_is_known(&self, now: Instant) -> bool {
        self.slot_seen.is_some_and(|seen| now.saturating_duration_since(seen) <= CURRENT_FOR)
    }

    /// The server showed this state of the slot when it was queried at `asked`.
    pub(super) fn set_slot(
        &mut self,
        asked: Instant,
        slot: Option<SlotState>,
        checkpoint_age: Option<Duration>,
    ) {
        self.slot_seen = Some(asked);
        let idle = slot.as_ref().is_some_and(|slot| slot.active_pid.is_none());
        self.slot_idle = if idle { Some(self.slot_idle.unwrap_or(asked)) } else { None };
        if let Some(slot) = &slot {
            self.unread.on_acknowledged(slot.confirmed.unwrap_or_default());
            if let Some(current) = slot.current {
                self.unread.on_observed(current, asked, checkpoint_age);
            }
        }
        self.slot = slot;
    }

    pub(super) fn lag(&self, now: Instant) -> Duration {
        let read = self.numbers.oldest_commit.map_or(0, |commit| {
            // Negative when the database's clock is ahead of this machine's.
            PgTime::now().as_micros().saturating_sub(commit.as_micros()).max(0)
        });
        let unread = match self.phase {
            Phase::Standby => self.unread.age(now).saturating_sub(IDLE_CONFIRM_WITHIN),
            _ => self.unread.age(now),
        };
        Duration::from_micros(read.unsigned_abs()).max(unread)
    }

    /// A standby sends no heartbeats, and its last may be days old.
    pub(super) fn heartbeat_age(&self, now: Instant) -> Option<Duration> {
        self.heartbeat.age(now).filter(|_| self.phase != Phase::Standby)
    }

    pub(super) fn slot_inactive(&self, now: Instant) -> Duration {
        let Some(since) = self.slot_idle else { return Duration::ZERO };
        let seen = self.slot_seen.map_or(Duration::ZERO, |seen| now.saturating_duration_since(seen));
        let reported = self.slot.as_ref().and_then(|slot| slot.inactive_for);
        reported.map_or_else(|| now.saturating_duration_since(since), |reported| reported + seen)
    }
}

/// Why delivery is interrupted, as shown.
#[derive(Clone, Debug)]
pub(super) struct Problem {
    pub(super) reason: ErrorKind,
    pub(super) what: String,
    pub(super) since: SystemTime,
    /// The row that has to be delivered before the problem counts as resolved, where one is known.
    pub(super) at: Option<Position>,
}

impl Problem {
    pub(super) fn new(reason: ErrorKind, what: impl Into<String>, lasted: Duration) -> Problem {
        Problem { reason, what: what.into(), since: SystemTime::now() - lasted, at: None }
    }
}

/// The last problem, whether it is over or not.
#[derive(Clone, Debug)]
pub(super) struct LastProblem {
    pub(super) shown: Problem,
    pub(super) until: Option<SystemTime>,
}

/// Names from the configuration that are shown.
#[derive(Clone, Debug, Default)]
pub(super) struct RelayInfo {
    pub(super) name: String,
    pub(super) host: String,
    pub(super) port: u16,
    pub(super) database: String,
    pub(super) table: String,
    pub(super) publication: String,
    pub(super) slot: String,
    pub(super) bootstrap_servers: String,
    pub(super) max_in_flight_events: usize,
    pub(super) max_in_flight_bytes: usize,
}

/// Rows that became dead letters since the process started.
#[derive(Default)]
pub(super) struct DeadLetters {
    pub(super) count: u64,
    pub(super) last: Option<(DeadLetterSummary, SystemTime)>,
}
