//! What this process remembers of a resource from one pass to the next. Nothing rests on it: without it everything is looked at, and
//! applied, once more.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use kube::ResourceExt;

use crate::references;
use crate::resource::{OutboxRelay, OutboxRelayStatus};
use crate::secrets::Values;
use crate::status::Aspect;
use crate::topics::{Cluster, Contests, Topics};

/// By namespace and name. A resource that was recreated under the same name has another status, and other objects.
#[derive(Default)]
pub struct Memory(Mutex<HashMap<(String, String), Remembered>>);

/// Of one resource.
#[derive(Clone, Default)]
pub struct Remembered {
    /// The last pass that found everything as it should be.
    pub settled: Option<Arc<Settled>>,
    /// What its references led to.
    pub references: references::Remembered,
    /// What its Secrets held under the keys that it references, when they were last read.
    pub secrets: Option<Arc<Values>>,
    /// What was applied last.
    pub applied: Option<Applied>,
    /// Keys of its topics that something else sets back.
    pub contests: Contests,
    /// Rights that the deletion lacks, as they were told of.
    pub missing_rights: BTreeMap<Aspect, String>,
    /// Passes in a row that the API server has refused something.
    pub failures: u32,
    /// Passes in a row in which its database or Kafka did not answer.
    pub servers_away: u32,
    /// Reasons of Events, and when each was written last.
    pub told: HashMap<String, Instant>,
}

/// A pass that found everything as it should be.
pub struct Settled {
    /// When.
    pub at: Instant,
    /// Of the specification.
    pub generation: Option<i64>,
    /// As it was written.
    pub status: OutboxRelayStatus,
    /// Its topics.
    pub topics: SeenTopics,
}

/// The topics as the last reconciliation saw them.
pub enum SeenTopics {
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
    /// [`crate::watched::Watched::touched`] from before.
    pub touched: u64,
}

impl Memory {
    /// What is remembered of `relay`.
    pub fn of(&self, relay: &OutboxRelay) -> Remembered {
        self.with(relay, |remembered| remembered.clone())
    }

    /// Changes what is remembered of `relay`.
    pub fn with<T>(&self, relay: &OutboxRelay, change: impl FnOnce(&mut Remembered) -> T) -> T {
        let mut memory = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        change(memory.entry((relay.namespace().unwrap_or_default(), relay.name_any())).or_default())
    }

    /// It is gone.
    pub fn forget(&self, namespace: &str, name: &str) {
        let mut memory = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        memory.remove(&(namespace.to_owned(), name.to_owned()));
    }
}
