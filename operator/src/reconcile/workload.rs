//! The Kubernetes side of a reconciliation: the relay's objects by server-side apply, and the state of its pods.

use std::fmt::Debug;
use std::sync::Arc;
use std::time::{Duration, Instant};

use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{ConfigMap, Service, ServiceAccount};
use k8s_openapi::api::networking::v1::NetworkPolicy;
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use k8s_openapi::jiff::Timestamp;
use kube::api::{DeleteParams, Patch, PatchParams, Preconditions};
use kube::{Api, Resource, ResourceExt};
use outbox_relay::config::Config;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::json;

use super::applied_configuration::{self, Wait};
use super::pods::has_ended;
use super::rollout::availability;
use super::side::Unusable;
use super::{Context, ReconcileError};
use crate::conditions::{ConditionState, ConditionType, Reason, StepConditions};
use crate::desired::configuration_file::ConfigurationFile;
use crate::desired::naming::{MANAGER, object_name};
use crate::desired::workload::{Workload, workload};
use crate::digest::WorkloadDigest;
use crate::metrics::Metrics;
use crate::resource::OutboxRelay;

/// What this step returns.
pub(super) struct WorkloadReport {
    pub(super) conditions: StepConditions,
    pub(super) result: Result<(), NotApplied>,
}

/// Why no object was applied.
pub(super) enum NotApplied {
    /// Something has to change first; the condition says what.
    Waits,
    /// The API server refused, or did not answer.
    Failed(ReconcileError),
}

/// Objects that were applied, to tell whether that is due again.
#[derive(Clone)]
pub(super) struct AppliedObjects {
    digest: WorkloadDigest,
    /// [`crate::stores::Stores::change_count`] from before.
    pub(super) change_count: u64,
    at: Instant,
    /// How often in a row the same objects were applied again, each time soon after they had been changed by something else.
    repairs: u32,
}

/// So many repairs in a row are made at once. An admission webhook, or another controller, that changes an object at each write would
/// otherwise be answered as fast as the API server can.
const REPAIRS_AT_ONCE: u32 = 5;
/// The pause before the next ones.
const REPAIR_INTERVAL: Duration = Duration::from_secs(60);

impl AppliedObjects {
    /// What is to be remembered after these are applied now; `None` where that is not due.
    fn next(
        before: Option<&AppliedObjects>,
        digest: WorkloadDigest,
        change_count: u64,
        now: Instant,
    ) -> Option<AppliedObjects> {
        let Some(before) = before.filter(|before| before.digest == digest) else {
            return Some(AppliedObjects { digest, change_count, at: now, repairs: 0 });
        };
        if before.change_count == change_count {
            return None;
        }
        let is_soon = now.duration_since(before.at) < REPAIR_INTERVAL;
        if is_soon && before.repairs >= REPAIRS_AT_ONCE {
            return None;
        }
        let repairs = if is_soon { before.repairs + 1 } else { 0 };
        Some(AppliedObjects { digest, change_count, at: now, repairs })
    }
}

/// The Deployment, as far as the objects were applied.
enum Applied {
    /// As it is after it was applied now.
    Now(Box<Deployment>),
    /// The objects were as they should be.
    Before,
    /// None was applied: the named object has another owner.
    NameTaken(String),
    /// None was applied: pods get another configuration only with servers that can be used.
    Waits(Wait),
}

/// Applies the objects of `resolved`, which is the resource without references, where that is due. Objects that are there are applied also
/// where a server is `unusable`: it must not keep pods from getting more memory, or a Deployment from being made again.
pub(super) async fn check(
    relay: &OutboxRelay,
    context: &Context,
    resolved: &OutboxRelay,
    config: &Config,
    unusable: Unusable,
) -> WorkloadReport {
    // Boxed: the objects are large, and most reconciliations apply none.
    let applied = Box::pin(apply_if_due(relay, context, resolved, config, unusable)).await;
    let note = if let Ok(Applied::Waits(wait)) = &applied { wait.note() } else { None };
    let (state, result) = match applied {
        Ok(Applied::Now(deployment)) => (available(relay, context, Some(*deployment)), Ok(())),
        Ok(Applied::Before) => (available(relay, context, None), Ok(())),
        Ok(Applied::NameTaken(object)) => (name_taken(&object), Err(NotApplied::Waits)),
        Ok(Applied::Waits(_)) => (available(relay, context, None), Err(NotApplied::Waits)),
        Err(error) => (not_applied(&error), Err(NotApplied::Failed(error))),
    };
    context.metrics.step("workload", result.is_ok());
    let mut conditions = StepConditions::of(ConditionType::WorkloadAvailable, state);
    if let Some(note) = note {
        conditions.add_note(ConditionType::WorkloadAvailable, note);
    }
    WorkloadReport { conditions, result }
}

fn name_taken(object: &str) -> ConditionState {
    let remedy = "delete it, or give the resource another name";
    let what = format!("{object} is there and is not this resource's: {remedy}");
    ConditionState::no(Reason::NameTaken, what)
}

/// An API server that fails says nothing about the objects; one that refuses them does.
fn not_applied(error: &ReconcileError) -> ConditionState {
    match error {
        ReconcileError::Kubernetes(error) if is_unavailable(error) => ConditionState::unknown(
            Reason::KubernetesUnavailable,
            format!("the API server failed while the objects were applied: {error}; it is tried again"),
        ),
        error => ConditionState::no(Reason::NotMade, format!("the objects were not applied: {error}")),
    }
}

