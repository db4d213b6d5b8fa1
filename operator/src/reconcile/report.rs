//! What a reconciliation has found.

use super::ReconcileError;
use super::owned_topics::OwnedTopics;
use super::side::KafkaAccess;
use crate::conditions::Conditions;
use crate::metrics::Outcome;
use crate::resource::OutboxRelay;

/// How far the pipeline came.
pub(super) enum Progress {
    /// To its end: the objects are as they should be.
    Applied(KafkaAccess),
    /// A step found something missing, which its conditions name, or registers a server; those after it were left out.
    Incomplete,
    /// The API server refused something.
    Failed(ReconcileError),
}

/// What a reconciliation has found. The status is written from it.
pub(super) struct Report {
    pub(super) conditions: Conditions,
    /// Which database it is, as far as is known.
    pub(super) database_identity: Option<String>,
    pub(super) owned_topics: OwnedTopics,
    pub(super) progress: Progress,
}

impl Report {
    /// What is known before the first step.
    pub(super) fn new(relay: &OutboxRelay) -> Report {
        Report::of(relay, Conditions::new(relay.spec.suspend))
    }

    /// What is known of a resource that is being deleted, and waits for something.
    pub(super) fn of_deletion(relay: &OutboxRelay, waits_for: String) -> Report {
        Report::of(relay, Conditions::of_deletion(relay.spec.suspend, waits_for))
    }

    fn of(relay: &OutboxRelay, conditions: Conditions) -> Report {
        Report {
            conditions,
            database_identity: relay.status.as_ref().and_then(|status| status.database_identity.clone()),
            owned_topics: OwnedTopics::of(relay),
            progress: Progress::Incomplete,
        }
    }

    pub(super) fn with(self, progress: Progress) -> Report {
        Report { progress, ..self }
    }

    /// For the metric of reconciliations.
    pub(super) fn outcome(&self) -> Outcome {
        match self.progress {
            Progress::Failed(_) => Outcome::Failed,
            _ if self.conditions.is_ready() => Outcome::Ready,
            _ => Outcome::NotReady,
        }
    }
}
