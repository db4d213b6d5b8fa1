//! The last step: what was found becomes the resource's status, and an Event where readiness has changed.

use std::time::{Duration, Instant};

use k8s_openapi::jiff::Timestamp;
use kube::api::{Patch, PatchParams};
use kube::{Resource, ResourceExt};
use serde_json::json;

use super::Context;
use super::pods::running_image;
use super::report::Report;
use crate::conditions::{ConditionType, Conditions, Status};
use crate::desired::naming::MANAGER;
use crate::events::EventType;
use crate::resource::{Condition, OutboxRelay, OutboxRelayStatus};

/// An Event about readiness is written for each reason at most so often,
const EVENT_INTERVAL: Duration = Duration::from_secs(5 * 60);
/// and for so many reasons within that time: a pod that gives another one each time must not fill the cluster with Events.
const MOST_REASONS: usize = 20;

/// Writes the status where it has changed; returns it.
pub(super) async fn write(
    relay: &OutboxRelay,
    context: &Context,
    report: &Report,
) -> Result<OutboxRelayStatus, kube::Error> {
    let before = relay.status.as_ref().map(|status| status.conditions.clone()).unwrap_or_default();
    let generation = relay.metadata.generation;
    let status = OutboxRelayStatus {
        observed_generation: generation,
        conditions: report.conditions.clone().conditions(&before, generation, Timestamp::now()),
        topic_count: i32::try_from(relay.spec.topics.len()).unwrap_or(i32::MAX),
        topics: report.owned_topics.topics.clone(),
        database_identity: report.database_identity.clone(),
        kafka_identity: report.owned_topics.cluster_identity.clone(),
        image: running_image(&context.pods(relay)),
    };
    context.metrics.conditions(relay, &status.conditions);
    if relay.status.as_ref() == Some(&status) {
        return Ok(status);
    }
    publish_readiness(relay, context, &report.conditions, &before);
    put(relay, context, &status).await?;
    Ok(status)
}

/// Sends a status to the API server.
pub(super) async fn put(
    relay: &OutboxRelay,
    context: &Context,
    status: &OutboxRelayStatus,
) -> Result<(), kube::Error> {
    let api = context.namespaced::<OutboxRelay>(relay);
    let patch = json!({"apiVersion": OutboxRelay::api_version(&()), "kind": "OutboxRelay", "status": status});
    let parameters = PatchParams::apply(MANAGER).force();
    let (name, patch) = (relay.name_any(), Patch::Apply(patch));
    match context.metrics.kubernetes("status", api.patch_status(&name, &parameters, &patch)).await {
        // It was deleted meanwhile.
        Err(kube::Error::Api(refusal)) if refusal.code == 404 => Ok(()),
        written => written.map(drop),
    }
}

/// Publishes readiness, when it or its reason has changed.
fn publish_readiness(relay: &OutboxRelay, context: &Context, conditions: &Conditions, before: &[Condition]) {
    let now = conditions.summary();
    let reason = now.reason.to_string();
    let is_same = |before: &Condition| {
        before.type_ == ConditionType::Ready.to_string()
            && before.status == now.status.as_str()
            && before.reason == reason
    };
    if !before.iter().any(is_same) && is_event_due(relay, context, &reason) {
        let is_normal = now.status == Status::True || now.reason.passes();
        let type_ = if is_normal { EventType::Normal } else { EventType::Warning };
        context.publish_event(relay, type_, &reason, &now.message);
    }
}

/// Whether an Event with this reason is due: one that comes and goes is published every few minutes. Counts as published.
fn is_event_due(relay: &OutboxRelay, context: &Context, reason: &str) -> bool {
    context.cache.with(relay, |cached| {
        cached.events.retain(|_, at| at.elapsed() < EVENT_INTERVAL);
        let is_due = !cached.events.contains_key(reason) && cached.events.len() < MOST_REASONS;
        if is_due {
            cached.events.insert(reason.to_owned(), Instant::now());
        }
        is_due
    })
}
