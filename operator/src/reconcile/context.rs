//! What all reconciliations share.

use std::sync::Arc;
use std::time::Instant;

use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::Pod;
use kube::{Api, Client, Resource, ResourceExt};
use serde_json::Value;
use tokio::sync::{OnceCell, Semaphore};

use super::cache::ReconcileCache;
use crate::connections::Connections;
use crate::desired::pod::{PodDefaults, UserIds};
use crate::events::{self, EventType};
use crate::metrics::Metrics;
use crate::resource::OutboxRelay;
use crate::stores::Stores;
use crate::user_ids;

/// Reconciliations wait for servers most of the time. Of all namespaces together.
pub const MOST_AT_ONCE: u16 = 64;

/// What relays have whose resource does not set it.
pub struct RelayDefaults {
    /// Image of the pods.
    pub image: String,
    /// Laid under the resource's pod template.
    pub pod_template: Option<Value>,
}

/// See the module's text.
pub struct Context {
    /// To the API server.
    pub(super) client: Client,
    pub(super) defaults: RelayDefaults,
    /// What is seen of the API server's objects: one for each namespace that is watched, or one for all.
    stores: Vec<Stores>,
    /// To databases and Kafka clusters.
    pub(super) connections: Connections,
    /// From one reconciliation to the next.
    pub(super) cache: ReconcileCache,
    pub(super) metrics: Metrics,
    /// Which users pods may run as: discovered once.
    user_ids: OnceCell<UserIds>,
    /// When the process began: the start of the resync ticks.
    pub(super) since: Instant,
    /// Those of reconciliations, whatever the number of namespaces.
    pub permits: Semaphore,
}

impl Context {
    /// Nothing was reconciled yet.
    pub fn new(client: Client, defaults: RelayDefaults, stores: Vec<Stores>, metrics: Metrics) -> Context {
        Context {
            client,
            defaults,
            stores,
            connections: Connections::default(),
            cache: ReconcileCache::default(),
            metrics,
            user_ids: OnceCell::new(),
            since: Instant::now(),
            permits: Semaphore::new(MOST_AT_ONCE.into()),
        }
    }

    /// What is seen of the API server's objects.
    pub fn stores(&self) -> &[Stores] {
        &self.stores
    }

    /// Counts a reconciliation of `relay` that the API server made fail; returns how many in a row did.
    pub fn on_failure(&self, relay: &OutboxRelay) -> u32 {
        self.cache.with(relay, |cached| {
            cached.failures = cached.failures.saturating_add(1);
            cached.failures
        })
    }

    /// The resource is gone.
    pub fn forget(&self, namespace: &str, name: &str) {
        self.metrics.forget(namespace, name);
        self.cache.forget(namespace, name);
        self.stores.iter().for_each(|stores| stores.forget(namespace, name));
    }

    /// Objects of a kind in the namespace of `relay`.
    pub(super) fn namespaced<K>(&self, relay: &impl ResourceExt) -> Api<K>
    where
        K: Resource<Scope = NamespaceResourceScope, DynamicType = ()>,
    {
        Api::namespaced(self.client.clone(), &relay.namespace().unwrap_or_default())
    }

    pub(super) fn find_in_relays<T>(&self, find: impl Fn(&OutboxRelay) -> Option<T>) -> Option<T> {
        self.stores.iter().find_map(|stores| stores.find_in_relays(&find))
    }

    pub(super) fn deployment(&self, relay: &OutboxRelay) -> Option<Arc<Deployment>> {
        self.stores.iter().find_map(|stores| stores.deployment(relay))
    }

    pub(super) fn pods(&self, relay: &OutboxRelay) -> Vec<Arc<Pod>> {
        self.stores.iter().flat_map(|stores| stores.pods(relay)).collect()
    }

    pub(super) fn change_count(&self, relay: &OutboxRelay) -> u64 {
        self.stores.iter().map(|stores| stores.change_count(relay)).sum()
    }

    /// What is the same for all pods. The API server is asked the first time.
    pub(super) async fn pod_defaults(&self) -> Result<PodDefaults<'_>, kube::Error> {
        let discover = async || self.metrics.kubernetes("discover", user_ids::of_cluster(&self.client)).await;
        let user_ids = self.user_ids.get_or_try_init(discover).await?;
        let RelayDefaults { image, pod_template } = &self.defaults;
        Ok(PodDefaults { image, user_ids: *user_ids, template: pod_template.as_ref() })
    }

    /// Reports what has happened, in the log and as an Event.
    pub(super) fn publish_event(&self, relay: &OutboxRelay, type_: EventType, reason: &str, note: &str) {
        let (namespace, name) = (relay.namespace(), relay.name_any());
        match type_ {
            EventType::Normal => tracing::info!(namespace, name, reason, "{note}"),
            EventType::Warning => tracing::warn!(namespace, name, reason, "{note}"),
        }
        events::publish(&self.client, relay, type_, reason, note);
    }
}
