//! What the relay's pods report: the relay delivers when one of them reports that it does; otherwise the reason is the one it
//! reports.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use http_body_util::{BodyExt, Limited};
use hyper::Uri;
use k8s_openapi::api::core::v1::Pod;
use kube::{Resource, ResourceExt};
use outbox_relay::error::{self, excerpt};
use outbox_relay::status::failover_readiness::FailoverReason;
use serde::Deserialize;

use super::Context;
use super::pods::has_ended;
use crate::conditions::{ConditionState, ConditionType, Reason};
use crate::connections::RelayClient;
use crate::desired::configuration::{ADMIN_PORT, identity};
use crate::resource::{Condition, OutboxRelay};

/// A pod of the same cluster answers at once, or not at all.
const ANSWER_WITHIN: Duration = Duration::from_secs(3);
/// More than `/status` ever is.
const LONGEST_ANSWER: usize = 256 * 1024;
/// Longer than any message of a relay.
const LONGEST_WORDS: usize = 4096;

/// The part of a relay's `/status` that matters here.
#[derive(Debug, Deserialize)]
struct Answer {
    name: String,
    role: String,
    ready: bool,
    phase: String,
    problem: Option<Problem>,
    /// Relays of before this condition do not report it.
    failover: Option<Failover>,
}

#[derive(Debug, Deserialize)]
struct Problem {
    reason: String,
    message: String,
    remedy: String,
}

/// `ready` is not known where it is absent.
#[derive(Debug, Deserialize)]
struct Failover {
    ready: Option<bool>,
    reason: String,
    message: String,
    remedy: String,
}

/// What the relay reports.
pub(super) struct RelayReport {
    /// Whether it delivers.
    pub(super) streaming: ConditionState,
    /// Whether it would after a failover of the database.
    pub(super) failover_ready: ConditionState,
}

pub(super) async fn observe(relay: &OutboxRelay, context: &Context) -> RelayReport {
    if relay.spec.suspend {
        let streaming = ConditionState::no(Reason::Suspended, "no pods are meant to run");
        return RelayReport { streaming, failover_ready: failover_ready(&[]) };
    }
    let pods = context.pods(relay);
    let running: Vec<_> = pods.iter().filter_map(|pod| Some((pod.name_any(), address(pod)?))).collect();
    let name = identity(relay);
    let asked = running.iter().map(async |(pod, address)| {
        let late = |_| Err(format!("no answer within {ANSWER_WITHIN:?}"));
        let client = &context.connections.relays;
        let answer = async {
            let answer = tokio::time::timeout(ANSWER_WITHIN, ask(client, *address)).await;
            answer.unwrap_or_else(late).and_then(|answer| answer.of(&name))
        };
        let answer = context.metrics.request("relay", "status", answer).await;
        answer.map_err(|problem| format!("pod {pod}, http://{address}/status: {problem}"))
    });
    let answers = futures::future::join_all(asked).await;
    let failover_ready = failover_ready(&answers);
    let mut before = relay.status.iter().flat_map(|status| &status.conditions);
    let before = before.find(|condition| condition.type_ == ConditionType::Streaming.to_string());
    RelayReport { streaming: steady(judge(answers), before), failover_ready }
}

impl Answer {
    /// Another relay's answer says nothing of this one: an address may be another pod's by now.
    fn of(self, name: &str) -> Result<Answer, String> {
        if self.name == name { Ok(self) } else { Err(format!("relay {} answers there", excerpt(&self.name))) }
    }
}

/// Where a pod can be asked. One that has ended keeps its address in its status, which others may have by then.
fn address(pod: &Pod) -> Option<SocketAddr> {
    if has_ended(pod) || pod.meta().deletion_timestamp.is_some() {
        return None;
    }
    let ip: IpAddr = pod.status.as_ref()?.pod_ip.as_ref()?.parse().ok()?;
    Some(SocketAddr::new(ip, ADMIN_PORT))
}

async fn ask(client: &RelayClient, address: SocketAddr) -> Result<Answer, String> {
    let uri = Uri::try_from(format!("http://{address}/status")).map_err(|error| error.to_string())?;
    let answer = client.get(uri).await.map_err(|error| causes(&error))?;
    let body = Limited::new(answer.into_body(), LONGEST_ANSWER).collect().await;
    let body = body.map_err(|error| error.to_string())?.to_bytes();
    serde_json::from_slice(&body).map_err(|_| "it is no relay's answer".to_owned())
}

/// An error of the client's says only with its causes what it is.
fn causes(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(Some(error), |error| error.source());
    causes.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}

