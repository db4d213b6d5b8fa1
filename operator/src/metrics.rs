//! The operator's metrics. Names are API: docs/METRICS.md lists them, and once released they stay.

use std::time::{Duration, Instant};

use kube::ResourceExt;
use outbox_relay::status::SlotState;
use prometheus::{
    Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry,
};

use crate::conditions::{ConditionType, Status};
use crate::resource::{Condition, OutboxRelay};

const NAMESPACE: &str = "outbox_operator";

/// How long the API server may take for one request.
const API_SERVER_WITHIN: Duration = Duration::from_secs(30);

/// From a look at what is in memory to a server that does not answer.
const SECONDS: [f64; 11] = [0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0, 10.0];

/// How a reconciliation ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The quick check found no change.
    Unchanged,
    /// Everything is as it should be.
    Ready,
    /// Something is not, which a condition says.
    NotReady,
    /// The API server refused something.
    Failed,
}

/// Handles on every metric.
#[derive(Clone)]
pub struct Metrics {
    /// What `/metrics` shows.
    pub registry: Registry,
    /// 1 in the process that acts.
    pub leader: IntGauge,
    /// 1 while the API server does not know the resource.
    pub crd_missing: IntGauge,
    /// 1 while a kind can be watched; 0 before its first list, and after an error.
    pub watch_synced: IntGaugeVec,
    reconciliations: IntCounterVec,
    reconcile_seconds: Histogram,
    steps: IntCounterVec,
    /// Deletions that were given up, with something left outside.
    pub deletions_given_up: IntCounter,
    requests: HistogramVec,
    conditions: IntGaugeVec,
    slot_wal_status: IntGaugeVec,
    retained_wal_bytes: IntGaugeVec,
}

const WAL_STATUSES: [&str; 4] = ["reserved", "extended", "unreserved", "lost"];

impl Metrics {
    /// Registers all of them.
    ///
    /// # Errors
    /// Two have one name, which is a bug.
    pub fn new() -> Result<Metrics, prometheus::Error> {
        let registry = Registry::new();
        registry.register(Box::new(prometheus::process_collector::ProcessCollector::for_self()))?;
        let metrics = Metrics {
            leader: IntGauge::with_opts(opts("leader", "1 in the process that acts."))?,
            crd_missing: IntGauge::with_opts(opts(
                "crd_missing",
                "1 while the API server does not know OutboxRelay.",
            ))?,
            watch_synced: IntGaugeVec::new(
                opts("watch_synced", "1 while objects of a kind can be listed and watched."),
                &["namespace", "kind"],
            )?,
            reconciliations: IntCounterVec::new(
                opts("reconciliations_total", "Passes over a resource."),
                &["outcome"],
            )?,
            reconcile_seconds: Histogram::with_opts(histogram(
                "reconcile_duration_seconds",
                "Duration of a pass over a resource.",
            ))?,
            steps: IntCounterVec::new(
                opts("steps_total", "Steps of passes that looked at everything."),
                &["step", "outcome"],
            )?,
            deletions_given_up: IntCounter::with_opts(opts(
                "deletions_given_up_total",
                "Resources whose finalizer was removed while an external resource remained.",
            ))?,
            requests: HistogramVec::new(
                histogram("external_request_duration_seconds", "Requests to other systems."),
                &["system", "operation", "outcome"],
            )?,
            conditions: IntGaugeVec::new(
                opts("resource_condition", "1 for the status a condition has."),
                &["namespace", "name", "type", "status"],
            )?,
            slot_wal_status: IntGaugeVec::new(
                opts("slot_wal_status", "1 for the status of a slot whose relay does not run."),
                &["namespace", "name", "status"],
            )?,
            retained_wal_bytes: IntGaugeVec::new(
                opts("retained_wal_bytes", "WAL retained for a slot whose relay does not run."),
                &["namespace", "name"],
            )?,
            registry,
        };
        let registry = &metrics.registry;
        registry.register(Box::new(process::build_info(NAMESPACE)?))?;
        registry.register(Box::new(metrics.leader.clone()))?;
        registry.register(Box::new(metrics.crd_missing.clone()))?;
        registry.register(Box::new(metrics.watch_synced.clone()))?;
        registry.register(Box::new(metrics.reconciliations.clone()))?;
        registry.register(Box::new(metrics.reconcile_seconds.clone()))?;
        registry.register(Box::new(metrics.steps.clone()))?;
        registry.register(Box::new(metrics.deletions_given_up.clone()))?;
        registry.register(Box::new(metrics.requests.clone()))?;
        registry.register(Box::new(metrics.conditions.clone()))?;
        registry.register(Box::new(metrics.slot_wal_status.clone()))?;
        registry.register(Box::new(metrics.retained_wal_bytes.clone()))?;
        Ok(metrics)
    }

    /// A reconciliation has ended that began at `since`.
    pub fn reconciled(&self, since: Instant, outcome: Outcome) {
        let name = match outcome {
            Outcome::Unchanged => "unchanged",
            Outcome::Ready => "ready",
            Outcome::NotReady => "not_ready",
            Outcome::Failed => "failed",
        };
        self.reconciliations.with_label_values(&[name]).inc();
        self.reconcile_seconds.observe(since.elapsed().as_secs_f64());
    }

