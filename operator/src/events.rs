//! Kubernetes Events: what a person would want to see in `kubectl describe`.

use std::collections::HashMap;
use std::time::{Duration, Instant};

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

/// An Event about readiness is written for each reason at most so often,
const INTERVAL: Duration = Duration::from_secs(5 * 60);
/// and for so many reasons within that time: a pod that gives another one each time must not fill the cluster with Events.
const MOST_REASONS: usize = 20;

/// Reasons of Events about the readiness of one resource, and when each was published last.
#[derive(Clone, Debug, Default)]
pub struct PublishedReasons(HashMap<String, Instant>);

impl PublishedReasons {
    /// Whether an Event with this reason is due now. Counts as published then.
    pub fn is_due(&mut self, reason: &str, now: Instant) -> bool {
        self.0.retain(|_, at| now.duration_since(*at) < INTERVAL);
        let is_due = !self.0.contains_key(reason) && self.0.len() < MOST_REASONS;
        if is_due {
            self.0.insert(reason.to_owned(), now);
        }
        is_due
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
    fn a_reason_is_published_once_in_five_minutes_and_twenty_reasons_at_most() {
        let (mut published, now) = (PublishedReasons::default(), Instant::now());
        assert!(published.is_due("Streaming", now));
        assert!(!published.is_due("Streaming", now + INTERVAL / 2), "it came back");
        let others = (0..100).filter(|number| published.is_due(&format!("Made{number}"), now)).count();
        assert_eq!(others, MOST_REASONS - 1);
        assert!(published.is_due("Streaming", now + INTERVAL), "the time is over");
    }

    #[test]
    fn a_long_note_ends_at_a_whole_character() {
        assert_eq!(shortened("ok"), "ok");
        assert_eq!(shortened(&"ä".repeat(600)).len(), LONGEST_NOTE);
        assert_eq!(shortened(&format!("x{}", "ä".repeat(600))).len(), LONGEST_NOTE - 1);
    }
}
