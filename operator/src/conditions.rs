//! What was found, as conditions: every type of condition is there from the first reconciliation on, with a reason, and its time changes
//! only with its status.

mod reason;

use std::collections::BTreeMap;
use std::fmt::{self, Display};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use k8s_openapi::jiff::Timestamp;

pub use self::reason::{Outlook, Reason, markdown};

/// So long a problem that needs a person is still taken for one on the way: a Secret may come a moment after the resource that refers to it.
const STALLED_AFTER_SECONDS: i64 = 30;

/// A type of condition.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum ConditionType {
    /// Everything else, summed up.
    Ready,
    /// The Secrets are there, and the specification means something.
    ReferencesResolved,
    /// PostgreSQL answers, and can be used.
    DatabaseReachable,
    /// Kafka answers.
    KafkaReachable,
    /// The publication is there and suits.
    PublicationReady,
    /// The slot is there and suits.
    SlotReady,
    /// The topics are as they are declared.
    TopicsReady,
    /// A pod runs and is ready.
    WorkloadAvailable,
    /// The relay delivers, by its own account.
    Streaming,
    /// Nothing is meant to run.
    Suspended,
    /// kstatus: what is missing comes without help.
    Reconciling,
    /// kstatus: what is missing does not come without help.
    Stalled,
}

impl ConditionType {
    /// All of them, in the order in which things are done.
    pub const ALL: [ConditionType; 12] = [
        ConditionType::Ready,
        ConditionType::ReferencesResolved,
        ConditionType::DatabaseReachable,
        ConditionType::KafkaReachable,
        ConditionType::PublicationReady,
        ConditionType::SlotReady,
        ConditionType::TopicsReady,
        ConditionType::WorkloadAvailable,
        ConditionType::Streaming,
        ConditionType::Suspended,
        ConditionType::Reconciling,
        ConditionType::Stalled,
    ];

    /// Whether it is found out about something outside. The others are about what was found.
    fn is_observed(self) -> bool {
        !matches!(
            self,
            ConditionType::Ready
                | ConditionType::Suspended
                | ConditionType::Reconciling
                | ConditionType::Stalled
        )
    }
}

impl Display for ConditionType {
    /// API: the type of the condition, and a label of a metric.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            ConditionType::Ready => "Ready",
            ConditionType::ReferencesResolved => "ReferencesResolved",
            ConditionType::DatabaseReachable => "DatabaseReachable",
            ConditionType::KafkaReachable => "KafkaReachable",
            ConditionType::PublicationReady => "PublicationReady",
            ConditionType::SlotReady => "SlotReady",
            ConditionType::TopicsReady => "TopicsReady",
            ConditionType::WorkloadAvailable => "WorkloadAvailable",
            ConditionType::Streaming => "Streaming",
            ConditionType::Suspended => "Suspended",
            ConditionType::Reconciling => "Reconciling",
            ConditionType::Stalled => "Stalled",
        })
    }
}

/// What was found about one aspect.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConditionState {
    /// `None` where it could not be looked at.
    pub holds: Option<bool>,
    /// In one word.
    pub reason: Reason,
    /// In a sentence, with what to do.
    pub message: String,
}

impl ConditionState {
    /// It is as it should be.
    pub fn yes(reason: Reason, message: impl Into<String>) -> ConditionState {
        ConditionState { holds: Some(true), reason, message: message.into() }
    }

    /// It is not.
    pub fn no(reason: impl Into<Reason>, message: impl Into<String>) -> ConditionState {
        ConditionState { holds: Some(false), reason: reason.into(), message: message.into() }
    }

    /// It could not be looked at.
    pub fn unknown(reason: Reason, message: impl Into<String>) -> ConditionState {
        ConditionState { holds: None, reason, message: message.into() }
    }

    /// The status of a condition.
    pub fn status(&self) -> &'static str {
        match self.holds {
            Some(true) => "True",
            Some(false) => "False",
            None => "Unknown",
        }
    }
}

/// What was found in one reconciliation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Conditions {
    found: BTreeMap<ConditionType, ConditionState>,
    /// `spec.suspend`.
    suspended: bool,
    /// Why the resource, which is being deleted, is still there.
    deletion: Option<String>,
}

