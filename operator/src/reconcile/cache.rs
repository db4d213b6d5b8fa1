//! What this process remembers of a resource from one reconciliation to the next. Nothing rests on it: without it everything is looked at, and
//! applied, once more.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, PoisonError};

use kube::ResourceExt;

use super::steady_state::LastSuccess;
use super::workload::AppliedObjects;
use crate::conditions::ConditionType;
use crate::events::PublishedReasons;
use crate::references;
use crate::resource::OutboxRelay;
use crate::secrets::Values;
use crate::topics::Contests;

/// By namespace and name. A resource that was recreated under the same name has another status, and other objects.
#[derive(Default)]
pub(super) struct ReconcileCache(Mutex<HashMap<(String, String), CachedState>>);

/// Of one resource.
#[derive(Clone, Default)]
pub(super) struct CachedState {
    /// The last reconciliation that found everything as it should be.
    pub(super) last_success: Option<Arc<LastSuccess>>,
    /// What its references led to.
    pub(super) references: references::LastRead,
    /// What its Secrets held under the keys that it references, when they were last read.
    pub(super) secrets: Option<Arc<Values>>,
    /// What was applied last.
    pub(super) applied: Option<AppliedObjects>,
    /// Keys of its topics that something else sets back.
    pub(super) contests: Contests,
    /// Rights that the deletion lacks, as they were told of.
    pub(super) missing_rights: BTreeMap<ConditionType, String>,
    /// Reconciliations in a row that the API server has refused something.
    pub(super) failures: u32,
    /// Reconciliations in a row in which its database or Kafka did not answer.
    pub(super) servers_down: u32,
    /// Events about its readiness.
    pub(super) events: PublishedReasons,
}

impl ReconcileCache {
    /// What is remembered of `relay`.
    pub(super) fn of(&self, relay: &OutboxRelay) -> CachedState {
        self.with(relay, |remembered| remembered.clone())
    }

    /// Changes what is remembered of `relay`.
    pub(super) fn with<T>(&self, relay: &OutboxRelay, change: impl FnOnce(&mut CachedState) -> T) -> T {
        let mut cached = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        change(cached.entry((relay.namespace().unwrap_or_default(), relay.name_any())).or_default())
    }

    /// It is gone.
    pub(super) fn forget(&self, namespace: &str, name: &str) {
        let mut cached = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        cached.remove(&(namespace.to_owned(), name.to_owned()));
    }
}
