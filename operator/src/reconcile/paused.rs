//! A resource that the operator leaves alone for a while: to debug a relay by hand, or to move something.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;
use kube::ResourceExt;
use kube::runtime::controller::Action;

use super::{Context, ReconcileError, write_status};
use crate::events::EventType;
use crate::resource::{Condition, OutboxRelay};

/// Set to "true", nothing is changed for this resource until it is removed; deletion goes ahead.
pub const PAUSE: &str = "outbox.dev/pause-reconciliation";

/// The condition that a paused resource has, and no other: what its other conditions say is as it was before.
const CONDITION: &str = "ReconciliationPaused";

pub(super) fn is_paused(relay: &OutboxRelay) -> bool {
    relay.annotations().get(PAUSE).is_some_and(|value| value == "true")
}

/// Adds the condition. The next reconciliation that is not paused writes all conditions, and this one is not among them.
pub(super) async fn report(relay: &OutboxRelay, context: &Context) -> Result<Action, ReconcileError> {
    // What was seen before the pause says nothing about what is there after it.
    context.cache.forget(&relay.namespace().unwrap_or_default(), &relay.name_any());
    let mut status = relay.status.clone().unwrap_or_default();
    if status.conditions.iter().any(|condition| condition.type_ == CONDITION) {
        return Ok(Action::await_change());
    }
    let message = format!("the annotation {PAUSE} is true: nothing is changed until it is removed");
    context.publish_event(relay, EventType::Normal, CONDITION, &message);
    let now = Timestamp::now();
    status.conditions.push(Condition {
        last_transition_time: Time(Timestamp::from_second(now.as_second()).unwrap_or(now)),
        message,
        observed_generation: relay.metadata.generation,
        reason: "Annotation".to_owned(),
        status: "True".to_owned(),
        type_: CONDITION.to_owned(),
    });
    write_status::put(relay, context, &status).await?;
    Ok(Action::await_change())
}
