//! One pass over one resource: look, do what is to be done, and say what was found. In this order, and a step that fails stops
//! those after it, never a workload that runs:
//!
//! Secrets -> specification -> database and publication -> topics -> workload -> status.

mod cleanup;
mod conflicts;
mod deletion_rights;
mod finalizer;
mod owned_topics;
mod paused;
mod pods;
mod relay_status;
mod resolve;
mod sink;
mod source;
mod steady_state;
mod workload;

use std::sync::Arc;
use std::time::{Duration, Instant};

use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::jiff::Timestamp;
use kube::api::{Patch, PatchParams};
use kube::runtime::controller::Action;
use kube::{Api, Client, Resource, ResourceExt};
use outbox_relay::config::Config;
use serde_json::{Value, json};
use tokio::sync::{OnceCell, Semaphore};

pub use self::finalizer::reconcile_unreadable;
use self::resolve::{Resolution, resolve};
use self::sink::Kafka;
use crate::cache::{Applied, LastSuccess, ObservedTopics, ReconcileCache};
use crate::conditions::{ConditionState, ConditionType, Conditions, Reason};
use crate::connections::Connections;
use crate::desired::naming::MANAGER;
use crate::desired::pod::{PodDefaults, UserIds};
use crate::desired::workload::workload;
use crate::events::{self, EventType};
use crate::metrics::{Metrics, Outcome};
use crate::references::LookError;
use crate::resource::{Condition, OutboxRelay, OutboxRelayStatus, TopicStatus};
use crate::secrets::ReadError;
use crate::stores::{NotSynced, Stores};
use crate::user_ids;

/// How often everything is looked at again: what happens outside shows within 10 s.
const RESYNC_INTERVAL: Duration = Duration::from_secs(8);
/// Looks are at beats of this process's clock, so that those of many resources are one waking.
const TICK: Duration = Duration::from_secs(1);
/// So many failed looks in a row are as quick as others; then each pause is twice the one before,
const RESYNCS_BEFORE_BACKOFF: u32 = 3;
/// so many times: up to 64 s.
const MOST_DOUBLINGS: u32 = 3;
/// Others see what a database or Kafka cluster is after a moment.
const IDENTIFIED: Duration = Duration::from_millis(500);
/// Pause after a change whose watch event starts the next reconciliation, or while deletion waits.
const RETRY_AFTER: Duration = Duration::from_secs(5);

/// An Event about readiness is written for each reason at most so often,
const EVENT_INTERVAL: Duration = Duration::from_secs(5 * 60);
/// and for so many reasons within that time: a pod that gives another one each time must not fill the cluster with Events.
const MOST_REASONS: usize = 20;

/// What all passes share.
pub struct Context {
    /// To the API server.
    pub client: Client,
    /// Image of relays that name none.
    pub image: String,
    /// Laid under what resources say of their pods.
    pub pod_template: Option<Value>,
    /// What is seen of the API server's objects: one for each namespace that is looked at, or one for all.
    pub stores: Vec<Stores>,
    /// To databases and Kafka clusters.
    pub connections: Connections,
    /// From one pass to the next.
    pub cache: ReconcileCache,
    /// What `/metrics` shows.
    pub metrics: Metrics,
    /// Who chooses the users of pods; looked at once.
    pub user_ids: OnceCell<UserIds>,
    /// When the process began.
    pub since: Instant,
    /// Those of reconciliations, whatever the number of namespaces.
    pub turns: Semaphore,
}

impl Context {
    /// Objects of a kind in the namespace of `relay`.
    fn namespaced<K>(&self, relay: &impl ResourceExt) -> Api<K>
    where
        K: Resource<Scope = NamespaceResourceScope, DynamicType = ()>,
    {
        Api::namespaced(self.client.clone(), &relay.namespace().unwrap_or_default())
    }

    fn next_resync(&self) -> Action {
        let past_tick = self.since.elapsed().as_nanos() % TICK.as_nanos();
        Action::requeue(RESYNC_INTERVAL - Duration::from_nanos_u128(past_tick))
    }

    /// When to look again at a resource whose database or Kafka did not answer `failures` times in a row: what does not answer takes time, and
    /// the others need it.
    fn next_resync_after(&self, failures: u32) -> Action {
        match failures.saturating_sub(RESYNCS_BEFORE_BACKOFF) {
            0 => self.next_resync(),
            more => Action::requeue(RESYNC_INTERVAL * (1 << more.min(MOST_DOUBLINGS))),
        }
    }

