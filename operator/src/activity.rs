//! What this process does, which decides whether it is ready. The gauges `leader` and `crd_missing` only report it.

use std::sync::{Arc, Mutex, PoisonError};

use process::Readiness;

use crate::metrics::Metrics;

/// The state of the process. Clones share it.
#[derive(Clone)]
pub struct Activity {
    phase: Arc<Mutex<Phase>>,
    metrics: Metrics,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// Another process leads, and this one takes over when it has to.
    Standby,
    /// This process reconciles.
    Leading,
    /// This process leads, and the API server does not know OutboxRelay.
    CrdMissing,
}

impl Activity {
    /// Of a process that does not lead yet.
    pub fn new(metrics: &Metrics) -> Activity {
        Activity { phase: Arc::new(Mutex::new(Phase::Standby)), metrics: metrics.clone() }
    }

    /// This process leads from now on.
    pub fn on_lead(&self) {
        self.metrics.leader.set(1);
        self.set(Phase::Leading);
    }

    /// The API server knows the CRD, or does not.
    pub fn on_crd(&self, is_missing: bool) {
        self.metrics.crd_missing.set(is_missing.into());
        self.set(if is_missing { Phase::CrdMissing } else { Phase::Leading });
    }

    /// What `/readyz` reports. A standby is ready: it takes over when it has to.
    pub fn readiness(&self) -> Readiness {
        match *self.phase.lock().unwrap_or_else(PoisonError::into_inner) {
            Phase::Standby => Readiness::Ready("stands by".to_owned()),
            Phase::Leading => Readiness::Ready("leads".to_owned()),
            Phase::CrdMissing => Readiness::NotReady(
                "OutboxRelay is not defined: outbox-operator crd | kubectl apply --server-side -f -"
                    .to_owned(),
            ),
        }
    }

    fn set(&self, phase: Phase) {
        *self.phase.lock().unwrap_or_else(PoisonError::into_inner) = phase;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_leader_without_the_crd_is_not_ready() {
        let metrics = Metrics::new().unwrap();
        let activity = Activity::new(&metrics);
        let is_ready = || matches!(activity.readiness(), Readiness::Ready(_));
        assert!(is_ready(), "it takes over when it has to");
        activity.on_lead();
        assert!(is_ready());
        activity.on_crd(true);
        assert!(!is_ready());
        // What a metric shows decides nothing.
        metrics.crd_missing.set(0);
        assert!(!is_ready());
        activity.on_crd(false);
        assert!(is_ready());
    }
}
