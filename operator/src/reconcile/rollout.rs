//! How far a Deployment is with its pods.

use std::sync::Arc;

use k8s_openapi::api::apps::v1::{Deployment, DeploymentCondition};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::jiff::Timestamp;

use super::pods::problem;
use crate::conditions::{ConditionState, Outlook, Reason};

/// Whether `meant` pods run, all of them as the Deployment specifies now, and ready.
pub(super) fn availability(
    deployment: &Deployment,
    pods: &[Arc<Pod>],
    meant: i32,
    now: Timestamp,
) -> ConditionState {
    let available = deployment.status.as_ref().and_then(|status| status.available_replicas).unwrap_or(0);
    let problem = pods.iter().find_map(|pod| problem(pod, now));
    match Rollout::of(deployment, meant) {
        Rollout::Done => ConditionState::yes(Reason::Available, ""),
        Rollout::Unseen if available > 0 => {
            ConditionState::no(Reason::RollingOut, "the pods that run are of an earlier specification")
        }
        Rollout::Unseen => no_pod_ready(problem),
        Rollout::Progresses { updated, ready, meant } => {
            if let Some(refusal) = refusal(deployment) {
                return ConditionState::no(Reason::PodsRefused, refusal);
            }
            let is_late = has_exceeded_deadline(deployment);
            let says_more = |problem: &(Reason, String)| problem.0.outlook() == Outlook::NeedsAction;
            if ready == 0 && (!is_late || problem.as_ref().is_some_and(says_more)) {
                return no_pod_ready(problem);
            }
            let problem = problem.map(|(_, message)| format!(": {message}")).unwrap_or_default();
            let what = format!(
                "{updated} of {meant} pods are of this specification, {ready} pods are ready{problem}"
            );
            let reason = if is_late { Reason::ProgressDeadlineExceeded } else { Reason::RollingOut };
            ConditionState::no(reason, what)
        }
    }
}

fn no_pod_ready(problem: Option<(Reason, String)>) -> ConditionState {
    let (reason, message) = problem.unwrap_or_else(|| (Reason::NoPodReady, "no pod is ready yet".to_owned()));
    ConditionState::no(reason, message)
}

/// What the API server says about pods that it refuses to create.
fn refusal(deployment: &Deployment) -> Option<String> {
    // A pod that cannot be deleted is reported by the same type of condition.
    let refused = condition(deployment, "ReplicaFailure")
        .filter(|failure| failure.status == "True" && failure.reason.as_deref() == Some("FailedCreate"))?;
    let message = refused.message.as_deref().unwrap_or("Kubernetes does not say why");
    Some(format!("the API server refuses the pods: {message}"))
}

/// Whether Kubernetes has seen no progress for the Deployment's `progressDeadlineSeconds`.
fn has_exceeded_deadline(deployment: &Deployment) -> bool {
    condition(deployment, "Progressing").is_some_and(|progressing| {
        progressing.status == "False" && progressing.reason.as_deref() == Some("ProgressDeadlineExceeded")
    })
}

fn condition<'a>(deployment: &'a Deployment, type_: &str) -> Option<&'a DeploymentCondition> {
    let conditions = deployment.status.as_ref()?.conditions.as_ref()?;
    conditions.iter().find(|condition| condition.type_ == type_)
}

/// How far a Deployment is.
#[derive(Debug, PartialEq, Eq)]
enum Rollout {
    /// Its status does not speak of this specification yet.
    Unseen,
    /// Pods are missing, old ones are there, or some are not ready.
    Progresses {
        updated: i32,
        ready: i32,
        meant: i32,
    },
    Done,
}

