//! What was found, as conditions: every type of condition is there from the first pass on, with a reason, and its time changes
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
pub enum Aspect {
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

impl Aspect {
    /// All of them, in the order in which things are done.
    pub const ALL: [Aspect; 12] = [
        Aspect::Ready,
        Aspect::ReferencesResolved,
        Aspect::DatabaseReachable,
        Aspect::KafkaReachable,
        Aspect::PublicationReady,
        Aspect::SlotReady,
        Aspect::TopicsReady,
        Aspect::WorkloadAvailable,
        Aspect::Streaming,
        Aspect::Suspended,
        Aspect::Reconciling,
        Aspect::Stalled,
    ];

    /// Whether it is found out about something outside. The others are about what was found.
    fn is_observed(self) -> bool {
        !matches!(self, Aspect::Ready | Aspect::Suspended | Aspect::Reconciling | Aspect::Stalled)
    }
}

impl Display for Aspect {
    /// API: the type of the condition, and a label of a metric.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Aspect::Ready => "Ready",
            Aspect::ReferencesResolved => "ReferencesResolved",
            Aspect::DatabaseReachable => "DatabaseReachable",
            Aspect::KafkaReachable => "KafkaReachable",
            Aspect::PublicationReady => "PublicationReady",
            Aspect::SlotReady => "SlotReady",
            Aspect::TopicsReady => "TopicsReady",
            Aspect::WorkloadAvailable => "WorkloadAvailable",
            Aspect::Streaming => "Streaming",
            Aspect::Suspended => "Suspended",
            Aspect::Reconciling => "Reconciling",
            Aspect::Stalled => "Stalled",
        })
    }
}

/// What was found about one aspect.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// `None` where it could not be looked at.
    pub holds: Option<bool>,
    /// In one word.
    pub reason: Reason,
    /// In a sentence, with what to do.
    pub message: String,
}

impl Finding {
    /// It is as it should be.
    pub fn yes(reason: Reason, message: impl Into<String>) -> Finding {
        Finding { holds: Some(true), reason, message: message.into() }
    }

    /// It is not.
    pub fn no(reason: impl Into<Reason>, message: impl Into<String>) -> Finding {
        Finding { holds: Some(false), reason: reason.into(), message: message.into() }
    }

    /// It could not be looked at.
    pub fn unknown(reason: Reason, message: impl Into<String>) -> Finding {
        Finding { holds: None, reason, message: message.into() }
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

/// What was found in one pass.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Findings {
    found: BTreeMap<Aspect, Finding>,
    /// `spec.suspend`.
    suspended: bool,
    /// Why the resource, which is being deleted, is still there.
    deletion: Option<String>,
}

impl Findings {
    /// Nothing was looked at yet.
    pub fn new(suspended: bool) -> Findings {
        let not_reached = Finding::unknown(Reason::NotReached, "something before it failed");
        let mut findings: BTreeMap<Aspect, Finding> =
            Aspect::ALL.map(|aspect| (aspect, not_reached.clone())).into();
        let suspension = match suspended {
            true => Finding::no(
                Reason::Suspending,
                "spec.suspend is true; whether pods are left is not known yet",
            ),
            false => Finding::no(Reason::Running, ""),
        };
        findings.insert(Aspect::Suspended, suspension);
        Findings { found: findings, suspended, deletion: None }
    }

    /// Puts down what was found.
    pub fn set(&mut self, aspect: Aspect, finding: Finding) {
        self.found.insert(aspect, finding);
    }

