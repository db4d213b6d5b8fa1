//! What this process remembers of a resource from one reconciliation to the next. Nothing rests on it: without it everything is looked at, and
//! applied, once more.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use kube::ResourceExt;

use crate::conditions::ConditionType;
use crate::references;
use crate::resource::{OutboxRelay, OutboxRelayStatus};
use crate::secrets::Values;
use crate::topics::{Cluster, Contests, Topics};

/// By namespace and name. A resource that was recreated under the same name has another status, and other objects.
#[derive(Default)]
pub struct ReconcileCache(Mutex<HashMap<(String, String), CachedState>>);

/// Of one resource.
#[derive(Clone, Default)]
pub struct CachedState {
    /// The last reconciliation that found everything as it should be.
    pub last_success: Option<Arc<LastSuccess>>,
    /// What its references led to.
    pub references: references::LastRead,
    /// What its Secrets held under the keys that it references, when they were last read.
    pub secrets: Option<Arc<Values>>,
    /// What was applied last.
    pub applied: Option<Applied>,
    /// Keys of its topics that something else sets back.
    pub contests: Contests,
    /// Rights that the deletion lacks, as they were told of.
    pub missing_rights: BTreeMap<ConditionType, String>,
    /// Reconciliations in a row that the API server has refused something.
    pub failures: u32,
    /// Reconciliations in a row in which its database or Kafka did not answer.
    pub servers_away: u32,
    /// Reasons of Events, and when each was written last.
    pub told: HashMap<String, Instant>,
}

/// A reconciliation that found everything as it should be.
pub struct LastSuccess {
    /// When.
    pub at: Instant,
    /// Of the specification.
    pub generation: Option<i64>,
    /// As it was written.
    pub status: OutboxRelayStatus,
    /// Its topics.
    pub topics: ObservedTopics,
}

/// The topics as the last reconciliation saw them.
pub enum ObservedTopics {
    /// Where they are, and how they were.
    At(Cluster, Topics),
    /// The operator has no access to them.
    NoAccess,
}

/// Objects that were applied.
#[derive(Clone, PartialEq, Eq)]
pub struct Applied {
    /// Of all of them.
    pub digest: String,
    /// [`crate::stores::Stores::change_count`] from before.
    pub change_count: u64,
}

impl ReconcileCache {
    /// What is remembered of `relay`.
    pub fn of(&self, relay: &OutboxRelay) -> CachedState {
        self.with(relay, |remembered| remembered.clone())
    }

    /// Changes what is remembered of `relay`.
    pub fn with<T>(&self, relay: &OutboxRelay, change: impl FnOnce(&mut CachedState) -> T) -> T {
        let mut cached = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        change(cached.entry((relay.namespace().unwrap_or_default(), relay.name_any())).or_default())
    }

    /// It is gone.
    pub fn forget(&self, namespace: &str, name: &str) {
        let mut cached = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        cached.remove(&(namespace.to_owned(), name.to_owned()));
    }
}
