//! What was found, as conditions: every type of condition is there from the first reconciliation on, with a reason, and its time changes
//! only with its status.

mod field_names;
mod reason;
mod state;

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use k8s_openapi::jiff::Timestamp;

pub use self::reason::{Outlook, Reason, markdown};
pub use self::state::{ConditionState, ConditionType, Status};

/// So long a problem that needs a person is still taken for one on the way: a Secret may come a moment after the resource that refers to it.
const STALLED_AFTER_SECONDS: i64 = 30;

/// The conditions that one step has found out about.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StepConditions(BTreeMap<ConditionType, ConditionState>);

impl StepConditions {
    /// What was found out about one condition.
    pub fn of(type_: ConditionType, state: ConditionState) -> StepConditions {
        StepConditions([(type_, state)].into())
    }

    /// Records what was found.
    pub fn set(&mut self, type_: ConditionType, state: ConditionState) {
        self.0.insert(type_, state);
    }

    /// Adds a sentence to what was found, whatever that is.
    pub fn add_note(&mut self, type_: ConditionType, note: &str) {
        if let Some(state) = self.0.get_mut(&type_) {
            let separator = if state.message.is_empty() { "" } else { "; " };
            state.message.push_str(separator);
            state.message.push_str(note);
        }
    }
}

/// What a resource is meant to become, which decides what `Ready` means.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Goal {
    Streaming,
    /// `spec.suspend`.
    Suspended,
    /// It is being deleted, and is still there for a reason.
    Deleted {
        waits_for: String,
    },
}

/// The conditions that one reconciliation has found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Conditions {
    found: BTreeMap<ConditionType, ConditionState>,
    goal: Goal,
}

impl Conditions {
    /// Nothing was observed yet.
    pub fn new(is_suspended: bool) -> Conditions {
        let not_reached = ConditionState::unknown(Reason::NotReached, "something before it failed");
        let mut found: BTreeMap<ConditionType, ConditionState> =
            ConditionType::ALL.map(|type_| (type_, not_reached.clone())).into();
        let (goal, suspension) = match is_suspended {
            true => (
                Goal::Suspended,
                ConditionState::no(
                    Reason::Suspending,
                    "spec.suspend is true; whether pods are left is not known yet",
                ),
            ),
            false => (Goal::Streaming, ConditionState::no(Reason::Running, "")),
        };
        found.insert(ConditionType::Suspended, suspension);
        Conditions { found, goal }
    }

    /// Those of a resource that is being deleted, and waits for something.
    pub fn of_deletion(is_suspended: bool, waits_for: String) -> Conditions {
        Conditions { goal: Goal::Deleted { waits_for }, ..Conditions::new(is_suspended) }
    }

    /// Records what was found.
    pub fn set(&mut self, type_: ConditionType, state: ConditionState) {
        self.found.insert(type_, state);
    }

    /// Records what a step has found.
    pub fn extend(&mut self, step: StepConditions) {
        self.found.extend(step.0);
    }

    /// Whether everything is as it should be.
    pub fn is_ready(&self) -> bool {
        self.summary().status == Status::True
    }

    /// Whether a step has come to it.
    pub fn is_reached(&self, type_: ConditionType) -> bool {
        self.found.get(&type_).is_some_and(|state| state.reason != Reason::NotReached)
    }

    /// Whether it is as it should be.
    pub fn status(&self, type_: ConditionType) -> Status {
        self.found.get(&type_).map_or(Status::Unknown, |state| state.status)
    }

    /// The first that is not as it should be, in the order in which things are done. A transient problem hides none that
    /// you have to correct.
    pub fn summary(&self) -> ConditionState {
        match &self.goal {
            Goal::Deleted { waits_for } => ConditionState::no(Reason::Deleting, waits_for),
            // A resource that is as it was asked to be is ready: tools that wait for it must not time out.
            Goal::Suspended => self
                .found
                .get(&ConditionType::Suspended)
                .cloned()
                .unwrap_or_else(|| ConditionState::no(Reason::Suspending, "")),
            Goal::Streaming => self.first_problem(),
        }
    }

    fn first_problem(&self) -> ConditionState {
        let checked = self.found.iter().filter(|(type_, _)| type_.counts_for_ready());
        let with = |status| checked.clone().filter(move |(_, state)| state.status == status);
        // Pods come after the slot, and are missing for a moment at every start.
        let is_late =
            |(_, state): &(&ConditionType, &ConditionState)| state.reason == Reason::ProgressDeadlineExceeded;
        let lasts = |found: &(&ConditionType, &ConditionState)| {
            let (_, state) = found;
            let is_missing_pod = matches!(state.reason, Reason::NoPod | Reason::NoPodReady);
            !is_missing_pod && !is_late(found) && !state.reason.passes()
        };
        match with(Status::False)
            .find(lasts)
            // What the relay reports says more: a database that is down, for example, which it waits for.
            .or_else(|| with(Status::False).find(is_late))
            .or_else(|| with(Status::False).next())
            .or_else(|| with(Status::Unknown).find(|(_, state)| state.reason != Reason::NoCredentials))
        {
            None => ConditionState::yes(Reason::Streaming, "a relay delivers"),
            Some((type_, state)) => {
                ConditionState { message: format!("{type_}: {}", state.message), ..state.clone() }
            }
        }
    }