/// The active one speaks for all. Where none is seen and one is silent, the silent one may be it.
fn judge(answers: Vec<Result<Answer, String>>) -> ConditionState {
    let (answers, silent): (Vec<_>, Vec<_>) = answers.into_iter().partition(Result::is_ok);
    let mut answers: Vec<Answer> = answers.into_iter().flatten().collect();
    answers.sort_by_key(|answer| answer.role != "active");
    let first = answers.first().filter(|answer| silent.is_empty() || answer.role != "standby");
    match first {
        Some(Answer { role, ready: true, phase, .. }) if role == "active" => ConditionState::yes(
            Reason::Streaming,
            match phase.as_str() {
                "copying" => "rows that were there first",
                "refilling" => "rows that a lost slot would have streamed",
                _ => "",
            },
        ),
        Some(Answer { problem: Some(Problem { reason, message, remedy }), .. }) => {
            ConditionState::no(said(reason), format!("{}; {}", shortened(message), shortened(remedy)))
        }
        Some(Answer { phase, .. }) => {
            ConditionState::no(Reason::NotYet, format!("the relay says: {}", excerpt(phase)))
        }
        None => match silent.into_iter().find_map(Result::err) {
            Some(problem) => ConditionState::unknown(
                Reason::RelayUnreachable,
                format!("{problem}; the operator has to reach port {ADMIN_PORT} of the pods"),
            ),
            None => ConditionState::no(Reason::NoPod, "no pod of the relay runs"),
        },
    }
}

/// A standby relay leaves it to the active one to look at the database's standbys.
fn failover_ready(answers: &[Result<Answer, String>]) -> ConditionState {
    let mut answers = answers.iter().flatten().filter(|answer| answer.role != "standby");
    let Some(Failover { ready, reason, message, remedy }) =
        answers.find_map(|answer| answer.failover.as_ref())
    else {
        return ConditionState::unknown(Reason::NotReported, "no active relay reports it");
    };
    let reason = FailoverReason::from_name(reason).map_or_else(|| external(reason), Reason::Failover);
    let (message, remedy) = (shortened(message), shortened(remedy));
    match ready {
        Some(true) => ConditionState::yes(reason, message),
        Some(false) => ConditionState::no(reason, format!("{message}; {remedy}")),
        None => ConditionState::unknown(reason, format!("{message}; {remedy}")),
    }
}

/// Keeps a message that differs from the one before only in numbers, of records that wait for example: a status is written when something has
/// changed, not while it lasts.
fn steady(state: ConditionState, before: Option<&Condition>) -> ConditionState {
    let without_numbers = |text: &str| text.replace(|character: char| character.is_ascii_digit(), "");
    let same = before.filter(|before| {
        before.reason == state.reason.to_string()
            && without_numbers(&before.message) == without_numbers(&state.message)
    });
    match same {
        Some(before) => ConditionState { message: before.message.clone(), ..state },
        None => state,
    }
}

/// A relay's words can hold statements to run; what answers in its place must not fill the status.
fn shortened(words: &str) -> &str {
    words.get(..words.floor_char_boundary(LONGEST_WORDS)).unwrap_or_default()
}

/// A relay's reason, of this version or another. What answers in its place need not be a relay.
fn said(reason: &str) -> Reason {
    error::ErrorKind::from_name(reason).map_or_else(|| external(reason), Reason::Relay)
}

fn external(reason: &str) -> Reason {
    let is_word = (1..=64).contains(&reason.len()) && reason.bytes().all(|byte| byte.is_ascii_alphabetic());
    Reason::External(if is_word { reason.to_owned() } else { "RelayProblem".to_owned() })
}

#[cfg(test)]
mod tests {
    use k8s_openapi::jiff::Timestamp;

    use super::*;
    use crate::conditions::{Conditions, Status};

    fn answer(role: &str, ready: bool, reason: Option<&str>) -> Result<Answer, String> {
        let problem = reason.map(|reason| Problem {
            reason: reason.into(),
            message: "what".into(),
            remedy: "to do".into(),
        });
        Ok(Answer {
            name: "shop/orders".into(),
            role: role.into(),
            ready,
            phase: "streaming".into(),
            problem,
            failover: None,
        })
    }

    fn judged(answers: Vec<Result<Answer, String>>) -> (Status, String) {
        let state = judge(answers);
        (state.status, state.reason.to_string())
    }

    #[test]
    fn the_active_pod_speaks_for_all() {
        let well = judged(vec![answer("standby", true, Some("SlotActive")), answer("active", true, None)]);
        assert_eq!(well, (Status::True, "Streaming".into()));
        let stuck = judged(vec![answer("standby", true, None), answer("active", false, Some("PoisonRow"))]);
        assert_eq!(stuck, (Status::False, "PoisonRow".into()));
    }

