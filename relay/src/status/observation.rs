//! The last observation of the slot and the checkpoint row.

use std::time::{Duration, Instant};

use super::problems::Problem;
use super::signals::ObservedCheckpoint;
use super::slot_state::SlotState;
use crate::error::ErrorKind;

/// An older observation of the slot is not shown as current.
const CURRENT_FOR: Duration = Duration::from_secs(10);

#[derive(Default)]
pub(super) struct Observation {
    /// `None` while there is no slot, or before it was first observed.
    pub(super) slot: Option<SlotState>,
    /// When the slot was queried.
    pub(super) at: Option<Instant>,
    /// Since when no connection holds it, as observed by this process.
    idle_since: Option<Instant>,
    /// Since when the observer's queries fail, and why.
    pub(super) failure: Option<(Instant, String)>,
    pub(super) checkpoint: Option<(Instant, ObservedCheckpoint)>,
}

impl Observation {
    /// The server showed this state of the slot when it was queried at `asked`.
    pub(super) fn set_slot(&mut self, asked: Instant, slot: Option<SlotState>) {
        let is_idle = slot.as_ref().is_some_and(|slot| slot.active_pid.is_none());
        self.idle_since = is_idle.then(|| self.idle_since.unwrap_or(asked));
        self.at = Some(asked);
        self.slot = slot;
    }

    /// The observer's query of `asked` failed.
    pub(super) fn on_failed(&mut self, asked: Instant, why: String) {
        let since = self.failure.as_ref().map_or(asked, |(since, _)| *since);
        self.failure = Some((since, why));
    }

    /// Whether the observation is recent enough to be shown as current.
    pub(super) fn is_current(&self, now: Instant) -> bool {
        self.at.is_some_and(|at| now.saturating_duration_since(at) <= CURRENT_FOR)
    }

    /// Whether a connection holds the slot.
    pub(super) fn is_held(&self) -> bool {
        self.slot.as_ref().is_some_and(|slot| slot.active_pid.is_some())
    }

    /// The server has invalidated the slot, while the stream from it may still look open.
    pub(super) fn slot_lost(&self) -> Option<Problem> {
        let lost = self.slot.as_ref().filter(|slot| slot.is_lost())?;
        Some(Problem::new(ErrorKind::SlotLost, lost.loss_reason(), Duration::ZERO))
    }

    /// For how long no connection has held the slot.
    pub(super) fn inactive_for(&self, now: Instant) -> Duration {
        let Some(since) = self.idle_since else { return Duration::ZERO };
        let seen = self.at.map_or(Duration::ZERO, |at| now.saturating_duration_since(at));
        let reported = self.slot.as_ref().and_then(|slot| slot.inactive_for);
        reported.map_or_else(|| now.saturating_duration_since(since), |reported| reported + seen)
    }

    /// The standby slots that the walsender waits for, as a sentence.
    pub(super) fn awaited_standbys(&self) -> Option<String> {
        let slots = self.slot.as_ref()?.waits_for_standbys.as_ref()?;
        Some(format!("it waits for the standbys that synchronized_standby_slots = '{slots}' names"))
    }
}