impl Conditions {
    /// Nothing was looked at yet.
    pub fn new(suspended: bool) -> Conditions {
        let not_reached = ConditionState::unknown(Reason::NotReached, "something before it failed");
        let mut findings: BTreeMap<ConditionType, ConditionState> =
            ConditionType::ALL.map(|aspect| (aspect, not_reached.clone())).into();
        let suspension = match suspended {
            true => ConditionState::no(
                Reason::Suspending,
                "spec.suspend is true; whether pods are left is not known yet",
            ),
            false => ConditionState::no(Reason::Running, ""),
        };
        findings.insert(ConditionType::Suspended, suspension);
        Conditions { found: findings, suspended, deletion: None }
    }

    /// Puts down what was found.
    pub fn set(&mut self, aspect: ConditionType, finding: ConditionState) {
        self.found.insert(aspect, finding);
    }

    /// Adds a sentence to what was found, whatever that is.
    pub fn add(&mut self, aspect: ConditionType, note: &str) {
        if let Some(finding) = self.found.get_mut(&aspect) {
            let separator = if finding.message.is_empty() { "" } else { "; " };
            finding.message.push_str(separator);
            finding.message.push_str(note);
        }
    }

    /// The resource is being deleted, and waits for this.
    pub fn deletion_waits(&mut self, why: String) {
        self.deletion = Some(why);
    }

    /// Whether everything is as it should be.
    pub fn is_well(&self) -> bool {
        self.summary().holds == Some(true)
    }

    /// Whether it was looked at.
    pub fn is_reached(&self, aspect: ConditionType) -> bool {
        self.found.get(&aspect).is_some_and(|finding| finding.reason != Reason::NotReached)
    }

    /// Whether it is not as it should be.
    pub fn fails(&self, aspect: ConditionType) -> bool {
        self.found.get(&aspect).is_some_and(|finding| finding.holds == Some(false))
    }

    /// What was found.
    pub fn holds(&self, aspect: ConditionType) -> bool {
        self.found.get(&aspect).is_some_and(|finding| finding.holds == Some(true))
    }