    #[test]
    fn without_an_active_pod_the_others_reason_counts_and_silence_is_not_taken_for_either() {
        let waits = judged(vec![Err("pod x".into()), answer("none", false, Some("SlotLost"))]);
        assert_eq!(waits, (Status::False, "SlotLost".into()));
        assert_eq!(judged(vec![answer("none", false, None)]), (Status::False, "NotYet".into()));
        assert_eq!(judged(vec![Err("pod x".into())]), (Status::Unknown, "RelayUnreachable".into()));
        assert_eq!(judged(Vec::new()), (Status::False, "NoPod".into()));
        let standby = judged(vec![answer("standby", true, None), Err("pod x".into())]);
        assert_eq!(standby, (Status::Unknown, "RelayUnreachable".into()), "the silent one may deliver");
    }

    #[test]
    fn the_active_relay_reports_about_failover() {
        let with = |role: &str, ready: Option<bool>, reason: &str| {
            let failover =
                Failover { ready, reason: reason.into(), message: "what".into(), remedy: "to do".into() };
            answer(role, true, None).map(|answer| Answer { failover: Some(failover), ..answer })
        };
        let judged = |answers: &[Result<Answer, String>]| {
            let state = failover_ready(answers);
            (state.status, state.reason.to_string(), state.message)
        };
        let standby = || with("standby", None, "SlotUnknown");
        assert_eq!(
            judged(&[standby(), with("active", Some(true), "SlotSynchronized")]),
            (Status::True, "SlotSynchronized".into(), "what".into())
        );
        let what_to_do = || "what; to do".to_owned();
        assert_eq!(
            judged(&[with("active", Some(false), "SlotSyncBlocked"), standby()]),
            (Status::False, "SlotSyncBlocked".into(), what_to_do())
        );
        assert_eq!(
            judged(&[with("none", None, "OfANewerRelay")]),
            (Status::Unknown, "OfANewerRelay".into(), what_to_do())
        );
        for nothing in
            [vec![], vec![standby()], vec![answer("active", true, None)], vec![Err("pod x".into())]]
        {
            assert_eq!(judged(&nothing).1, "NotReported");
        }
    }

    #[test]
    fn a_message_that_only_counts_on_stays_as_it_was() {
        let state =
            |records| ConditionState::no(Reason::External("Slow".into()), format!("{records} records wait"));
        let mut conditions = Conditions::new(false);
        conditions.set(ConditionType::Streaming, state(7));
        let before = conditions.conditions(&[], None, Timestamp::now());
        let before = before.iter().find(|condition| condition.type_ == "Streaming");
        assert_eq!(steady(state(12), before).message, "7 records wait");
        assert_eq!(
            steady(ConditionState::no(Reason::NoPod, "8 records wait"), before).message,
            "8 records wait"
        );
    }

    #[test]
    fn a_server_in_a_relays_place_cannot_invent_a_reason() {
        assert_eq!(said("SlotLost"), Reason::Relay(error::ErrorKind::SlotLost));
        assert_eq!(said("OfANewerRelay"), Reason::External("OfANewerRelay".into()));
        for made_up in ["", "no word", &"R".repeat(65), "R1"] {
            assert_eq!(said(made_up), Reason::External("RelayProblem".into()), "{made_up}");
        }
    }

    #[test]
    fn another_relay_does_not_answer_for_this_one() {
        let answer = answer("active", true, None).unwrap();
        assert_eq!(answer.of("shop/baskets").unwrap_err(), "relay shop/orders answers there");
    }

    #[test]
    fn a_pod_that_has_ended_is_not_asked() {
        let pod = |change: serde_json::Value| -> Pod {
            let mut pod =
                serde_json::json!({"metadata": {}, "status": {"podIP": "10.0.0.1", "phase": "Running"}});
            for part in ["metadata", "status"] {
                let change = change[part].as_object().into_iter().flatten();
                change.for_each(|(key, value)| pod[part][key] = value.clone());
            }
            serde_json::from_value(pod).unwrap()
        };
        assert!(address(&pod(serde_json::json!({}))).is_some());
        for phase in ["Failed", "Succeeded"] {
            assert_eq!(address(&pod(serde_json::json!({"status": {"phase": phase}}))), None);
        }
        let ends = serde_json::json!({"metadata": {"deletionTimestamp": "2026-01-01T00:00:00Z"}});
        assert_eq!(address(&pod(ends)), None);
    }
}