    fn find_in_relays<T>(&self, look: impl Fn(&OutboxRelay) -> Option<T>) -> Option<T> {
        self.stores.iter().find_map(|stores| stores.find_in_relays(&look))
    }

    fn deployment(&self, relay: &OutboxRelay) -> Option<Arc<Deployment>> {
        self.stores.iter().find_map(|stores| stores.deployment(relay))
    }

    fn pods(&self, relay: &OutboxRelay) -> Vec<Arc<Pod>> {
        self.stores.iter().flat_map(|stores| stores.pods(relay)).collect()
    }

    fn change_count(&self, relay: &OutboxRelay) -> u64 {
        self.stores.iter().map(|stores| stores.change_count(relay)).sum()
    }

    /// What is the same for all pods. The API server is asked the first time.
    async fn pod_defaults(&self) -> Result<PodDefaults<'_>, kube::Error> {
        let look = async || self.metrics.kubernetes("discover", user_ids::of_cluster(&self.client)).await;
        let user_ids = self.user_ids.get_or_try_init(look).await?;
        Ok(PodDefaults { image: &self.image, user_ids: *user_ids, template: self.pod_template.as_ref() })
    }

    /// Says what has happened, in the log and as an Event.
    fn publish_event(&self, relay: &OutboxRelay, type_: EventType, reason: &str, note: &str) {
        let (namespace, name) = (relay.namespace(), relay.name_any());
        match type_ {
            EventType::Normal => tracing::info!(namespace, name, reason, "{note}"),
            EventType::Warning => tracing::warn!(namespace, name, reason, "{note}"),
        }
        events::publish(&self.client, relay, type_, reason, note);
    }

    /// The resource is gone.
    pub fn forget(&self, namespace: &str, name: &str) {
        self.metrics.forget(namespace, name);
        self.cache.forget(namespace, name);
        self.stores.iter().for_each(|stores| stores.forget(namespace, name));
    }
}

