//! The Kubernetes side of a reconciliation: server-side apply, and what became of it.

use std::fmt::Debug;
use std::sync::Arc;

use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{ConfigMap, Service, ServiceAccount};
use k8s_openapi::api::networking::v1::NetworkPolicy;
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use k8s_openapi::jiff::Timestamp;
use kube::api::{DeleteParams, Patch, PatchParams, Preconditions};
use kube::{Api, Resource, ResourceExt};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::json;

use super::Context;
use super::pods::{has_ended, problem};
use crate::conditions::{ConditionState, Reason};
use crate::desired::naming::{MANAGER, object_name};
use crate::desired::workload::Workload;
use crate::metrics::Metrics;
use crate::resource::OutboxRelay;

/// Applies all objects, what pods need before the pods; answers the Deployment as it is now.
pub(super) async fn apply(
    context: &Context,
    relay: &OutboxRelay,
    workload: Workload,
) -> Result<Deployment, kube::Error> {
    let metrics = &context.metrics;
    let Workload { service_account, config_map, service, disruption_budget, network_policy, deployment } =
        workload;
    one(metrics, &context.namespaced(relay), &service_account).await?;
    one(metrics, &context.namespaced(relay), &config_map).await?;
    one(metrics, &context.namespaced(relay), &service).await?;
    one(metrics, &context.namespaced(relay), &disruption_budget).await?;
    match network_policy {
        Some(policy) => drop(one(metrics, &context.namespaced(relay), &policy).await?),
        None => {
            let policies = context.namespaced::<NetworkPolicy>(relay);
            delete_own(metrics, &policies, relay, DeleteParams::default()).await?;
        }
    }
    one(metrics, &context.namespaced(relay), &deployment).await
}

/// Deletes an object that the resource no longer asks for; not one of the same name with another owner.
pub(super) async fn delete_own<K>(
    metrics: &Metrics,
    api: &Api<K>,
    relay: &OutboxRelay,
    how: DeleteParams,
) -> Result<(), kube::Error>
where
    K: Resource + Clone + Debug + DeserializeOwned,
{
    let name = object_name(relay);
    let found = metrics.kubernetes("get", api.get_metadata_opt(&name)).await?;
    let Some(found) = found.map(|found| found.metadata).filter(|found| is_owned(found, relay)) else {
        return Ok(());
    };
    let this_one = Preconditions { uid: found.uid, resource_version: None };
    let parameters = DeleteParams { preconditions: Some(this_one), ..how };
    match metrics.kubernetes("delete", api.delete(&name, &parameters)).await {
        // It is gone, or another is there by now.
        Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => Ok(()),
        deleted => deleted.map(drop),
    }
}

fn is_owned(object: &ObjectMeta, relay: &OutboxRelay) -> bool {
    let owner = relay.uid().unwrap_or_default();
    object.owner_references.iter().flatten().any(|reference| reference.uid == owner)
}

/// The first object that has a name of the relay's objects and another owner. It would be changed, and deleted with this resource.
pub(super) async fn taken(
    context: &Context,
    relay: &OutboxRelay,
    workload: &Workload,
) -> Result<Option<String>, kube::Error> {
    let metrics = &context.metrics;
    Ok(match workload.network_policy {
        Some(_) => foreign(metrics, &context.namespaced::<NetworkPolicy>(relay), relay).await?,
        None => None,
    }
    .or(foreign(metrics, &context.namespaced::<ServiceAccount>(relay), relay).await?)
    .or(foreign(metrics, &context.namespaced::<ConfigMap>(relay), relay).await?)
    .or(foreign(metrics, &context.namespaced::<Service>(relay), relay).await?)
    .or(foreign(metrics, &context.namespaced::<PodDisruptionBudget>(relay), relay).await?)
    .or(foreign(metrics, &context.namespaced::<Deployment>(relay), relay).await?))
}

async fn foreign<K>(
    metrics: &Metrics,
    api: &Api<K>,
    relay: &OutboxRelay,
) -> Result<Option<String>, kube::Error>
where
    K: Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned,
{
    let name = object_name(relay);
    let found = metrics.kubernetes("get", api.get_metadata_opt(&name)).await?;
    Ok(found.filter(|found| !is_owned(&found.metadata, relay)).map(|_| format!("{} {name}", K::kind(&()))))
}