/// Whether the API server gave no decision: it did not answer, failed, or had too much to do.
fn is_unavailable(error: &kube::Error) -> bool {
    match error {
        kube::Error::Api(status) => status.code >= 500 || status.code == 429,
        _ => true,
    }
}

/// Applies the objects where they are not what was applied last, or were changed since.
async fn apply_if_due(
    relay: &OutboxRelay,
    context: &Context,
    resolved: &OutboxRelay,
    config: &Config,
    unusable: Unusable,
) -> Result<Applied, ReconcileError> {
    // Before anything is applied: what changes meanwhile is applied by the next reconciliation.
    let change_count = context.change_count(relay);
    let file = ConfigurationFile::of(config).map_err(ReconcileError::Configuration)?;
    let defaults = context.pod_defaults().await?;
    let workload = workload(resolved, &file, defaults)
        .map_err(|error| ReconcileError::Configuration(error.to_string()))?;
    let before = context.cache.of(relay).applied;
    let next = AppliedObjects::next(before.as_ref(), workload.digest(), change_count, Instant::now());
    let Some(next) = next else { return Ok(Applied::Before) };
    if let Some(wait) = applied_configuration::wait(context, relay, config, unusable).await? {
        return Ok(Applied::Waits(wait));
    }
    if let Some(object) = taken(context, relay, &workload).await? {
        return Ok(Applied::NameTaken(object));
    }
    let deployment = Box::pin(apply(context, relay, workload)).await?;
    context.cache.with(relay, |cached| cached.applied = Some(next));
    Ok(Applied::Now(Box::new(deployment)))
}

/// Applies all objects, what pods need before the pods; returns the Deployment as it is now.
async fn apply(
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

pub(super) fn is_owned(object: &ObjectMeta, relay: &OutboxRelay) -> bool {
    let owner = relay.uid().unwrap_or_default();
    object.owner_references.iter().flatten().any(|reference| reference.uid == owner)
}

/// The first object that has a name of the relay's objects and another owner. It would be changed, and deleted with this resource.
async fn taken(
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
    relay: &OutboxRelay,
    context: &Context,
    applied: Option<Deployment>,
) -> ConditionState {
    let found = applied.map(Arc::new).or_else(|| context.deployment(relay));
    let Some(deployment) = found else {
        return ConditionState::no(Reason::NotYet, "the Deployment is not made yet");
    };
    if relay.spec.suspend {
        return ConditionState::no(Reason::Suspended, "no pods are meant to run");
    }
    availability(&deployment, &context.pods(relay), relay.spec.relay.replicas, Timestamp::now())
}

/// Ends the pods of a relay that is suspended, whatever other problems exist.
pub(super) async fn suspend(relay: &OutboxRelay, context: &Context) -> Result<StepConditions, kube::Error> {
    if !relay.spec.suspend || !stop(relay, context).await? {
        return Ok(StepConditions::default());
    }
    let suspended = ConditionState::yes(Reason::Suspended, "spec.suspend is true, and no pod is left");
    Ok(StepConditions::of(ConditionType::Suspended, suspended))
}

/// Scales the Deployment to zero. Returns whether no pod is left.
async fn stop(relay: &OutboxRelay, context: &Context) -> Result<bool, kube::Error> {
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
    use kube::core::Status;

    use super::*;

    /// A webhook that changes an object at each write: every application is followed by a change.
    #[test]
    fn objects_that_something_changes_at_each_write_are_repaired_once_a_minute() {
        let (digest, now) = (|text| WorkloadDigest::of([text]), Instant::now());
        let mut applied = AppliedObjects::next(None, digest("a"), 0, now).unwrap();
        let mut count = 0;
        let mut repair = |applied: &mut AppliedObjects, at| {
            count += 1;
            let next = AppliedObjects::next(Some(applied), digest("a"), count, at);
            next.is_some_and(|next| {
                *applied = next;
                true
            })
        };
        let at_once = (0..100).filter(|_| repair(&mut applied, now)).count();
        assert_eq!(at_once, REPAIRS_AT_ONCE as usize);
        let after_the_pause = (0..100).filter(|_| repair(&mut applied, now + REPAIR_INTERVAL)).count();
        assert_eq!(after_the_pause, 1 + REPAIRS_AT_ONCE as usize);
        assert!(
            AppliedObjects::next(Some(&applied), applied.digest.clone(), applied.change_count, now).is_none()
        );
        assert!(AppliedObjects::next(Some(&applied), digest("b"), 0, now).is_some(), "it was edited");
    }

    #[test]
    fn an_api_server_that_fails_is_not_taken_for_one_that_refuses() {
        let reason = |code| {
            let answer = Status { code, ..Status::default() };
            not_applied(&ReconcileError::Kubernetes(kube::Error::Api(answer.boxed()))).reason
        };
        for code in [429, 500, 503, 504] {
            assert_eq!(reason(code), Reason::KubernetesUnavailable, "{code}");
        }
        for code in [403, 409, 422] {
            assert_eq!(reason(code), Reason::NotMade, "{code}");
        }
        let no_answer = ReconcileError::Kubernetes(kube::Error::LinesCodecMaxLineLengthExceeded);
        assert_eq!(not_applied(&no_answer).reason, Reason::KubernetesUnavailable);
    }
}