/// The API server did not do what it was asked. Everything else is a finding.
#[derive(Debug, thiserror::Error)]
pub enum ReconcileError {
    /// It refused, or was away.
    #[error("Kubernetes: {0}")]
    Kubernetes(#[from] kube::Error),
    /// It did not give a Secret.
    #[error("Kubernetes: {0}")]
    Secret(ReadError),
    /// It did not give a resource of another operator.
    #[error("Kubernetes: {0}")]
    Reference(LookError),
    /// The configuration cannot be written.
    #[error("the relay's configuration: {0}")]
    Configuration(String),
    /// What reconciliations look at was not listed.
    #[error(transparent)]
    NotSynced(#[from] NotSynced),
}

/// One pass.
///
/// # Errors
/// The API server refused something.
pub async fn reconcile(relay: &OutboxRelay, context: &Context) -> Result<Action, ReconcileError> {
    let held = finalizer::is_held(relay);
    let wanted = cleanup::deletes_something(&relay.spec);
    if relay.metadata.deletion_timestamp.is_some() {
        return if held { finalizer::finalize(relay, context).await } else { Ok(Action::await_change()) };
    }
    if paused::is_paused(relay) {
        return paused::say(relay, context).await;
    }
    if held != wanted {
        // Nothing is made before it is certain that it will be looked after. The change brings about the next pass.
        finalizer::set_finalizer(relay, context, wanted).await?;
        return Ok(Action::requeue(RETRY_AFTER));
    }
    pass(relay, context).await
}

async fn pass(relay: &OutboxRelay, context: &Context) -> Result<Action, ReconcileError> {
    let mut pass = Pass::new(relay, context);
    let (since, metrics) = (Instant::now(), &context.metrics);
    if pass.unchanged().await {
        metrics.reconciled(since, Outcome::Unchanged);
        return Ok(context.next_resync());
    }
    let done = Box::pin(pass.run()).await;
    if let Err(error @ (ReconcileError::Secret(_) | ReconcileError::Reference(_))) = done {
        // Next to nothing was checked: the existing conditions still count, and keep their generation.
        metrics.reconciled(since, Outcome::Failed);
        return Err(error);
    }
    let well = pass.findings.is_well();
    let outcome = match (&done, well) {
        (Err(_), _) => Outcome::Failed,
        (Ok(()), true) => Outcome::Ready,
        (Ok(()), false) => Outcome::NotReady,
    };
    metrics.reconciled(since, outcome);
    if !pass.findings.is_reached(ConditionType::SlotReady) {
        // What was seen before says nothing of now.
        metrics.slot(relay, None);
    }
    let status = pass.write_status().await?;
    let is_identified_anew = relay.status.as_ref().is_none_or(|before| {
        before.database_identity != status.database_identity || before.kafka_identity != status.kafka_identity
    });
    let is_server_away = [ConditionType::DatabaseReachable, ConditionType::KafkaReachable]
        .iter()
        .any(|aspect| pass.findings.fails(*aspect));
    let (at, generation) = (Instant::now(), relay.metadata.generation);
    let last_success = pass
        .topics_seen
        .filter(|_| well)
        .map(|topics| Arc::new(LastSuccess { at, generation, status, topics }));
    let away = context.cache.with(relay, |cached| {
        cached.last_success = last_success;
        cached.failures = if done.is_ok() { 0 } else { cached.failures };
        cached.servers_away = if is_server_away { cached.servers_away.saturating_add(1) } else { 0 };
        cached.servers_away
    });
    done.map(|()| match is_identified_anew && !is_server_away {
        true => Action::requeue(IDENTIFIED),
        false => context.next_resync_after(away),
    })
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

async fn put_status(
    context: &Context,
    relay: &OutboxRelay,
    status: &OutboxRelayStatus,
) -> Result<(), kube::Error> {
    let api = context.namespaced::<OutboxRelay>(relay);
    let patch = json!({"apiVersion": OutboxRelay::api_version(&()), "kind": "OutboxRelay", "status": status});
    let parameters = PatchParams::apply(MANAGER).force();
    let (name, patch) = (relay.name_any(), Patch::Apply(patch));
    match context.metrics.kubernetes("status", api.patch_status(&name, &parameters, &patch)).await {
        // It was deleted meanwhile.
        Err(kube::Error::Api(refusal)) if refusal.code == 404 => Ok(()),
        written => written.map(drop),
    }
}

struct Pass<'a> {
    relay: &'a OutboxRelay,
    context: &'a Context,
    findings: Conditions,
    topics: Vec<TopicStatus>,
    database_identity: Option<String>,
    kafka_identity: Option<String>,
    /// Its topics, for the next quick check.
    topics_seen: Option<ObservedTopics>,
}

impl<'a> Pass<'a> {
    fn new(relay: &'a OutboxRelay, context: &'a Context) -> Pass<'a> {
        let before = relay.status.clone().unwrap_or_default();
        let findings = Conditions::new(relay.spec.suspend);
        Pass {
            relay,
            context,
            findings,
            topics: owned_topics::known(before.topics, &relay.spec.topics),
            database_identity: before.database_identity,
            kafka_identity: before.kafka_identity,
            topics_seen: None,
        }
    }
}

impl Pass<'_> {
    async fn run(&mut self) -> Result<(), ReconcileError> {
        if self.relay.spec.suspend && workload::stop(self.context, self.relay).await? {
            let finding = ConditionState::yes(Reason::Suspended, "spec.suspend is true, and no pod is left");
            self.findings.set(ConditionType::Suspended, finding);
        }
        self.findings.set(ConditionType::Streaming, self.streaming().await);
        self.findings
            .set(ConditionType::WorkloadAvailable, workload::available(self.context, self.relay, None));
        let metrics = &self.context.metrics;
        let resolved = resolve(self.relay, self.context).await;
        metrics
            .step("references", resolved.as_ref().is_ok_and(|resolved| resolved.finding.holds == Some(true)));
        let resolved = resolved?;
        self.findings.set(ConditionType::ReferencesResolved, resolved.finding.clone());
        let (config, kafka) = self.check_sides(&resolved).await;
        let (config, cluster) = match (config, kafka) {
            (Some(config), Kafka::Usable(cluster)) => (config, Some(cluster)),
            (Some(config), Kafka::LeftToRelay) => (config, None),
            _ => return Ok(()),
        };
        // Boxed: the objects are large, and most passes make none.
        let applied = Box::pin(self.apply(&resolved.relay, config)).await;
        self.context.metrics.step("workload", matches!(applied, Ok(Ok(_))));
        let applied = applied.inspect_err(|error| {
            self.findings.set(ConditionType::WorkloadAvailable, not_applied(error));
        })?;
        let finding = match applied {
            Ok(applied) => workload::available(self.context, self.relay, applied),
            Err(finding) => {
                self.findings.set(ConditionType::WorkloadAvailable, finding);
                return Ok(());
            }
        };
        self.findings.set(ConditionType::WorkloadAvailable, finding);
        self.topics_seen = match cluster {
            None => Some(ObservedTopics::NoAccess),
            Some(cluster) => {
                let topics = cluster.topics(&self.topic_names()).await;
                topics.ok().map(|topics| ObservedTopics::At(cluster, topics))
            }
        };
        Ok(())
    }

