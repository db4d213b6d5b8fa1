//! `/status` and the status page of the operator: whether this process leads, and the resources with their conditions, from
//! what the operator watches anyway. A request costs the API server nothing.

use std::sync::{Arc, OnceLock};

use kube::runtime::reflector::Store;
use kube::{Resource, ResourceExt};
use process::{Page, Readiness};
use serde::Serialize;
use serde_json::{Value, json};

use crate::activity::Activity;
use crate::conditions::{ConditionType, Status};
use crate::resource::{Condition, OutboxRelay};
use crate::stores::{Guarded, Stores};

/// Resources shown: those that are not ready come first. A cluster with thousands must not make an answer of many megabytes.
const MOST_SHOWN: usize = 200;
/// A message in full may quote what a server said; its beginning has what happened.
const MESSAGE_CHARS: usize = 1000;

/// The page at `/` of the admin listener.
pub fn page() -> Page {
    Page::new("outbox-operator", include_str!("overview/content.html"), include_str!("overview/draw.js"))
}

/// What is shown. Clones share it.
#[derive(Clone)]
pub struct Overview {
    activity: Activity,
    /// Of a process that leads. A standby watches nothing.
    relays: Arc<OnceLock<Vec<Store<Guarded>>>>,
}

impl Overview {
    /// Of a process that does not lead yet.
    pub fn new(activity: Activity) -> Overview {
        Overview { activity, relays: Arc::default() }
    }

    /// This process leads, and watches these resources.
    pub fn on_watch(&self, stores: &[Stores]) {
        // It leads once: a process that loses the Lease ends.
        drop(self.relays.set(stores.iter().map(Stores::relays).collect()));
    }

    /// For `/status`.
    pub fn json(&self) -> Value {
        let (is_ready, message) = match self.activity.readiness() {
            Readiness::Ready(state) => (true, state),
            Readiness::NotReady(reason) => (false, reason),
        };
        let stores = self.relays.get();
        let mut rows: Vec<Row> = stores
            .into_iter()
            .flatten()
            .flat_map(|store| store.state())
            .map(|relay| Row::of(&relay))
            .collect();
        rows.sort_unstable_by(|a, b| a.order().cmp(&b.order()));
        let ready = rows.iter().filter(|row| row.is_ready()).count();
        let total = rows.len();
        rows.truncate(MOST_SHOWN);
        json!({
            "version": env!("CARGO_PKG_VERSION"),
            "ready": is_ready,
            "message": message,
            "leads": stores.is_some(),
            "readyResources": ready,
            "totalResources": total,
            "resources": rows,
        })
    }
}

/// A resource, as it is shown.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Row {
    namespace: String,
    name: String,
    suspended: bool,
    deleting: bool,
    /// Whether the conditions are about the present specification.
    current: bool,
    conditions: Vec<Shown>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Shown {
    #[serde(rename = "type")]
    type_: String,
    status: String,
    reason: String,
    message: String,
    last_transition_time: Option<String>,
}

impl Row {
    fn of(relay: &Guarded) -> Row {
        let base = Row {
            namespace: relay.namespace().unwrap_or_default(),
            name: relay.name_any(),
            suspended: false,
            deleting: relay.meta().deletion_timestamp.is_some(),
            current: false,
            conditions: Vec::new(),
        };
        match &relay.0 {
            Ok(relay) => base.with(relay),
            Err(_) => Row { conditions: vec![Shown::unreadable()], ..base },
        }
    }

    fn with(self, relay: &OutboxRelay) -> Row {
        let status = relay.status.as_ref();
        let observed = status.and_then(|status| status.observed_generation);
        Row {
            suspended: relay.spec.suspend,
            current: observed.is_some() && observed == relay.metadata.generation,
            conditions: status.into_iter().flat_map(|status| &status.conditions).map(Shown::of).collect(),
            ..self
        }
    }

    fn is_ready(&self) -> bool {
        let ready = ConditionType::Ready.to_string();
        self.current
            && self
                .conditions
                .iter()
                .any(|condition| condition.type_ == ready && condition.status == Status::True.as_str())
    }

    fn order(&self) -> (bool, &str, &str) {
        (self.is_ready(), &self.namespace, &self.name)
    }
}

