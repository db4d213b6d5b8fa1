//! The Kubernetes side of a pass: server-side apply, and what became of it.

use std::fmt::Debug;

use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::Pod;
use kube::api::{ListParams, Patch, PatchParams};
use kube::{Api, Client, Resource, ResourceExt};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::desired::naming::{MANAGER, object_name, selector};
use crate::desired::workload::Workload;
use crate::resource::OutboxRelay;
use crate::status::Finding;

/// Applies all objects, what pods need before the pods.
pub(super) async fn apply(client: &Client, workload: Workload) -> Result<(), kube::Error> {
    let Workload { service_account, config_map, service, disruption_budget, deployment } = workload;
    one(client, &service_account).await?;
    one(client, &config_map).await?;
    one(client, &service).await?;
    one(client, &disruption_budget).await?;
    one(client, &deployment).await
}

async fn one<K>(client: &Client, object: &K) -> Result<(), kube::Error>
where
    K: Resource<Scope = NamespaceResourceScope> + Clone + Debug + Serialize + DeserializeOwned,
    K::DynamicType: Default,
{
    let api: Api<K> = Api::namespaced(client.clone(), &object.namespace().unwrap_or_default());
    let parameters = PatchParams::apply(MANAGER).force();
    api.patch(&object.name_any(), &parameters, &Patch::Apply(object)).await.map(drop)
}

/// Whether a pod of the relay is ready.
pub(super) async fn available(client: &Client, relay: &OutboxRelay) -> Result<Finding, kube::Error> {
    let namespace = relay.namespace().unwrap_or_default();
    let deployments: Api<Deployment> = Api::namespaced(client.clone(), &namespace);
    let Some(deployment) = deployments.get_opt(&object_name(relay)).await? else {
        return Ok(Finding::no("NotMade", "the Deployment is not made yet"));
    };
    let status = deployment.status.unwrap_or_default();
    if status.available_replicas.unwrap_or(0) > 0 {
        return Ok(Finding::yes("Available", ""));
    }
    if relay.spec.suspend {
        return Ok(Finding::no("Suspended", "no pods are meant to run"));
    }
    let pods: Api<Pod> = Api::namespaced(client.clone(), &namespace);
    let labels: Vec<String> = selector(relay).iter().map(|(key, value)| format!("{key}={value}")).collect();
    let pods = pods.list(&ListParams::default().labels(&labels.join(","))).await?;
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
