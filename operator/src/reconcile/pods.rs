//! What keeps a pod from running, in Kubernetes' words where it has any.

use std::sync::Arc;

use k8s_openapi::api::core::v1::{ContainerStateTerminated, ContainerStatus, Pod};
use k8s_openapi::jiff::Timestamp;
use kube::ResourceExt;

use crate::conditions::Reason;
use crate::desired::naming::CONTAINER;

/// A relay that is not ready for longer has a reason, which `Streaming` says.
const STARTS_WITHIN_SECONDS: i64 = 30;

/// Whether a pod is over, and only its object is left.
pub(super) fn has_ended(pod: &Pod) -> bool {
    let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
    matches!(phase, Some("Succeeded" | "Failed"))
}

/// The image that the relay's pods run, as the kubelet reports it. While pods are replaced it is that of the ready ones, and of two such images
/// that of the older pod.
pub(super) fn running_image(pods: &[Arc<Pod>]) -> Option<String> {
    let running = pods.iter().filter(|pod| !has_ended(pod)).filter_map(|pod| {
        let relay = relay_container(pod)?;
        relay.state.as_ref()?.running.as_ref()?;
        let age = pod.metadata.creation_timestamp.as_ref().map(|time| time.0);
        Some(((!relay.ready, age, pod.name_any()), relay.image.clone()))
    });
    running.min().map(|(_, image)| image)
}

fn relay_container(pod: &Pod) -> Option<&ContainerStatus> {
    let mut containers = pod.status.as_ref()?.container_statuses.iter().flatten();
    containers.find(|container| container.name == CONTAINER)
}

/// Why a pod does not run: its node, its image, or its end.
pub(super) fn problem(pod: &Pod, now: Timestamp) -> Option<(Reason, String)> {
    let status = pod.status.as_ref()?;
    let unscheduled = status
        .conditions
        .iter()
        .flatten()
        .find(|condition| condition.type_ == "PodScheduled" && condition.status == "False");
    if let Some(condition) = unscheduled {
        let reason = condition.reason.clone().unwrap_or_else(|| "Unschedulable".to_owned());
        let reason = Reason::External(reason);
        return Some((reason, condition.message.clone().unwrap_or_default()));
    }
    status.container_statuses.iter().flatten().find_map(|container| stopped(&pod.name_any(), container, now))
}

/// Why a container does not run, or not yet.
fn stopped(pod: &str, container: &ContainerStatus, now: Timestamp) -> Option<(Reason, String)> {
    let state = container.state.as_ref()?;
    if let Some(waiting) = &state.waiting {
        let reason = waiting.reason.clone().unwrap_or_else(|| "Waiting".to_owned());
        if ["ContainerCreating", "PodInitializing"].contains(&reason.as_str()) {
            let message =
                format!("pod {pod} is being made; if it stays so, kubectl describe pod {pod} says why");
            return Some((Reason::NotYet, message));
        }
        let message = waiting.message.clone().unwrap_or_default();
        let before = container.last_state.as_ref().and_then(|state| state.terminated.as_ref()).map(ending);
        let message = before.map_or(message.clone(), |before| format!("{message}; it had ended: {before}"));
        return Some((Reason::External(reason), message));
    }
    if let Some(ended) = &state.terminated {
        let reason = ended.reason.clone().unwrap_or_else(|| "Terminated".to_owned());
        return Some((Reason::External(reason), format!("pod {pod} has ended: {}", ending(ended))));
    }
    let started = state.running.as_ref()?.started_at.as_ref()?;
    let age = now.as_second() - started.0.as_second();
    (age < STARTS_WITHIN_SECONDS).then(|| (Reason::NotYet, format!("pod {pod} has started")))
}