    /// As conditions of `generation`; those that were there before keep their time while their status stays.
    pub fn conditions(
        mut self,
        before: &[Condition],
        generation: Option<i64>,
        now: Timestamp,
    ) -> Vec<Condition> {
        let summary = self.summary();
        // Conditions have seconds; a part of one would differ from what is read back.
        let now = Timestamp::from_second(now.as_second()).unwrap_or(now);
        let since = transition(before, ConditionType::Ready, &summary, now);
        let lasts = now.as_second() - since.0.as_second() >= STALLED_AFTER_SECONDS;
        let [reconciling, stalled] = progress(&summary, lasts);
        self.set(ConditionType::Ready, summary);
        self.set(ConditionType::Reconciling, reconciling);
        self.set(ConditionType::Stalled, stalled);
        let condition = |(type_, state): (ConditionType, ConditionState)| Condition {
            last_transition_time: transition(before, type_, &state, now),
            message: state.message.clone(),
            observed_generation: generation,
            reason: state.reason.to_string(),
            status: state.status.as_str().to_owned(),
            type_: type_.to_string(),
        };
        self.found.into_iter().map(condition).collect()
    }
}

/// Since when a condition has the status that it has now.
fn transition(before: &[Condition], type_: ConditionType, state: &ConditionState, now: Timestamp) -> Time {
    let (type_, status) = (type_.to_string(), state.status.as_str());
    let same = before.iter().find(|known| known.type_ == type_ && known.status == status);
    same.map_or(Time(now), |known| known.last_transition_time.clone())
}

/// `Reconciling` and `Stalled` by `Ready`, and by whether it `lasts`. At most one of them is True; tools keep waiting for the first
/// and give up at the second.
fn progress(ready: &ConditionState, lasts: bool) -> [ConditionState; 2] {
    let yes = || ConditionState::yes(ready.reason.clone(), ready.message.clone());
    let no = || ConditionState::no(ready.reason.clone(), "");
    match (ready.status, ready.reason.outlook()) {
        (Status::True, _) => [no(), no()],
        (Status::False, Outlook::NeedsAction) if lasts => [no(), yes()],
        _ => [yes(), no()],
    }
}

#[cfg(test)]
mod tests {
    use outbox_relay::error;
    use outbox_relay::status::failover_readiness::FailoverReason;

    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    fn ready(conditions: &Conditions) -> (String, String) {
        let written = conditions.clone().conditions(&[], None, at(0));
        let ready = written.into_iter().find(|condition| condition.type_ == "Ready").unwrap();
        (ready.status, ready.reason)
    }

    fn all_well() -> Conditions {
        let mut conditions = Conditions::new(false);
        for type_ in ConditionType::ALL.into_iter().filter(|type_| *type_ != ConditionType::Suspended) {
            conditions.set(type_, ConditionState::yes(Reason::Present, ""));
        }
        conditions
    }

    #[test]
    fn every_condition_is_there_from_the_first_pass() {
        let conditions = Conditions::new(false).conditions(&[], Some(1), at(0));
        let types: Vec<&str> = conditions.iter().map(|condition| condition.type_.as_str()).collect();
        assert_eq!(types.len(), 13);
        assert!(conditions.iter().all(|condition| !condition.reason.is_empty()));
        assert_eq!(ready(&Conditions::new(false)), ("Unknown".into(), "NotReached".into()));
    }

    #[test]
    fn ready_names_what_is_wrong_first_and_suspension_before_all() {
        assert_eq!(ready(&all_well()).0, "True");
        let mut conditions = all_well();
        conditions.set(ConditionType::Streaming, ConditionState::unknown(Reason::NotReached, ""));
        conditions.set(ConditionType::TopicsReady, ConditionState::no(Reason::NotAsDeclared, ""));
        assert_eq!(ready(&conditions), ("False".into(), "NotAsDeclared".into()));
        conditions.set(ConditionType::SlotReady, ConditionState::no(Reason::WaitingForRelay, ""));
        conditions.set(ConditionType::TopicsReady, ConditionState::yes(Reason::AsDeclared, ""));
        conditions.set(ConditionType::WorkloadAvailable, ConditionState::no(Reason::NotMade, ""));
        assert_eq!(ready(&conditions), ("False".into(), "NotMade".into()), "the slot is waited for in vain");
        conditions.goal = Goal::Suspended;
        conditions.set(ConditionType::Suspended, ConditionState::yes(Reason::Suspended, ""));
        assert_eq!(ready(&conditions), ("True".into(), "Suspended".into()), "as it was asked to be");
        assert_eq!(ready(&Conditions::new(true)), ("False".into(), "Suspending".into()));
    }

