//! The Kubernetes side of a pass: server-side apply, and what became of it.

use std::fmt::Debug;

use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::Pod;
use kube::api::{ListParams, Patch, PatchParams};
use kube::{Api, Resource, ResourceExt};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::Context;
use crate::desired::naming::{MANAGER, object_name, selector};
use crate::desired::workload::Workload;
use crate::resource::OutboxRelay;
use crate::status::Finding;

/// Applies all objects, what pods need before the pods; answers the Deployment as it is now.
pub(super) async fn apply(
    context: &Context,
    relay: &OutboxRelay,
    workload: Workload,
) -> Result<Deployment, kube::Error> {
    let Workload { service_account, config_map, service, disruption_budget, deployment } = workload;
    one(&context.beside(relay), &service_account).await?;
    one(&context.beside(relay), &config_map).await?;
    one(&context.beside(relay), &service).await?;
    one(&context.beside(relay), &disruption_budget).await?;
    one(&context.beside(relay), &deployment).await
}

async fn one<K>(api: &Api<K>, object: &K) -> Result<K, kube::Error>
where
    K: Resource + Clone + Debug + Serialize + DeserializeOwned,
{
    let parameters = PatchParams::apply(MANAGER).force();
    api.patch(&object.name_any(), &parameters, &Patch::Apply(object)).await
}

/// Whether a pod of the relay is ready. `applied` is its Deployment where it has just been applied.
pub(super) async fn available(
    context: &Context,
    relay: &OutboxRelay,
    applied: Option<Deployment>,
) -> Result<Finding, kube::Error> {
    let found = match applied {
        Some(deployment) => Some(deployment),
        None => context.beside::<Deployment>(relay).get_opt(&object_name(relay)).await?,
    };
    let Some(deployment) = found else {
        return Ok(Finding::no("NotMade", "the Deployment is not made yet"));
    };
    let status = deployment.status.unwrap_or_default();
    if status.available_replicas.unwrap_or(0) > 0 {
        return Ok(Finding::yes("Available", ""));
    }
    if relay.spec.suspend {
        return Ok(Finding::no("Suspended", "no pods are meant to run"));
    }
    let labels: Vec<String> = selector(relay).iter().map(|(key, value)| format!("{key}={value}")).collect();
    let pods = context.beside::<Pod>(relay).list(&ListParams::default().labels(&labels.join(","))).await?;
    let (reason, message) = pods.iter().find_map(trouble).unwrap_or_else(|| {
        let refused = status
            .conditions
            .unwrap_or_default()
            .into_iter()
            .find(|condition| condition.type_ == "ReplicaFailure");
        let message = refused.and_then(|condition| condition.message);
        ("NoPodReady".to_owned(), message.unwrap_or_else(|| "no pod is ready yet".to_owned()))
    });
    Ok(Finding::no(reason, message))
}

/// Why a pod does not run: its node, its image, or its end.
fn trouble(pod: &Pod) -> Option<(String, String)> {
    let status = pod.status.as_ref()?;
    let unscheduled = status
        .conditions
        .iter()
        .flatten()
        .find(|condition| condition.type_ == "PodScheduled" && condition.status == "False");
    if let Some(condition) = unscheduled {
        let reason = condition.reason.clone().unwrap_or_else(|| "Unschedulable".to_owned());
        return Some((reason, condition.message.clone().unwrap_or_default()));
    }
    let waiting = status
        .container_statuses
        .iter()
        .flatten()
        .find_map(|container| container.state.as_ref()?.waiting.clone())?;
    Some((waiting.reason.unwrap_or_else(|| "Waiting".to_owned()), waiting.message.unwrap_or_default()))
}
