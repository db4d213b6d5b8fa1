//! One reconciliation of one resource: a pipeline of steps, each of which returns what it found, for the conditions, and what
//! the steps after it need. A step that fails stops those that need its output, never a workload that runs, nor a change of it that needs
//! nothing from that step:
//!
//! resolve references -> source: database, publication, slot -> sink: Kafka, topics -> workload -> status.

mod applied_configuration;
mod cache;
mod cleanup;
mod conflicts;
mod context;
mod declared_topics;
mod deletion_rights;
mod finalizer;
mod owned_topics;
mod paused;
mod pods;
mod publication;
mod relay_status;
mod report;
mod resolve;
mod rollout;
mod side;
mod sink;
mod slot;
mod source;
mod steady_state;
mod workload;
mod write_status;

use std::time::{Duration, Instant};

use kube::runtime::controller::Action;

pub use self::context::{Context, MOST_AT_ONCE, RelayDefaults};
pub use self::finalizer::reconcile_unreadable;
use self::relay_status::RelayReport;
use self::report::{Progress, Report};
use self::resolve::{Resolution, ResolveError, resolve};
use self::side::{Side, Unusable};
use crate::conditions::{ConditionState, ConditionType, Reason, Status};
use crate::metrics::Outcome;
use crate::references::LookError;
use crate::resource::{OutboxRelay, OutboxRelayStatus};
use crate::secrets::ReadError;
use crate::stores::NotSynced;

/// Others see what a database or Kafka cluster is after a moment.
const IDENTIFIED: Duration = Duration::from_millis(500);
/// Pause after a change whose watch event starts the next reconciliation, or while deletion waits.
const RETRY_AFTER: Duration = Duration::from_secs(5);