    #[test]
    fn a_standby_without_the_slot_does_not_change_ready() {
        for state in [
            ConditionState::no(FailoverReason::SlotNotSynchronized, ""),
            ConditionState::unknown(Reason::NotReported, ""),
        ] {
            let mut conditions = all_well();
            conditions.set(ConditionType::FailoverReady, state);
            assert_eq!(ready(&conditions).0, "True");
        }
    }

    /// kstatus's rules for resources of any kind.
    fn kstatus(conditions: &[Condition]) -> &'static str {
        let status = |type_: &str| {
            conditions.iter().find(|condition| condition.type_ == type_).map(|found| found.status.as_str())
        };
        match (status("Stalled"), status("Reconciling"), status("Ready")) {
            (Some("True"), ..) => "Failed",
            (_, Some("True"), _) | (.., Some("False" | "Unknown")) => "InProgress",
            _ => "Current",
        }
    }

    #[test]
    fn tools_that_wait_know_what_to_wait_for() {
        let of = |conditions: &Conditions, since: i64, now: i64| {
            let before = conditions.clone().conditions(&[], Some(1), at(since));
            kstatus(&conditions.clone().conditions(&before, Some(1), at(now)))
        };
        assert_eq!(of(&all_well(), 0, 100), "Current");
        assert_eq!(of(&Conditions::new(false), 0, 100), "InProgress");
        let with = |type_, state| {
            let mut conditions = all_well();
            conditions.set(type_, state);
            conditions
        };
        let missing =
            with(ConditionType::ReferencesResolved, ConditionState::no(Reason::SecretUnusable, "no Secret"));
        assert_eq!(of(&missing, 0, 29), "InProgress", "it may be on its way");
        assert_eq!(of(&missing, 0, 30), "Failed");
        let mut refused =
            with(ConditionType::WorkloadAvailable, ConditionState::no(Reason::PodsRefused, "exceeded quota"));
        refused.set(ConditionType::SlotReady, ConditionState::no(Reason::WaitingForRelay, ""));
        refused.set(ConditionType::Streaming, ConditionState::no(Reason::NoPod, ""));
        assert_eq!(ready(&refused), ("False".into(), "PodsRefused".into()));
        assert_eq!(of(&refused, 0, 30), "Failed");
        let late = ConditionState::no(Reason::ProgressDeadlineExceeded, "no such image");
        let mut late = with(ConditionType::WorkloadAvailable, late);
        late.set(ConditionType::SlotReady, ConditionState::no(Reason::WaitingForRelay, ""));
        assert_eq!(ready(&late), ("False".into(), "ProgressDeadlineExceeded".into()));
        assert_eq!(of(&late, 0, 30), "Failed");
        late.set(
            ConditionType::Streaming,
            ConditionState::no(error::ErrorKind::KafkaUnreachable, "the relay tries again"),
        );
        assert_eq!(of(&late, 0, 1000), "InProgress");
        let away = with(
            ConditionType::DatabaseReachable,
            ConditionState::no(error::ErrorKind::DatabaseUnreachable, ""),
        );
        assert_eq!(of(&away, 0, 1000), "InProgress");
        let lost = with(ConditionType::Streaming, ConditionState::no(error::ErrorKind::SlotLost, ""));
        assert_eq!(of(&lost, 0, 1000), "Failed");
        let mut suspended = Conditions::new(true);
        assert_eq!(of(&suspended, 0, 1000), "InProgress", "pods are left");
        suspended.set(ConditionType::Suspended, ConditionState::yes(Reason::Suspended, ""));
        assert_eq!(of(&suspended, 0, 0), "Current");
    }

    #[test]
    fn a_condition_keeps_its_time_while_its_status_stays() {
        let first = all_well().conditions(&[], Some(1), at(10));
        let mut conditions = all_well();
        conditions.set(ConditionType::KafkaReachable, ConditionState::no(Reason::KafkaUnreachable, "away"));
        let second = conditions.conditions(&first, Some(2), at(20));
        let times: BTreeMap<_, _> = second
            .iter()
            .map(|condition| (condition.type_.as_str(), condition.last_transition_time.0.as_second()))
            .collect();
        assert_eq!((times["KafkaReachable"], times["Ready"], times["SlotReady"]), (20, 20, 10));
        assert!(second.iter().all(|condition| condition.observed_generation == Some(2)));
    }
}
