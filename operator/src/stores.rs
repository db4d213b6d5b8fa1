//! What the API server has, kept up to date by watching, so that a reconciliation does not ask for it: resources, and of what belongs to
//! them the parts that reconciliations read.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;
use std::time::Duration;

use futures::{Stream, StreamExt, future};
use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{ConfigMap, Pod, Service, ServiceAccount};
use k8s_openapi::api::networking::v1::NetworkPolicy;
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use kube::core::{DeserializeGuard, PartialObjectMeta};
use kube::runtime::reflector::{self, ObjectRef, Store};
use kube::runtime::watcher::{self, watcher};
use kube::runtime::{Controller, PredicateConfig, WatchStreamExt};
use kube::{Api, Client, Resource, ResourceExt};
use tokio::sync::OnceCell;

use crate::activity::Activity;
use crate::change_counts::ChangeCounts;
use crate::desired::naming::{MANAGED_BY, MANAGER, object_name};
use crate::metrics::Metrics;
use crate::pod_names::PodNames;
use crate::resource::OutboxRelay;

/// One resource that cannot be read, written by an older or newer version perhaps, must not keep all others from being
/// watched.
pub type Guarded = DeserializeGuard<OutboxRelay>;

/// See the module's text. One namespace, or all of them.
pub struct Stores {
    /// `None` is all.
    namespace: Option<String>,
    relays: Store<Guarded>,
    deployments: Store<Deployment>,
    pods: Store<Pod>,
    pod_names: Arc<PodNames>,
    change_counts: Arc<ChangeCounts>,
    seen: OnceCell<()>,
}

/// Something was not seen in time: the operator may not list it, or the API server is slow.
#[derive(Debug, thiserror::Error)]
#[error(
    "Deployments and pods of {0} were not listed within {WITHIN:?}: may the operator list and watch them there?"
)]
pub struct NotSynced(String);

/// How long one reconciliation waits for the first lists.
const WITHIN: Duration = Duration::from_secs(20);

impl Stores {
    /// What is there of `namespace`, or of all; with the loop that its changes set in motion, and a stream that has to be polled
    /// beside it.
    pub fn begin(
        client: &Client,
        namespace: Option<&str>,
        metrics: &Metrics,
        activity: &Activity,
    ) -> (Stores, Controller<Guarded>, impl Stream<Item = ()> + Send + use<>) {
        let change_counts = Arc::new(ChangeCounts::default());
        let scope = Scope {
            client: client.clone(),
            namespace: namespace.map(str::to_owned),
            metrics: metrics.clone(),
        };
        let (relays, relays_written) = reflector::store();
        let (deployments, deployments_written) = reflector::store();
        let (pods, pods_written) = reflector::store();
        let activity = activity.clone();
        let resources = scope
            .watch::<Guarded>(watcher::Config::default())
            .inspect(move |seen| activity.on_crd(seen.as_ref().err().is_some_and(is_missing)))
            .modify(|relay| relay.meta_mut().managed_fields = None)
            .reflect(relays_written)
            .touched_objects()
            .predicate_filter(what_matters, PredicateConfig::default());
        let mut controller = Controller::for_stream(resources, relays.clone());
        let made = change_counts
            .count(scope.watch::<Deployment>(ours()))
            .modify(|deployment| {
                (deployment.metadata.managed_fields, deployment.spec) = (None, None);
            })
            .reflect(deployments_written);
        controller = controller.owns_stream(without_errors(made));
        controller = controller
            .owns_stream(counted(&change_counts, scope.watch::<PartialObjectMeta<ConfigMap>>(ours())));
        controller = controller
            .owns_stream(counted(&change_counts, scope.watch::<PartialObjectMeta<Service>>(ours())));
        controller = controller
            .owns_stream(counted(&change_counts, scope.watch::<PartialObjectMeta<ServiceAccount>>(ours())));
        controller = controller.owns_stream(counted(
            &change_counts,
            scope.watch::<PartialObjectMeta<PodDisruptionBudget>>(ours()),
        ));
        controller = controller
            .owns_stream(counted(&change_counts, scope.watch::<PartialObjectMeta<NetworkPolicy>>(ours())));
        // They belong to ReplicaSets; reconciliations look at them.
        let pod_names = Arc::new(PodNames::default());
        let pods_seen = scope
            .watch::<Pod>(ours())
            .modify(|pod| (pod.metadata.managed_fields, pod.spec) = (None, None))
            .reflect(pods_written);
        let pods_seen = pod_names.note(pods_seen).map(drop);
        let namespace = scope.namespace;
        (
            Stores { namespace, relays, deployments, pods, pod_names, change_counts, seen: OnceCell::new() },
            controller,
            pods_seen,
        )
    }

    /// Waits until what reconciliations of `relay` look at has been listed once, if it is looked after here.
    ///
    /// # Errors
    /// It was not, which concerns no other namespace.
    pub async fn synced(&self, relay: &impl ResourceExt) -> Result<(), NotSynced> {
        if self.namespace.is_some() && self.namespace != relay.namespace() {
            return Ok(());
        }
        let once = async || {
            let (deployments, pods) = (self.deployments.wait_until_ready(), self.pods.wait_until_ready());
            // A store that is dropped ends the process anyway.
            drop(future::join(deployments, pods).await);
        };
        // One waits for all: of several that wait for a store, only the last is woken.
        let listed = tokio::time::timeout(WITHIN, self.seen.get_or_init(once)).await;
        let place = || match &self.namespace {
            Some(namespace) => format!("namespace {namespace}"),
            None => "all namespaces".to_owned(),
        };
        listed.map(drop).map_err(|_| NotSynced(place()))
    }