impl Rollout {
    fn of(deployment: &Deployment, meant: i32) -> Rollout {
        let Some(status) = &deployment.status else { return Rollout::Unseen };
        if status.observed_generation < deployment.metadata.generation {
            return Rollout::Unseen;
        }
        let [updated, all, ready] = [status.updated_replicas, status.replicas, status.available_replicas]
            .map(Option::unwrap_or_default);
        if updated == meant && all == meant && ready == meant {
            Rollout::Done
        } else {
            Rollout::Progresses { updated, ready, meant }
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn deployment(generation: i64, status: Value) -> Deployment {
        serde_json::from_value(json!({"metadata": {"generation": generation}, "status": status})).unwrap()
    }

    fn status(updated: i32, all: i32, ready: i32) -> Value {
        json!({"observedGeneration": 3, "updatedReplicas": updated, "replicas": all, "availableReplicas": ready})
    }

    fn with_condition(mut status: Value, type_: &str, value: &str, reason: &str) -> Value {
        status["conditions"] = json!([{"type": type_, "status": value, "reason": reason, "message": "why"}]);
        status
    }

    /// Reason and message where two pods are meant to run.
    fn state(generation: i64, status: Value, pods: &[Arc<Pod>]) -> (String, String) {
        let state = availability(&deployment(generation, status), pods, 2, Timestamp::UNIX_EPOCH);
        (state.reason.to_string(), state.message)
    }

    #[test]
    fn a_rollout_is_done_when_all_pods_are_new_and_ready() {
        let rollout = |generation, status| Rollout::of(&deployment(generation, status), 2);
        assert_eq!(rollout(3, status(2, 2, 2)), Rollout::Done);
        assert_eq!(rollout(4, status(2, 2, 2)), Rollout::Unseen);
        for (updated, all, ready) in [(1, 2, 2), (1, 2, 1), (2, 3, 2), (2, 2, 1), (0, 1, 1)] {
            let progresses = Rollout::Progresses { updated, ready, meant: 2 };
            assert_eq!(rollout(3, status(updated, all, ready)), progresses);
        }
    }

    #[test]
    fn pods_that_the_api_server_refuses_are_told_from_pods_that_start() {
        let refused = |status| with_condition(status, "ReplicaFailure", "True", "FailedCreate");
        let expected = ("PodsRefused".to_owned(), "the API server refuses the pods: why".to_owned());
        for pods in [status(0, 0, 0), status(1, 1, 1), status(1, 2, 1)] {
            assert_eq!(state(3, refused(pods), &[]), expected);
        }
        assert_eq!(state(4, refused(status(0, 0, 0)), &[]).0, "NoPodReady", "of an earlier specification");
        assert_eq!(state(3, refused(status(2, 2, 2)), &[]).0, "Available");
        for (value, reason) in [("False", "FailedCreate"), ("True", "FailedDelete")] {
            let status = with_condition(status(0, 0, 0), "ReplicaFailure", value, reason);
            assert_eq!(state(3, status, &[]).0, "NoPodReady");
        }
    }
    fn pod(status: &Value) -> Arc<Pod> {
        let pod = json!({"metadata": {"name": "p"}, "spec": {"containers": []}, "status": status});
        Arc::new(serde_json::from_value(pod).unwrap())
    }

    #[test]
    fn a_rollout_that_has_stopped_is_told_from_one_that_proceeds() {
        let late = |status| with_condition(status, "Progressing", "False", "ProgressDeadlineExceeded");
        let bad_image = pod(&json!({"containerStatuses": [{
            "name": "relay", "image": "", "imageID": "", "ready": false, "restartCount": 0,
            "state": {"waiting": {"reason": "ImagePullBackOff", "message": "no such image"}},
        }]}));
        let unscheduled = pod(&json!({"conditions": [
            {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "no node"},
        ]}));
        let expected = |so_far: &str| ("ProgressDeadlineExceeded".to_owned(), so_far.to_owned());
        let [bad_image, unscheduled] = [[bad_image], [unscheduled]];
        assert_eq!(state(3, status(1, 2, 1), &bad_image).0, "RollingOut");
        let so_far = "1 of 2 pods are of this specification, 1 pods are ready: no such image";
        assert_eq!(state(3, late(status(1, 2, 1)), &bad_image), expected(so_far));
        assert_eq!(state(3, late(status(2, 2, 0)), &bad_image).0, "ImagePullBackOff", "which says more");
        let so_far = "2 of 2 pods are of this specification, 0 pods are ready: no node";
        assert_eq!(state(3, late(status(2, 2, 0)), &unscheduled), expected(so_far));
        assert_eq!(state(3, status(2, 2, 0), &unscheduled).0, "Unschedulable");
        let so_far = "2 of 2 pods are of this specification, 0 pods are ready";
        assert_eq!(state(3, late(status(2, 2, 0)), &[]), expected(so_far));
        assert_eq!(state(4, late(status(1, 2, 1)), &[]).0, "RollingOut", "of an earlier specification");
    }
}
