//! Kubernetes Events: what a person would want to see in `kubectl describe`.

use std::time::Duration;

use k8s_openapi::api::events::v1::Event;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use k8s_openapi::jiff::Timestamp;
use kube::api::{ObjectMeta, PostParams};
use kube::{Api, Client, Resource, ResourceExt};

use crate::desired::naming::MANAGER;
use crate::resource::OutboxRelay;

/// The API server's limit.
const LONGEST_NOTE: usize = 1024;
const WITHIN: Duration = Duration::from_secs(5);

/// Whether you have to act.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EventType {
    /// No action is needed.
    Normal,
    /// Act on it.
    Warning,
}

impl EventType {
    /// API: Kubernetes' own two types of Events.
    fn as_str(self) -> &'static str {
        match self {
            EventType::Normal => "Normal",
            EventType::Warning => "Warning",
        }
    }
}

/// Writes an Event about `relay` in the background: an Event that cannot be written is no reason to do less. Not by kube's recorder, which shows
/// the first note of a reason for all that come after it.
pub fn publish(client: &Client, relay: &OutboxRelay, type_: EventType, reason: &str, note: &str) {
    let api: Api<Event> = Api::namespaced(client.clone(), &relay.namespace().unwrap_or_default());
    let event = event(relay, type_, reason, note);
    tokio::spawn(async move {
        let created = tokio::time::timeout(WITHIN, api.create(&PostParams::default(), &event)).await;
        match created {
            Ok(Ok(_)) => {}
            Ok(Err(error)) => tracing::debug!(%error, "an Event was not written"),
            Err(_) => tracing::debug!("an Event was not written in time"),
        }
    });
}

fn event(relay: &OutboxRelay, type_: EventType, reason: &str, note: &str) -> Event {
    Event {
        metadata: ObjectMeta {
            generate_name: Some(format!("{}-", relay.name_any())),
            namespace: relay.namespace(),
            ..ObjectMeta::default()
        },
        action: Some("Reconcile".to_owned()),
        event_time: Some(MicroTime(Timestamp::now())),
        note: Some(shortened(note).to_owned()),
        reason: Some(reason.to_owned()),
        regarding: Some(relay.object_ref(&())),
        reporting_controller: Some(format!("outbox.dev/{MANAGER}")),
        reporting_instance: Some(std::env::var("HOSTNAME").unwrap_or_else(|_| MANAGER.to_owned())),
        type_: Some(type_.as_str().to_owned()),
        ..Event::default()
    }
}

fn shortened(note: &str) -> &str {
    note.get(..note.floor_char_boundary(LONGEST_NOTE)).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_note_ends_at_a_whole_character() {
        assert_eq!(shortened("ok"), "ok");
        assert_eq!(shortened(&"ä".repeat(600)).len(), LONGEST_NOTE);
        assert_eq!(shortened(&format!("x{}", "ä".repeat(600))).len(), LONGEST_NOTE - 1);
    }
}