    /// Checks each side whose own references can be used; with the configuration, where a relay could be started.
    async fn check_sides<'r>(&mut self, resolved: &'r Resolution) -> (Option<&'r Config>, Kafka) {
        let (mut config, mut kafka) = (None, Kafka::NotReady);
        if let Some((usable, secrets)) = &resolved.postgres {
            let database = self.database(usable, secrets).await;
            self.context.metrics.step("database", database);
            config = database.then_some(usable);
        }
        if let Some((sink, secrets)) = &resolved.kafka {
            kafka = self.kafka(sink, secrets).await;
            self.context.metrics.step("kafka", !matches!(kafka, Kafka::NotReady));
        }
        (config, kafka)
    }

    fn topic_names(&self) -> Vec<String> {
        self.relay.spec.topics.iter().map(|topic| topic.name.clone()).collect()
    }

    /// Applies the objects where they are not what was applied last, or were change_count since. The finding says why none was applied.
    /// `relay` is the resource without references.
    async fn apply(
        &self,
        relay: &OutboxRelay,
        config: &Config,
    ) -> Result<Result<Option<Deployment>, ConditionState>, ReconcileError> {
        let change_count = self.context.change_count(self.relay);
        let yaml = serde_saphyr::to_string(config)
            .map_err(|error| ReconcileError::Configuration(error.to_string()))?;
        let defaults = self.context.pod_defaults().await?;
        let workload = workload(relay, &yaml, defaults)
            .map_err(|error| ReconcileError::Configuration(error.to_string()))?;
        let wanted = Applied { digest: workload.digest(), change_count };
        if self.context.cache.of(self.relay).applied.as_ref() == Some(&wanted) {
            return Ok(Ok(None));
        }
        if let Some(object) = workload::taken(self.context, self.relay, &workload).await? {
            let remedy = "delete it, or give the resource another name";
            let what = format!("{object} is there and is not this resource's: {remedy}");
            return Ok(Err(ConditionState::no(Reason::NameTaken, what)));
        }
        let deployment = Box::pin(workload::apply(self.context, self.relay, workload)).await?;
        self.context.cache.with(self.relay, |cached| cached.applied = Some(wanted));
        Ok(Ok(Some(deployment)))
    }

    async fn write_status(&self) -> Result<OutboxRelayStatus, ReconcileError> {
        let relay = self.relay;
        let before = relay.status.as_ref().map(|status| status.conditions.clone()).unwrap_or_default();
        let generation = relay.metadata.generation;
        let image = relay.spec.relay.image.clone().unwrap_or_else(|| self.context.image.clone());
        let status = OutboxRelayStatus {
            observed_generation: generation,
            conditions: self.findings.clone().conditions(&before, generation, Timestamp::now()),
            topic_count: i32::try_from(relay.spec.topics.len()).unwrap_or(i32::MAX),
            topics: self.topics.clone(),
            database_identity: self.database_identity.clone(),
            kafka_identity: self.kafka_identity.clone(),
            image: Some(image),
        };
        self.context.metrics.conditions(relay, &status.conditions);
        if relay.status.as_ref() == Some(&status) {
            return Ok(status);
        }
        self.publish_change(&before);
        put_status(self.context, relay, &status).await?;
        Ok(status)
    }

    /// Whether an Event with this reason is due: one that comes and goes is told of every few minutes.
    fn is_event_due(&self, reason: &str) -> bool {
        self.context.cache.with(self.relay, |cached| {
            cached.told.retain(|_, at| at.elapsed() < EVENT_INTERVAL);
            let is_due = !cached.told.contains_key(reason) && cached.told.len() < MOST_REASONS;
            if is_due {
                cached.told.insert(reason.to_owned(), Instant::now());
            }
            is_due
        })
    }

    /// Records readiness, when it or its reason has changed.
    fn publish_change(&self, before: &[Condition]) {
        let now = self.findings.summary();
        let reason = now.reason.to_string();
        let same = |before: &Condition| {
            before.type_ == ConditionType::Ready.to_string()
                && before.status == now.status()
                && before.reason == reason
        };
        if !before.iter().any(same) && self.is_event_due(&reason) {
            let well = now.holds == Some(true) || now.reason.passes();
            let type_ = if well { EventType::Normal } else { EventType::Warning };
            self.context.publish_event(self.relay, type_, &reason, &now.message);
        }
    }
}

#[cfg(test)]
mod tests {
    use kube::core::Status;

    use super::*;

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