    /// The resources, with those that cannot be read.
    pub fn relays(&self) -> Store<Guarded> {
        self.relays.clone()
    }

    /// What `look` finds first in the resources that can be read.
    pub fn find_in_relays<T>(&self, look: impl Fn(&OutboxRelay) -> Option<T>) -> Option<T> {
        self.relays.state().iter().find_map(|relay| look(relay.0.as_ref().ok()?))
    }

    /// The Deployment of a resource, without its specification.
    pub fn deployment(&self, relay: &OutboxRelay) -> Option<Arc<Deployment>> {
        let key = ObjectRef::new(&object_name(relay)).within(&relay.namespace().unwrap_or_default());
        self.deployments.get(&key)
    }

    /// The pods of a resource, without their specifications.
    pub fn pods(&self, relay: &OutboxRelay) -> Vec<Arc<Pod>> {
        let key = (relay.namespace().unwrap_or_default(), relay.name_any());
        let workload = object_name(relay);
        let names = self.pod_names.of(&key).into_iter().filter(|name| name.starts_with(&workload));
        names.filter_map(|name| self.pods.get(&ObjectRef::new(&name).within(&key.0))).collect()
    }

    /// Changes whenever something that belongs to the resource does.
    pub fn change_count(&self, relay: &OutboxRelay) -> u64 {
        let key = (relay.namespace().unwrap_or_default(), relay.name_any());
        self.change_counts.count_of(&key)
    }

    /// The resource is gone.
    pub fn forget(&self, namespace: &str, name: &str) {
        let key = (namespace.to_owned(), name.to_owned());
        self.change_counts.forget(&key);
    }
}

/// The API server does not know the resource.
fn is_missing(error: &watcher::Error) -> bool {
    let refusal = match error {
        watcher::Error::InitialListFailed(kube::Error::Api(status))
        | watcher::Error::WatchStartFailed(kube::Error::Api(status)) => Some(status.code),
        _ => None,
    };
    refusal == Some(404)
}

/// What a reconciliation depends on. The status is not part of it: the operator writes it itself, and would start the next reconciliation
/// with it.
fn what_matters(relay: &Guarded) -> Option<u64> {
    let metadata = relay.meta();
    let mut hasher = DefaultHasher::new();
    (&metadata.uid, metadata.generation, &metadata.labels, &metadata.annotations).hash(&mut hasher);
    (&metadata.finalizers, metadata.deletion_timestamp.is_some()).hash(&mut hasher);
    Some(hasher.finish())
}

/// Where is looked.
struct Scope {
    client: Client,
    namespace: Option<String>,
    metrics: Metrics,
}

impl Scope {
    fn api<K>(&self) -> Api<K>
    where
        K: Resource<Scope = NamespaceResourceScope, DynamicType = ()>,
    {
        match &self.namespace {
            Some(namespace) => Api::namespaced(self.client.clone(), namespace),
            None => Api::all(self.client.clone()),
        }
    }

    /// Watches a kind, and shows whether that works.
    fn watch<K>(
        &self,
        config: watcher::Config,
    ) -> impl Stream<Item = Result<watcher::Event<K>, watcher::Error>> + use<K>
    where
        K: Resource<Scope = NamespaceResourceScope, DynamicType = ()>
            + Clone
            + std::fmt::Debug
            + serde::de::DeserializeOwned
            + Send
            + 'static,
    {
        let (namespace, kind) = (self.namespace.clone().unwrap_or_default(), K::kind(&()).into_owned());
        let synced = self.metrics.watch_synced.with_label_values(&[&namespace, &kind]);
        synced.set(0);
        watcher(self.api::<K>(), config).default_backoff().inspect(move |event| {
            synced.set(event.is_ok().into());
            if let Err(error) = event {
                tracing::warn!(namespace, kind, %error, "cannot watch: may the operator list and watch them?");
            }
        })
    }
}

/// The changes of a kind of which nothing is kept.
fn counted<K: Resource, S: Stream<Item = Result<watcher::Event<K>, watcher::Error>>>(
    change_counts: &Arc<ChangeCounts>,
    events: S,
) -> impl Stream<Item = Result<K, watcher::Error>> + use<K, S> {
    without_errors(change_counts.count(events))
}

/// One kind that cannot be watched must not slow down all others: an error in one of its streams makes the controller pause.
fn without_errors<K, S: Stream<Item = Result<watcher::Event<K>, watcher::Error>>>(
    events: S,
) -> impl Stream<Item = Result<K, watcher::Error>> + use<K, S> {
    events.touched_objects().filter(|seen| future::ready(seen.is_ok()))
}

fn ours() -> watcher::Config {
    watcher::Config::default().labels(&format!("{MANAGED_BY}={MANAGER}"))
}
