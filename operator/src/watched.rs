//! What the API server has, kept up to date by watching, so that a pass does not ask for it: resources, and of what belongs to
//! them the parts that passes look at.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use futures::{Stream, StreamExt, future};
use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{ConfigMap, Pod, Service, ServiceAccount};
use k8s_openapi::api::networking::v1::NetworkPolicy;
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use kube::core::{DeserializeGuard, PartialObjectMeta};
use kube::runtime::reflector::{self, ObjectRef, Store};
use kube::runtime::watcher::{self, watcher};
use kube::runtime::{Controller, WatchStreamExt};
use kube::{Api, Client, Resource, ResourceExt};
use tokio::sync::OnceCell;

use crate::desired::naming::{INSTANCE, MANAGED_BY, MANAGER, object_name};
use crate::metrics::Metrics;
use crate::resource::OutboxRelay;

/// One resource that cannot be read, written by an older or newer version perhaps, must not keep all others from being
/// watched.
pub type Guarded = DeserializeGuard<OutboxRelay>;

/// See the module's text. One namespace, or all of them.
pub struct Watched {
    relays: Store<Guarded>,
    deployments: Store<Deployment>,
    pods: Store<Pod>,
    touched: Arc<Touched>,
    seen: OnceCell<()>,
}

/// How often something that belongs to a resource has changed, by the resource's namespace and name: an object that nobody has
/// touched since it was applied is not applied again.
#[derive(Default)]
struct Touched(Mutex<HashMap<(String, String), u64>>);

impl Watched {
    /// What is there of `namespace`, or of all; with the loop that its changes set in motion, and a stream that has to be polled
    /// beside it.
    pub fn begin(
        client: &Client,
        namespace: Option<&str>,
        metrics: &Metrics,
    ) -> (Watched, Controller<Guarded>, impl Stream<Item = ()> + Send + use<>) {
        let touched = Arc::new(Touched::default());
        let place = Place { client: client.clone(), namespace: namespace.map(str::to_owned) };
        let (relays, relays_written) = reflector::store();
        let (deployments, deployments_written) = reflector::store();
        let (pods, pods_written) = reflector::store();
        let crd_missing = metrics.crd_missing.clone();
        let resources = watcher(place.api::<Guarded>(), watcher::Config::default())
            .default_backoff()
            .inspect(move |seen| crd_missing.set(seen.as_ref().err().is_some_and(is_missing).into()))
            .modify(|relay| relay.meta_mut().managed_fields = None)
            .reflect(relays_written)
            .touched_objects();
        let mut controller = Controller::for_stream(resources, relays.clone());
        let made = watcher(place.api::<Deployment>(), ours())
            .default_backoff()
            .modify(|deployment| {
                (deployment.metadata.managed_fields, deployment.spec) = (None, None);
            })
            .reflect(deployments_written)
            .touched_objects();
        controller = controller.owns_stream(touched.count(made));
        controller = controller.owns_stream(touched.count(place.metadata::<ConfigMap>()));
        controller = controller.owns_stream(touched.count(place.metadata::<Service>()));
        controller = controller.owns_stream(touched.count(place.metadata::<ServiceAccount>()));
        controller = controller.owns_stream(touched.count(place.metadata::<PodDisruptionBudget>()));
        controller = controller.owns_stream(touched.count(place.metadata::<NetworkPolicy>()));
        // They belong to others, and passes look at them anyway.
        let seen = watcher(place.api::<Pod>(), ours())
            .default_backoff()
            .modify(|pod| (pod.metadata.managed_fields, pod.spec) = (None, None))
            .reflect(pods_written)
            .touched_objects()
            .map(|seen| {
                if let Err(error) = seen {
                    tracing::warn!(%error, "cannot watch pods: may the operator read them?");
                }
            });
        (Watched { relays, deployments, pods, touched, seen: OnceCell::new() }, controller, seen)
    }

    /// Waits until all of it has been seen once. Without the rights to see it, that is never.
    pub async fn seen(&self) {
        let once = async || {
            let (deployments, pods) = (self.deployments.wait_until_ready(), self.pods.wait_until_ready());
            // A store that is dropped ends the process anyway.
            drop(future::join(deployments, pods).await);
        };
        // One waits for all: of several that wait for a store, only the last is woken.
        self.seen.get_or_init(once).await;
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
        let (namespace, name) = (relay.meta().namespace.as_deref(), relay.meta().name.as_deref());
        let workload = object_name(relay);
        let is_wanted = |pod: &Pod| {
            // First what is cheap: of all pods, a few are this resource's.
            pod.meta().name.as_ref().is_some_and(|pod| pod.starts_with(&workload))
                && pod.meta().namespace.as_deref() == namespace
                && pod.labels().get(INSTANCE).map(String::as_str) == name
        };
        self.pods.state_filter(is_wanted)
    }

    /// Changes whenever something that belongs to the resource does.
    pub fn touched(&self, relay: &OutboxRelay) -> u64 {
        let key = (relay.namespace().unwrap_or_default(), relay.name_any());
        self.touched.0.lock().unwrap_or_else(PoisonError::into_inner).get(&key).copied().unwrap_or(0)
    }

    /// The resource is gone.
    pub fn forget(&self, namespace: &str, name: &str) {
        let key = (namespace.to_owned(), name.to_owned());
        self.touched.0.lock().unwrap_or_else(PoisonError::into_inner).remove(&key);
    }
}

impl Touched {
    fn count<K: Resource, S: Stream<Item = Result<K, watcher::Error>>>(
        self: &Arc<Self>,
        objects: S,
    ) -> impl Stream<Item = Result<K, watcher::Error>> + use<K, S> {
        let touched = Arc::clone(self);
        objects.inspect(move |object| {
            let Ok(object) = object else { return };
            let mut counts = touched.0.lock().unwrap_or_else(PoisonError::into_inner);
            for owner in object.owner_references() {
                *counts.entry((object.namespace().unwrap_or_default(), owner.name.clone())).or_default() += 1;
            }
        })
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

/// Where is looked.
struct Place {
    client: Client,
    namespace: Option<String>,
}

impl Place {
    fn api<K>(&self) -> Api<K>
    where
        K: Resource<Scope = NamespaceResourceScope, DynamicType = ()>,
    {
        match &self.namespace {
            Some(namespace) => Api::namespaced(self.client.clone(), namespace),
            None => Api::all(self.client.clone()),
        }
    }

    fn metadata<K>(&self) -> impl Stream<Item = Result<PartialObjectMeta<K>, watcher::Error>> + use<K>
    where
        K: Resource<Scope = NamespaceResourceScope, DynamicType = ()>
            + Clone
            + std::fmt::Debug
            + serde::de::DeserializeOwned
            + Send
            + 'static,
    {
        watcher(self.api::<PartialObjectMeta<K>>(), ours()).default_backoff().touched_objects()
    }
}

fn ours() -> watcher::Config {
    watcher::Config::default().labels(&format!("{MANAGED_BY}={MANAGER}"))
}