    /// A step of a reconciliation was done, or stopped those after it.
    pub fn step(&self, step: &str, done: bool) {
        self.steps.with_label_values(&[step, if done { "done" } else { "stopped" }]).inc();
    }

    /// Times a request to `system`.
    pub async fn request<T, E>(
        &self,
        system: &str,
        operation: &str,
        request: impl Future<Output = Result<T, E>>,
    ) -> Result<T, E> {
        let since = Instant::now();
        let answer = request.await;
        let outcome = if answer.is_ok() { "answered" } else { "failed" };
        let seconds = self.requests.with_label_values(&[system, operation, outcome]);
        seconds.observe(since.elapsed().as_secs_f64());
        answer
    }

    /// A request to the API server, which has to answer in time: a connection that a load balancer has dropped would be waited for for
    /// a quarter of an hour.
    ///
    /// # Errors
    /// It refused, or did not answer.
    pub async fn kubernetes<T>(
        &self,
        operation: &str,
        request: impl Future<Output = Result<T, kube::Error>>,
    ) -> Result<T, kube::Error> {
        let in_time = async {
            let late =
                |_| Err(kube::Error::Service(format!("no answer within {API_SERVER_WITHIN:?}").into()));
            tokio::time::timeout(API_SERVER_WITHIN, request).await.unwrap_or_else(late)
        };
        self.request("kubernetes", operation, in_time).await
    }

    /// The conditions of a resource as they are now.
    pub fn conditions(&self, relay: &OutboxRelay, conditions: &[Condition]) {
        let (namespace, name) = names(relay);
        for condition in conditions {
            for status in Status::ALL.map(Status::as_str) {
                let labels = [namespace.as_str(), &name, &condition.type_, status];
                if condition.status == status {
                    self.conditions.with_label_values(&labels).set(1);
                } else {
                    // It may never have been there.
                    drop(self.conditions.remove_label_values(&labels));
                }
            }
        }
    }

    /// The slot of a resource whose relay does not tell; `None` where it does.
    pub fn slot(&self, relay: &OutboxRelay, slot: Option<&SlotState>) {
        let (namespace, name) = names(relay);
        self.forget_slot(&namespace, &name);
        let Some(slot) = slot else { return };
        if let Some(status) = slot.wal_status.as_deref() {
            self.slot_wal_status.with_label_values(&[&namespace, &name, status]).set(1);
        }
        let bytes = slot.behind(slot.restart).unwrap_or(0);
        let bytes = i64::try_from(bytes).unwrap_or(i64::MAX);
        self.retained_wal_bytes.with_label_values(&[&namespace, &name]).set(bytes);
    }

    fn forget_slot(&self, namespace: &str, name: &str) {
        // It may never have been there.
        for status in WAL_STATUSES {
            drop(self.slot_wal_status.remove_label_values(&[namespace, name, status]));
        }
        drop(self.retained_wal_bytes.remove_label_values(&[namespace, name]));
    }

    /// A resource that this version of the operator cannot read is not ready, whatever its status says.
    pub fn unreadable(&self, namespace: &str, name: &str) {
        self.forget_conditions(namespace, name);
        self.conditions.with_label_values(&[namespace, name, "Ready", "Unknown"]).set(1);
    }

    fn forget_conditions(&self, namespace: &str, name: &str) {
        for type_ in ConditionType::ALL {
            for status in Status::ALL.map(Status::as_str) {
                let labels = [namespace, name, &type_.to_string(), status];
                // It may never have been there.
                drop(self.conditions.remove_label_values(&labels));
            }
        }
    }

    /// The resource is gone.
    pub fn forget(&self, namespace: &str, name: &str) {
        self.forget_conditions(namespace, name);
        self.forget_slot(namespace, name);
    }
}

fn opts(name: &str, help: &str) -> Opts {
    Opts::new(name, help).namespace(NAMESPACE)
}

fn histogram(name: &str, help: &str) -> HistogramOpts {
    HistogramOpts::new(name, help).namespace(NAMESPACE).buckets(SECONDS.into())
}

fn names(relay: &OutboxRelay) -> (String, String) {
    (relay.namespace().unwrap_or_default(), relay.name_any())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_metric_is_documented() {
        let metrics = Metrics::new().unwrap();
        metrics.step("database", true);
        metrics.watch_synced.with_label_values(&["n", "Pod"]).set(1);
        metrics.reconciled(Instant::now(), Outcome::Ready);
        metrics.requests.with_label_values(&["kafka", "observe", "answered"]).observe(0.0);
        metrics.conditions.with_label_values(&["n", "r", "Ready", "True"]).set(1);
        metrics.slot_wal_status.with_label_values(&["n", "r", "lost"]).set(1);
        metrics.retained_wal_bytes.with_label_values(&["n", "r"]).set(1);
        let document = include_str!("../../docs/METRICS.md");
        let families = metrics.registry.gather();
        let ours: Vec<&str> =
            families.iter().map(|family| family.name()).filter(|name| name.starts_with(NAMESPACE)).collect();
        let documented = document.lines().filter(|line| line.starts_with("| `outbox_operator_")).count();
        assert_eq!((ours.len(), documented), (12, 12), "{ours:?}");
        for name in ours {
            assert!(document.contains(&format!("`{name}`")), "docs/METRICS.md does not list {name}");
        }
    }
}