/// The API server did not do what it was asked. Everything else is a condition.
#[derive(Debug, thiserror::Error)]
pub enum ReconcileError {
    /// It refused, or was down.
    #[error("Kubernetes: {0}")]
    Kubernetes(#[from] kube::Error),
    /// It did not return a Secret.
    #[error("Kubernetes: {0}")]
    Secret(ReadError),
    /// It did not return a resource of another operator.
    #[error("Kubernetes: {0}")]
    Reference(LookError),
    /// The configuration cannot be written.
    #[error("the relay's configuration: {0}")]
    Configuration(String),
    /// What reconciliations read was not listed.
    #[error(transparent)]
    NotSynced(#[from] NotSynced),
}

/// Reconciles a resource, and returns when to do it again.
///
/// # Errors
/// The API server refused something.
pub async fn reconcile(relay: &OutboxRelay, context: &Context) -> Result<Action, ReconcileError> {
    let is_held = finalizer::is_held(relay);
    let needs_finalizer = relay.spec.deletes_something();
    if relay.metadata.deletion_timestamp.is_some() {
        return if is_held { finalizer::finalize(relay, context).await } else { Ok(Action::await_change()) };
    }
    if paused::is_paused(relay) {
        return paused::report(relay, context).await;
    }
    if is_held != needs_finalizer {
        // Nothing is created before it is certain that it will be deleted. The change causes the next reconciliation.
        finalizer::set_finalizer(relay, context, needs_finalizer).await?;
        return Ok(Action::requeue(RETRY_AFTER));
    }
    reconcile_existing(relay, context).await
}

async fn reconcile_existing(relay: &OutboxRelay, context: &Context) -> Result<Action, ReconcileError> {
    let (since, metrics) = (Instant::now(), &context.metrics);
    if steady_state::is_unchanged(relay, context).await {
        metrics.reconciled(since, Outcome::Unchanged);
        return Ok(steady_state::next_resync(context));
    }
    // After an error next to nothing was checked: the existing conditions still count, and keep their generation.
    let report = Box::pin(run(relay, context)).await;
    let report = report.inspect_err(|_| metrics.reconciled(since, Outcome::Failed))?;
    metrics.reconciled(since, report.outcome());
    if !report.conditions.is_reached(ConditionType::SlotReady) {
        // What was seen before says nothing about now.
        metrics.slot(relay, None);
    }
    let status = write_status::write(relay, context, &report).await?;
    conclude(relay, context, report, status).await
}

/// The pipeline. An error means that the API server did not return what the resource refers to; every other failure is part of the
/// report.
async fn run(relay: &OutboxRelay, context: &Context) -> Result<Report, ReconcileError> {
    let mut report = Report::new(relay);
    match workload::suspend(relay, context).await {
        Ok(suspension) => report.conditions.extend(suspension),
        Err(error) => return Ok(report.with(Progress::Failed(error.into()))),
    }
    let RelayReport { streaming, failover_ready } = relay_status::observe(relay, context).await;
    report.conditions.set(ConditionType::Streaming, streaming.clone());
    report.conditions.set(ConditionType::FailoverReady, failover_ready);
    report.conditions.set(ConditionType::WorkloadAvailable, workload::available(relay, context, None));

    let resolved = resolve(relay, context).await;
    context.metrics.step("references", resolved.as_ref().is_ok_and(Resolution::is_complete));
    let resolution = match resolved {
        Ok(resolution) => resolution,
        Err(ResolveError::Unavailable(error)) => return Err(error),
        Err(ResolveError::Invalid(problem)) => {
            let invalid = ConditionState::no(Reason::SpecificationInvalid, problem);
            report.conditions.set(ConditionType::ReferencesResolved, invalid);
            return Ok(report);
        }
    };
    report.conditions.set(ConditionType::ReferencesResolved, resolution.condition());

    let source = source::check(relay, context, &resolution.source, streaming.status).await;
    report.conditions.extend(source.conditions);
    report.database_identity = source.identity;

    let sink = sink::check(relay, context, &resolution.sink).await;
    report.conditions.extend(sink.conditions);
    report.owned_topics = sink.owned_topics;

    let (Ok(resolved), Ok(_)) = (&resolution.source, &resolution.sink) else { return Ok(report) };
    let unusable = match (&source.side, &sink.side) {
        (Side::Registering, _) | (_, Side::Registering) => return Ok(report),
        (source, sink) => {
            Unusable { source: matches!(source, Side::NotReady), sink: matches!(sink, Side::NotReady) }
        }
    };
    let workload = workload::check(relay, context, &resolution.relay, &resolved.config, unusable).await;
    report.conditions.extend(workload.conditions);
    Ok(report.with(match (workload.result, source.side, sink.side) {
        (Ok(()), Side::Ready(()), Side::Ready(access)) => Progress::Applied(access),
        (Ok(()) | Err(workload::NotApplied::Waits), ..) => Progress::Incomplete,
        (Err(workload::NotApplied::Failed(error)), ..) => Progress::Failed(error),
    }))
}

/// Remembers what was found for the next reconciliation, and returns when that is.
async fn conclude(
    relay: &OutboxRelay,
    context: &Context,
    report: Report,
    status: OutboxRelayStatus,
) -> Result<Action, ReconcileError> {
    let is_newly_identified = relay.status.as_ref().is_none_or(|before| {
        before.database_identity != status.database_identity || before.kafka_identity != status.kafka_identity
    });
    let is_server_down = [ConditionType::DatabaseReachable, ConditionType::KafkaReachable]
        .iter()
        .any(|type_| report.conditions.status(*type_) == Status::False);
    let last_success = steady_state::last_success(relay, &report, status).await;
    let servers_down = context.cache.with(relay, |cached| {
        cached.last_success = last_success;
        if !matches!(report.progress, Progress::Failed(_)) {
            cached.failures = 0;
        }
        cached.servers_down = if is_server_down { cached.servers_down.saturating_add(1) } else { 0 };
        cached.servers_down
    });
    match report.progress {
        Progress::Failed(error) => Err(error),
        _ if is_newly_identified && !is_server_down => Ok(Action::requeue(IDENTIFIED)),
        _ => Ok(steady_state::next_resync_after(context, servers_down)),
    }
}