    /// Adds a sentence to what was found, whatever that is.
    pub fn add(&mut self, aspect: Aspect, note: &str) {
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
    pub fn is_reached(&self, aspect: Aspect) -> bool {
        self.found.get(&aspect).is_some_and(|finding| finding.reason != Reason::NotReached)
    }

    /// Whether it is not as it should be.
    pub fn fails(&self, aspect: Aspect) -> bool {
        self.found.get(&aspect).is_some_and(|finding| finding.holds == Some(false))
    }

    /// What was found.
    pub fn holds(&self, aspect: Aspect) -> bool {
        self.found.get(&aspect).is_some_and(|finding| finding.holds == Some(true))
    }

    /// The first that is not as it should be, in the order in which things are done. A transient problem hides none that
    /// you have to correct.
    pub fn summary(&self) -> Finding {
        if let Some(why) = &self.deletion {
            return Finding::no(Reason::Deleting, why);
        }
        if let Some(suspension) = self.found.get(&Aspect::Suspended).filter(|_| self.suspended) {
            // A resource that is as it was asked to be is ready: tools that wait for it must not time out.
            return suspension.clone();
        }
        let checked = self.found.iter().filter(|(aspect, _)| aspect.is_observed());
        let wrong = |holds| checked.clone().filter(move |(_, finding)| finding.holds == holds);
        // Pods come after the slot, and are missing for a moment at every start.
        let lasts = |(_, finding): &(&Aspect, &Finding)| {
            !matches!(finding.reason, Reason::NoPod | Reason::NoPodReady) && !finding.reason.passes()
        };
        match wrong(Some(false))
            .find(lasts)
            .or_else(|| wrong(Some(false)).next())
            .or_else(|| wrong(None).find(|(_, finding)| finding.reason != Reason::NoCredentials))
        {
            None => Finding::yes(Reason::Streaming, "a relay delivers"),
            Some((aspect, finding)) => {
                Finding { message: format!("{aspect}: {}", finding.message), ..finding.clone() }
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
        let since = transition(before, Aspect::Ready, &summary, now);
        let lasts = now.as_second() - since.0.as_second() >= STALLED_AFTER_SECONDS;
        let [reconciling, stalled] = progress(&summary, lasts);
        self.set(Aspect::Ready, summary);
        self.set(Aspect::Reconciling, reconciling);
        self.set(Aspect::Stalled, stalled);
        let condition = |(aspect, finding): (Aspect, Finding)| Condition {
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
fn transition(before: &[Condition], aspect: Aspect, finding: &Finding, now: Timestamp) -> Time {
    let type_ = aspect.to_string();
    let same = before.iter().find(|known| known.type_ == type_ && known.status == finding.status());
    same.map_or(Time(now), |known| known.last_transition_time.clone())
}

/// `Reconciling` and `Stalled` by `Ready`, and by whether it `lasts`. At most one of them is True; tools keep waiting for the first
/// and give up at the second.
fn progress(ready: &Finding, lasts: bool) -> [Finding; 2] {
    let yes = || Finding::yes(ready.reason.clone(), ready.message.clone());
    let no = || Finding::no(ready.reason.clone(), "");
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

    fn ready(findings: &Findings) -> (String, String) {
        let conditions = findings.clone().conditions(&[], None, at(0));
        let ready = conditions.into_iter().find(|condition| condition.type_ == "Ready").unwrap();
        (ready.status, ready.reason)
    }

    fn all_well() -> Findings {
        let mut findings = Findings::new(false);
        for aspect in Aspect::ALL.into_iter().filter(|aspect| *aspect != Aspect::Suspended) {
            findings.set(aspect, Finding::yes(Reason::Present, ""));
        }
        findings
    }

    #[test]
    fn every_condition_is_there_from_the_first_pass() {
        let conditions = Findings::new(false).conditions(&[], Some(1), at(0));
        let types: Vec<&str> = conditions.iter().map(|condition| condition.type_.as_str()).collect();
        assert_eq!(types.len(), 12);
        assert!(conditions.iter().all(|condition| !condition.reason.is_empty()));
        assert_eq!(ready(&Findings::new(false)), ("Unknown".into(), "NotReached".into()));
    }

    #[test]
    fn ready_names_what_is_wrong_first_and_suspension_before_all() {
        assert_eq!(ready(&all_well()).0, "True");
        let mut findings = all_well();
        findings.set(Aspect::Streaming, Finding::unknown(Reason::NotReached, ""));
        findings.set(Aspect::TopicsReady, Finding::no(Reason::NotAsDeclared, ""));
        assert_eq!(ready(&findings), ("False".into(), "NotAsDeclared".into()));
        findings.set(Aspect::SlotReady, Finding::no(Reason::WaitingForRelay, ""));
        findings.set(Aspect::TopicsReady, Finding::yes(Reason::AsDeclared, ""));
        findings.set(Aspect::WorkloadAvailable, Finding::no(Reason::NotMade, ""));
        assert_eq!(ready(&findings), ("False".into(), "NotMade".into()), "the slot is waited for in vain");
        findings.suspended = true;
        findings.set(Aspect::Suspended, Finding::yes(Reason::Suspended, ""));
        assert_eq!(ready(&findings), ("True".into(), "Suspended".into()), "as it was asked to be");
        assert_eq!(ready(&Findings::new(true)), ("False".into(), "Suspending".into()));
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
        let of = |findings: &Findings, since: i64, now: i64| {
            let before = findings.clone().conditions(&[], Some(1), at(since));
            kstatus(&findings.clone().conditions(&before, Some(1), at(now)))
        };
        assert_eq!(of(&all_well(), 0, 100), "Current");
        assert_eq!(of(&Findings::new(false), 0, 100), "InProgress");
        let with = |aspect, finding| {
            let mut findings = all_well();
            findings.set(aspect, finding);
            findings
        };
        let missing = with(Aspect::ReferencesResolved, Finding::no(Reason::SecretUnusable, "no Secret"));
        assert_eq!(of(&missing, 0, 29), "InProgress", "it may be on its way");
        assert_eq!(of(&missing, 0, 30), "Failed");
        let away = with(Aspect::DatabaseReachable, Finding::no(error::ErrorKind::DatabaseUnreachable, ""));
        assert_eq!(of(&away, 0, 1000), "InProgress");
        let lost = with(Aspect::Streaming, Finding::no(error::ErrorKind::SlotLost, ""));
        assert_eq!(of(&lost, 0, 1000), "Failed");
        let mut suspended = Findings::new(true);
        assert_eq!(of(&suspended, 0, 1000), "InProgress", "pods are left");
        suspended.set(Aspect::Suspended, Finding::yes(Reason::Suspended, ""));
        assert_eq!(of(&suspended, 0, 0), "Current");
    }

    #[test]
    fn a_condition_keeps_its_time_while_its_status_stays() {
        let first = all_well().conditions(&[], Some(1), at(10));
        let mut findings = all_well();
        findings.set(Aspect::KafkaReachable, Finding::no(Reason::KafkaUnreachable, "away"));
        let second = findings.conditions(&first, Some(2), at(20));
        let times: BTreeMap<_, _> = second
            .iter()
            .map(|condition| (condition.type_.as_str(), condition.last_transition_time.0.as_second()))
            .collect();
        assert_eq!((times["KafkaReachable"], times["Ready"], times["SlotReady"]), (20, 20, 10));
        assert!(second.iter().all(|condition| condition.observed_generation == Some(2)));
    }
}
