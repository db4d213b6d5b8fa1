//! The names of each resource's pods. Every resource is checked every few seconds: with a walk over all pods, that would cost with
//! the square of the number of resources.

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Mutex, PoisonError};

use futures::{Stream, StreamExt};
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt;
use kube::runtime::watcher::{self, Event};

use crate::change_counts::Key;
use crate::desired::naming::INSTANCE;

/// By resource.
#[derive(Default)]
pub struct PodNames(Mutex<Names>);

#[derive(Default)]
struct Names {
    known: HashMap<Key, BTreeSet<String>>,
    /// What the list that is being read has shown so far. At its end it replaces what is known.
    listed: HashMap<Key, BTreeSet<String>>,
}

impl PodNames {
    /// Notes what comes through.
    pub fn note<S: Stream<Item = Result<Event<Pod>, watcher::Error>>>(
        self: &Arc<Self>,
        events: S,
    ) -> impl Stream<Item = Result<Event<Pod>, watcher::Error>> + use<S> {
        let names = Arc::clone(self);
        events.inspect(move |event| {
            if let Ok(event) = event {
                names.on_event(event);
            }
        })
    }

    fn on_event(&self, event: &Event<Pod>) {
        let mut names = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match event {
            Event::Init => names.listed.clear(),
            Event::InitApply(pod) => {
                add(&mut names.listed, pod);
                add(&mut names.known, pod);
            }
            Event::InitDone => names.known = std::mem::take(&mut names.listed),
            Event::Apply(pod) => add(&mut names.known, pod),
            Event::Delete(pod) => remove(&mut names.known, pod),
        }
    }

    /// The names of the pods of a resource.
    pub fn of(&self, relay: &Key) -> Vec<String> {
        let names = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        names.known.get(relay).into_iter().flatten().cloned().collect()
    }
}

fn add(names: &mut HashMap<Key, BTreeSet<String>>, pod: &Pod) {
    if let Some(key) = key(pod) {
        names.entry(key).or_default().insert(pod.name_any());
    }
}

fn remove(names: &mut HashMap<Key, BTreeSet<String>>, pod: &Pod) {
    let Some(key) = key(pod) else { return };
    if let Some(of_relay) = names.get_mut(&key) {
        of_relay.remove(&pod.name_any());
        if of_relay.is_empty() {
            names.remove(&key);
        }
    }
}

fn key(pod: &Pod) -> Option<Key> {
    Some((pod.namespace().unwrap_or_default(), pod.labels().get(INSTANCE)?.clone()))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn pod(name: &str, relay: &str) -> Pod {
        let metadata = json!({"namespace": "n", "name": name, "labels": {INSTANCE: relay}});
        serde_json::from_value(json!({"metadata": metadata})).unwrap()
    }

    #[test]
    fn pods_are_known_until_they_are_deleted_or_missing_in_a_new_list() {
        let (names, shop) = (PodNames::default(), ("n".to_owned(), "shop".to_owned()));
        let after = |event| {
            names.on_event(&event);
            names.of(&shop)
        };
        assert!(after(Event::Init).is_empty());
        assert_eq!(after(Event::InitApply(pod("a", "shop"))), ["a"], "before the list ends");
        assert_eq!(after(Event::InitDone), ["a"]);
        assert_eq!(after(Event::Apply(pod("b", "shop"))), ["a", "b"]);
        assert_eq!(after(Event::Apply(pod("c", "another"))), ["a", "b"]);
        assert_eq!(after(Event::Delete(pod("a", "shop"))), ["b"]);
        assert_eq!(after(Event::Init), ["b"], "while a new list is read");
        assert_eq!(after(Event::InitApply(pod("d", "shop"))), ["b", "d"]);
        assert_eq!(after(Event::InitDone), ["d"]);
        assert!(after(Event::Delete(pod("d", "shop"))).is_empty());
        assert_eq!(names.0.lock().unwrap().known.len(), 0, "nothing is kept of a resource without pods");
    }
}