fn ending(ended: &ContainerStateTerminated) -> String {
    let reason = ended.reason.as_deref().unwrap_or("no reason given");
    let code = ended.exit_code;
    match reason {
        "OOMKilled" => format!("{reason}: it needs more memory than spec.relay.resources.limits.memory"),
        _ => format!("{reason}, exit code {code}"),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn of(state: Value, last: Value) -> Option<(String, String)> {
        let status = json!({"containerStatuses": [{
            "name": "relay", "image": "", "imageID": "", "ready": false, "restartCount": 0, "state": state, "lastState": last,
        }]});
        let pod = json!({"metadata": {"name": "p"}, "spec": {"containers": []}, "status": status});
        let pod: Pod = serde_json::from_value(pod).unwrap();
        let now = "2026-01-01T00:01:00Z".parse().unwrap();
        problem(&pod, now).map(|(reason, message)| (reason.to_string(), message))
    }

    fn ended(reason: &str, code: i32) -> Value {
        json!({"terminated": {"reason": reason, "exitCode": code}})
    }

    #[test]
    fn a_pod_that_is_starting_has_no_problem() {
        let waits = |reason: &str| of(json!({"waiting": {"reason": reason}}), json!({}));
        for reason in ["ContainerCreating", "PodInitializing"] {
            assert_eq!(waits(reason).unwrap().0, "NotYet");
        }
        let running = |at: &str| of(json!({"running": {"startedAt": at}}), json!({}));
        assert_eq!(
            running("2026-01-01T00:00:31Z").unwrap(),
            ("NotYet".to_owned(), "pod p has started".to_owned())
        );
        assert_eq!(running("2026-01-01T00:00:30Z"), None);
    }

    #[test]
    fn one_that_ends_again_and_again_has_its_end_told() {
        let back_off = json!({"waiting": {"reason": "CrashLoopBackOff", "message": "back-off 10s"}});
        let (reason, message) = of(back_off.clone(), ended("Error", 64)).unwrap();
        assert_eq!(
            (reason.as_str(), message.as_str()),
            ("CrashLoopBackOff", "back-off 10s; it had ended: Error, exit code 64")
        );
        let (_, message) = of(back_off, ended("OOMKilled", 137)).unwrap();
        assert!(
            message.ends_with("it needs more memory than spec.relay.resources.limits.memory"),
            "{message}"
        );
        let (reason, message) = of(ended("Completed", 0), json!({})).unwrap();
        assert_eq!(
            (reason.as_str(), message.as_str()),
            ("Completed", "pod p has ended: Completed, exit code 0")
        );
    }

    #[test]
    fn an_image_that_is_not_there_is_told_in_the_words_of_kubernetes() {
        let waiting = json!({"waiting": {"reason": "ImagePullBackOff", "message": "no such image"}});
        assert_eq!(
            of(waiting, json!({})).unwrap(),
            ("ImagePullBackOff".to_owned(), "no such image".to_owned())
        );
    }

    /// A pod of this age, with a sidecar beside the relay.
    fn runs(second: u32, image: &str, is_ready: bool) -> Value {
        let container = |name: &str, image: &str, ready: bool| {
            json!({"name": name, "image": image, "imageID": "", "ready": ready, "restartCount": 0,
                   "state": {"running": {}}})
        };
        json!({
            "metadata": {"name": image, "creationTimestamp": format!("2026-01-01T00:00:{second:02}Z")},
            "status": {"phase": "Running", "containerStatuses": [
                container("proxy", "proxy", true),
                container("relay", image, is_ready),
            ]},
        })
    }

    fn image_of(pods: &[Value]) -> Option<String> {
        let pods = pods.iter().map(|pod| Arc::new(serde_json::from_value(pod.clone()).unwrap()));
        running_image(&pods.collect::<Vec<_>>())
    }

    #[test]
    fn the_image_is_that_of_pods_that_run() {
        let (old, new) = (runs(1, "old", true), runs(2, "new", false));
        assert_eq!(image_of(&[]), None);
        assert_eq!(image_of(&[new.clone(), old.clone()]).as_deref(), Some("old"), "it is ready");
        assert_eq!(image_of(&[runs(2, "new", true), old.clone()]).as_deref(), Some("old"), "both are ready");
        let mut ended = old;
        ended["status"]["phase"] = json!("Failed");
        assert_eq!(image_of(&[ended, new.clone()]).as_deref(), Some("new"));
        let mut pulls = new;
        pulls["status"]["containerStatuses"][1]["state"] = json!({"waiting": {"reason": "ImagePullBackOff"}});
        assert_eq!(image_of(&[pulls]), None);
    }
}