async fn one<K>(metrics: &Metrics, api: &Api<K>, object: &K) -> Result<K, kube::Error>
where
    K: Resource + Clone + Debug + Serialize + DeserializeOwned,
{
    let parameters = PatchParams::apply(MANAGER).force();
    metrics.kubernetes("apply", api.patch(&object.name_any(), &parameters, &Patch::Apply(object))).await
}

/// Whether the pods that are meant to run do, all of them as they are specified now and ready: what `kubectl rollout status` waits for.
/// `applied` is the Deployment where it has just been applied.
pub(super) fn available(
    context: &Context,
    relay: &OutboxRelay,
    applied: Option<Deployment>,
) -> ConditionState {
    let found = applied.map(Arc::new).or_else(|| context.deployment(relay));
    let Some(deployment) = found else {
        return ConditionState::no(Reason::NotYet, "the Deployment is not made yet");
    };
    if relay.spec.suspend {
        return ConditionState::no(Reason::Suspended, "no pods are meant to run");
    }
    let status = deployment.status.as_ref();
    let rollout = Rollout::of(&deployment, relay.spec.relay.replicas);
    match rollout {
        Rollout::Done => return ConditionState::yes(Reason::Available, ""),
        Rollout::Unseen if status.and_then(|status| status.available_replicas).unwrap_or(0) > 0 => {
            return ConditionState::no(
                Reason::RollingOut,
                "the pods that run are of an earlier specification",
            );
        }
        Rollout::Unseen | Rollout::Progresses { ready: 0, .. } => {}
        Rollout::Progresses { updated, ready, meant } => {
            let problem = context.pods(relay).iter().find_map(|pod| problem(pod, Timestamp::now()));
            let problem = problem.map(|(_, message)| format!(": {message}")).unwrap_or_default();
            let what = format!(
                "{updated} of {meant} pods are of this specification, {ready} pods are ready{problem}"
            );
            return ConditionState::no(Reason::RollingOut, what);
        }
    }
    let (reason, message) =
        context.pods(relay).iter().find_map(|pod| problem(pod, Timestamp::now())).unwrap_or_else(|| {
            let conditions = status.and_then(|status| status.conditions.as_ref());
            let refused =
                conditions.into_iter().flatten().find(|condition| condition.type_ == "ReplicaFailure");
            let message = refused.and_then(|condition| condition.message.clone());
            (Reason::NoPodReady, message.unwrap_or_else(|| "no pod is ready yet".to_owned()))
        });
    ConditionState::no(reason, message)
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

/// Ends the pods of a relay that is suspended, whatever other problems exist. Returns whether none is left.
pub(super) async fn stop(context: &Context, relay: &OutboxRelay) -> Result<bool, kube::Error> {
    let none_left = context.pods(relay).iter().all(|pod| has_ended(pod));
    let Some(deployment) = context.deployment(relay) else { return Ok(none_left) };
    let status = deployment.status.as_ref();
    let has_pods = status.and_then(|status| status.replicas).unwrap_or(0) > 0;
    if has_pods && is_owned(&deployment.metadata, relay) {
        let api = context.namespaced::<Deployment>(relay);
        let (name, none) = (object_name(relay), Patch::Merge(json!({"spec": {"replicas": 0}})));
        let parameters = PatchParams { field_manager: Some(MANAGER.to_owned()), ..PatchParams::default() };
        context.metrics.kubernetes("stop", api.patch(&name, &parameters, &none)).await?;
    }
    Ok(!has_pods && none_left)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_rollout_is_done_when_all_pods_are_new_and_ready() {
        let rollout = |generation, status| {
            let deployment = json!({"metadata": {"generation": generation}, "status": status});
            Rollout::of(&serde_json::from_value(deployment).unwrap(), 2)
        };
        let status = |updated: i32, all: i32, ready: i32| json!({"observedGeneration": 3, "updatedReplicas": updated, "replicas": all, "availableReplicas": ready});
        assert_eq!(rollout(3, status(2, 2, 2)), Rollout::Done);
        assert_eq!(rollout(4, status(2, 2, 2)), Rollout::Unseen);
        for (updated, all, ready) in [(1, 2, 2), (1, 2, 1), (2, 3, 2), (2, 2, 1), (0, 1, 1)] {
            let progresses = Rollout::Progresses { updated, ready, meant: 2 };
            assert_eq!(rollout(3, status(updated, all, ready)), progresses);
        }
    }
}
