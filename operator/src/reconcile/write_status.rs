//! The last step: what was found becomes the resource's status, and an Event where readiness has changed.

use std::time::Instant;

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
    let is_due = || context.cache.with(relay, |cached| cached.events.is_due(&reason, Instant::now()));
    if !before.iter().any(is_same) && is_due() {
        let is_normal = now.status == Status::True || now.reason.passes();
        let type_ = if is_normal { EventType::Normal } else { EventType::Warning };
        context.publish_event(relay, type_, &reason, &now.message);
    }
}