impl Shown {
    fn of(condition: &Condition) -> Shown {
        Shown {
            type_: condition.type_.clone(),
            status: condition.status.clone(),
            reason: condition.reason.clone(),
            message: condition.message.chars().take(MESSAGE_CHARS).collect(),
            last_transition_time: Some(condition.last_transition_time.0.to_string()),
        }
    }

    fn unreadable() -> Shown {
        Shown {
            type_: ConditionType::Ready.to_string(),
            status: Status::Unknown.as_str().to_owned(),
            reason: "Unreadable".to_owned(),
            message: "this version of the operator cannot read the resource; the operator's log says why"
                .to_owned(),
            last_transition_time: None,
        }
    }
}

#[cfg(test)]
mod tests {
    use kube::runtime::reflector;
    use kube::runtime::watcher::Event;

    use super::*;
    use crate::metrics::Metrics;

    fn resource(name: &str, generation: i64, ready: Option<(&str, &str)>) -> Guarded {
        let conditions = ready.map(|(status, reason)| {
            json!([{
                "type": "Ready", "status": status, "reason": reason, "message": "é".repeat(5000),
                "lastTransitionTime": "2026-11-30T10:00:00Z",
            }])
        });
        let object = json!({
            "apiVersion": "outbox.dev/v1beta1", "kind": "OutboxRelay",
            "metadata": {"namespace": "shop", "name": name, "generation": generation},
            "spec": {
                "source": {"postgres": {
                    "host": "db", "database": "d", "credentialsSecretRef": {"name": "a-secret-name"},
                    "publication": {"name": "p"}, "slot": {"name": "s"},
                }},
                "sink": {"kafka": {"bootstrapServers": "kafka:9092"}},
            },
            "status": {"observedGeneration": 1, "conditions": conditions.unwrap_or_else(|| json!([]))},
        });
        serde_json::from_value(object).unwrap()
    }

    fn overview(resources: Vec<Guarded>) -> Overview {
        let (store, mut writer) = reflector::store();
        for resource in resources {
            writer.apply_watcher_event(&Event::Apply(resource));
        }
        let overview = Overview::new(Activity::new(&Metrics::new().unwrap()));
        assert!(overview.relays.set(vec![store]).is_ok());
        overview
    }

    #[test]
    fn what_is_not_ready_comes_first_and_readiness_of_an_older_generation_does_not_count() {
        let overview = overview(vec![
            resource("a-ready", 1, Some(("True", "Streaming"))),
            resource("b-broken", 1, Some(("False", "SlotLost"))),
            resource("c-changed", 2, Some(("True", "Streaming"))),
            resource("d-new", 1, None),
        ]);
        let shown = overview.json();
        let names: Vec<_> = shown["resources"].as_array().unwrap().iter().map(|row| &row["name"]).collect();
        assert_eq!(names, ["b-broken", "c-changed", "d-new", "a-ready"]);
        assert_eq!((&shown["readyResources"], &shown["totalResources"]), (&json!(1), &json!(4)));
        let condition = &shown["resources"][0]["conditions"][0];
        assert_eq!(condition["reason"], "SlotLost");
        assert_eq!(condition["message"].as_str().unwrap().chars().count(), MESSAGE_CHARS);
    }

    #[test]
    fn the_answer_is_bounded_and_names_no_secret() {
        let many = (0..3 * MOST_SHOWN).map(|n| resource(&format!("r{n}"), 1, None)).collect();
        let shown = overview(many).json();
        assert_eq!(shown["resources"].as_array().unwrap().len(), MOST_SHOWN);
        assert_eq!(shown["totalResources"], 3 * MOST_SHOWN);
        assert!(!shown.to_string().contains("a-secret-name"));
    }

    #[test]
    fn a_resource_that_cannot_be_read_is_shown_without_its_content() {
        let object = json!({
            "apiVersion": "outbox.dev/v1beta1", "kind": "OutboxRelay",
            "metadata": {"namespace": "shop", "name": "newer"},
            "spec": {"source": "content"},
        });
        let shown = overview(vec![serde_json::from_value(object).unwrap()]).json();
        assert_eq!(shown["resources"][0]["conditions"][0]["reason"], "Unreadable");
        assert!(!shown.to_string().contains("content"));
    }

    #[test]
    fn a_standby_shows_that_it_watches_nothing() {
        let overview = Overview::new(Activity::new(&Metrics::new().unwrap()));
        let shown = overview.json();
        assert_eq!((&shown["leads"], &shown["ready"]), (&json!(false), &json!(true)));
    }
}
