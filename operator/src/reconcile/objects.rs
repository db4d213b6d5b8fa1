//! The Kubernetes side of a pass: server-side apply, and what became of it.

use std::fmt::Debug;
use std::sync::Arc;

use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::networking::v1::NetworkPolicy;
use k8s_openapi::jiff::Timestamp;
use kube::api::{DeleteParams, Patch, PatchParams, Preconditions};
use kube::{Api, Resource, ResourceExt};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::Context;
use super::pods::trouble;
use crate::desired::naming::{MANAGER, object_name};
use crate::desired::workload::Workload;
use crate::metrics::Metrics;
use crate::resource::OutboxRelay;
use crate::status::{Finding, Reason};

/// Applies all objects, what pods need before the pods; answers the Deployment as it is now.
pub(super) async fn apply(
    context: &Context,
    relay: &OutboxRelay,
    workload: Workload,
) -> Result<Deployment, kube::Error> {
    let metrics = &context.metrics;
    let Workload { service_account, config_map, service, disruption_budget, network_policy, deployment } =
        workload;
    one(metrics, &context.beside(relay), &service_account).await?;
    one(metrics, &context.beside(relay), &config_map).await?;
    one(metrics, &context.beside(relay), &service).await?;
    one(metrics, &context.beside(relay), &disruption_budget).await?;
    match network_policy {
        Some(policy) => drop(one(metrics, &context.beside(relay), &policy).await?),
        None => delete_own(metrics, &context.beside::<NetworkPolicy>(relay), relay).await?,
    }
    one(metrics, &context.beside(relay), &deployment).await
}

/// Deletes an object that the resource no longer asks for; not one of the same name that is somebody else's.
async fn delete_own<K>(metrics: &Metrics, api: &Api<K>, relay: &OutboxRelay) -> Result<(), kube::Error>
where
    K: Resource + Clone + Debug + DeserializeOwned,
{
    let name = object_name(relay);
    let Some(found) = metrics.request("kubernetes", "get", api.get_metadata_opt(&name)).await? else {
        return Ok(());
    };
    let (owner, found) = (relay.uid().unwrap_or_default(), found.metadata);
    if !found.owner_references.iter().flatten().any(|reference| reference.uid == owner) {
        return Ok(());
    }
    let this_one = Preconditions { uid: found.uid, resource_version: found.resource_version };
    let parameters = DeleteParams { preconditions: Some(this_one), ..DeleteParams::default() };
    metrics.request("kubernetes", "delete", api.delete(&name, &parameters)).await.map(drop)
}

async fn one<K>(metrics: &Metrics, api: &Api<K>, object: &K) -> Result<K, kube::Error>
where
    K: Resource + Clone + Debug + Serialize + DeserializeOwned,
{
    let parameters = PatchParams::apply(MANAGER).force();
    metrics
        .request("kubernetes", "apply", api.patch(&object.name_any(), &parameters, &Patch::Apply(object)))
        .await
}

/// Whether a pod of the relay is ready. `applied` is its Deployment where it has just been applied.
pub(super) fn available(context: &Context, relay: &OutboxRelay, applied: Option<Deployment>) -> Finding {
    let found = applied.map(Arc::new).or_else(|| context.deployment(relay));
    let Some(deployment) = found else {
        return Finding::no(Reason::NotYet, "the Deployment is not made yet");
    };
    let status = deployment.status.as_ref();
    if status.and_then(|status| status.available_replicas).unwrap_or(0) > 0 {
        return Finding::yes(Reason::Available, "");
    }
    if relay.spec.suspend {
        return Finding::no(Reason::Suspended, "no pods are meant to run");
    }
    let (reason, message) =
        context.pods(relay).iter().find_map(|pod| trouble(pod, Timestamp::now())).unwrap_or_else(|| {
            let conditions = status.and_then(|status| status.conditions.as_ref());
            let refused =
                conditions.into_iter().flatten().find(|condition| condition.type_ == "ReplicaFailure");
            let message = refused.and_then(|condition| condition.message.clone());
            (Reason::NoPodReady, message.unwrap_or_else(|| "no pod is ready yet".to_owned()))
        });
    Finding::no(reason, message)
}