    /// The first that is not as it should be, in the order in which things are done. A transient problem hides none that
    /// you have to correct.
    pub fn summary(&self) -> ConditionState {
        if let Some(why) = &self.deletion {
            return ConditionState::no(Reason::Deleting, why);
        }
        if let Some(suspension) = self.found.get(&ConditionType::Suspended).filter(|_| self.suspended) {
            // A resource that is as it was asked to be is ready: tools that wait for it must not time out.
            return suspension.clone();
        }
        let checked = self.found.iter().filter(|(aspect, _)| aspect.is_observed());
        let wrong = |holds| checked.clone().filter(move |(_, finding)| finding.holds == holds);
        // Pods come after the slot, and are missing for a moment at every start.
        let lasts = |(_, finding): &(&ConditionType, &ConditionState)| {
            !matches!(finding.reason, Reason::NoPod | Reason::NoPodReady) && !finding.reason.passes()
        };
        match wrong(Some(false))
            .find(lasts)
            .or_else(|| wrong(Some(false)).next())
            .or_else(|| wrong(None).find(|(_, finding)| finding.reason != Reason::NoCredentials))
        {
            None => ConditionState::yes(Reason::Streaming, "a relay delivers"),
            Some((aspect, finding)) => {
                ConditionState { message: format!("{aspect}: {}", finding.message), ..finding.clone() }
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
        let condition = |(aspect, finding): (ConditionType, ConditionState)| Condition {
            last_transition_time: transition(before, aspect, &finding, now),
            message: finding.message.clone(),
            observed_generation: generation,
            reason: finding.reason.to_string(),
            status: finding.status().to_owned(),
            type_: aspect.to_string(),
        };
        self.found.into_iter().map(condition).collect()
    }
}

/// Since when a condition has the status that it has now.
fn transition(before: &[Condition], aspect: ConditionType, finding: &ConditionState, now: Timestamp) -> Time {
    let type_ = aspect.to_string();
    let same = before.iter().find(|known| known.type_ == type_ && known.status == finding.status());
    same.map_or(Time(now), |known| known.last_transition_time.clone())
}

/// `Reconciling` and `Stalled` by `Ready`, and by whether it `lasts`. At most one of them is True; tools keep waiting for the first
/// and give up at the second.
fn progress(ready: &ConditionState, lasts: bool) -> [ConditionState; 2] {
    let yes = || ConditionState::yes(ready.reason.clone(), ready.message.clone());
    let no = || ConditionState::no(ready.reason.clone(), "");
    match (ready.holds, ready.reason.outlook()) {
        (Some(true), _) => [no(), no()],
        (Some(false), Outlook::NeedsAction) if lasts => [no(), yes()],
        _ => [yes(), no()],
    }
}

#[cfg(test)]
mod tests {
    use outbox_relay::error;

    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    fn ready(findings: &Conditions) -> (String, String) {
        let conditions = findings.clone().conditions(&[], None, at(0));
        let ready = conditions.into_iter().find(|condition| condition.type_ == "Ready").unwrap();
        (ready.status, ready.reason)
    }

    fn all_well() -> Conditions {
        let mut findings = Conditions::new(false);
        for aspect in ConditionType::ALL.into_iter().filter(|aspect| *aspect != ConditionType::Suspended) {
            findings.set(aspect, ConditionState::yes(Reason::Present, ""));
        }
        findings
    }

    #[test]
    fn every_condition_is_there_from_the_first_pass() {
        let conditions = Conditions::new(false).conditions(&[], Some(1), at(0));
        let types: Vec<&str> = conditions.iter().map(|condition| condition.type_.as_str()).collect();
        assert_eq!(types.len(), 12);
        assert!(conditions.iter().all(|condition| !condition.reason.is_empty()));
        assert_eq!(ready(&Conditions::new(false)), ("Unknown".into(), "NotReached".into()));
    }

    #[test]
    fn ready_names_what_is_wrong_first_and_suspension_before_all() {
        assert_eq!(ready(&all_well()).0, "True");
        let mut findings = all_well();
        findings.set(ConditionType::Streaming, ConditionState::unknown(Reason::NotReached, ""));
        findings.set(ConditionType::TopicsReady, ConditionState::no(Reason::NotAsDeclared, ""));
        assert_eq!(ready(&findings), ("False".into(), "NotAsDeclared".into()));
        findings.set(ConditionType::SlotReady, ConditionState::no(Reason::WaitingForRelay, ""));
        findings.set(ConditionType::TopicsReady, ConditionState::yes(Reason::AsDeclared, ""));
        findings.set(ConditionType::WorkloadAvailable, ConditionState::no(Reason::NotMade, ""));
        assert_eq!(ready(&findings), ("False".into(), "NotMade".into()), "the slot is waited for in vain");
        findings.suspended = true;
        findings.set(ConditionType::Suspended, ConditionState::yes(Reason::Suspended, ""));
        assert_eq!(ready(&findings), ("True".into(), "Suspended".into()), "as it was asked to be");
        assert_eq!(ready(&Conditions::new(true)), ("False".into(), "Suspending".into()));
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
        let of = |findings: &Conditions, since: i64, now: i64| {
            let before = findings.clone().conditions(&[], Some(1), at(since));
            kstatus(&findings.clone().conditions(&before, Some(1), at(now)))
        };
        assert_eq!(of(&all_well(), 0, 100), "Current");
        assert_eq!(of(&Conditions::new(false), 0, 100), "InProgress");
        let with = |aspect, finding| {
            let mut findings = all_well();
            findings.set(aspect, finding);
            findings
        };
        let missing =
            with(ConditionType::ReferencesResolved, ConditionState::no(Reason::SecretUnusable, "no Secret"));
        assert_eq!(of(&missing, 0, 29), "InProgress", "it may be on its way");
        assert_eq!(of(&missing, 0, 30), "Failed");
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
        let mut findings = all_well();
        findings.set(ConditionType::KafkaReachable, ConditionState::no(Reason::KafkaUnreachable, "away"));
        let second = findings.conditions(&first, Some(2), at(20));
        let times: BTreeMap<_, _> = second
            .iter()
            .map(|condition| (condition.type_.as_str(), condition.last_transition_time.0.as_second()))
            .collect();
        assert_eq!((times["KafkaReachable"], times["Ready"], times["SlotReady"]), (20, 20, 10));
        assert!(second.iter().all(|condition| condition.observed_generation == Some(2)));
    }
}
