//! How often something that belongs to a resource was changed: an object that was not changed since it was applied is not applied again.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use futures::{Stream, StreamExt};
use kube::runtime::watcher::{self, Event};
use kube::{Resource, ResourceExt};

/// Namespace and name of a resource.
pub type Key = (String, String);

/// By resource.
#[derive(Default)]
pub struct ChangeCounts(Mutex<HashMap<Key, Changes>>);

/// Of the objects of one resource.
#[derive(Default)]
struct Changes {
    count: u64,
    /// The version of each object that was seen last, by its uid.
    versions: HashMap<String, Version>,
}

/// What changes with an object's specification. A Deployment's status changes with each of its pods, and is nothing to be repaired.
#[derive(PartialEq, Eq)]
enum Version {
    /// Of kinds that have a status.
    Generation(Option<i64>, Vec<(String, String)>),
    /// Of all others.
    Resource(Option<String>),
}

impl Version {
    fn of(object: &impl ResourceExt) -> Version {
        match object.meta().generation {
            None => Version::Resource(object.resource_version()),
            generation => {
                let labels = object.labels().iter();
                Version::Generation(
                    generation,
                    labels.map(|(key, value)| (key.clone(), value.clone())).collect(),
                )
            }
        }
    }
}

impl ChangeCounts {
    /// Counts what comes through.
    pub fn count<K: Resource, S: Stream<Item = Result<Event<K>, watcher::Error>>>(
        self: &Arc<Self>,
        events: S,
    ) -> impl Stream<Item = Result<Event<K>, watcher::Error>> + use<K, S> {
        let counts = Arc::clone(self);
        events.inspect(move |event| match event {
            Ok(Event::Apply(object) | Event::InitApply(object)) => counts.on_object(object, false),
            Ok(Event::Delete(object)) => counts.on_object(object, true),
            Ok(Event::Init | Event::InitDone) | Err(_) => {}
        })
    }

    fn on_object(&self, object: &impl ResourceExt, is_deleted: bool) {
        let mut counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        for owner in object.owner_references() {
            let key = (object.namespace().unwrap_or_default(), owner.name.clone());
            counts.entry(key).or_default().on_object(object, is_deleted);
        }
    }

    /// Changes whenever an object of the resource does.
    pub fn count_of(&self, key: &Key) -> u64 {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).get(key).map_or(0, |changes| changes.count)
    }

    /// The resource is gone.
    pub fn forget(&self, key: &Key) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(key);
    }
}

impl Changes {
    fn on_object(&mut self, object: &impl ResourceExt, is_deleted: bool) {
        let uid = object.uid().unwrap_or_default();
        let is_changed = if is_deleted {
            self.versions.remove(&uid);
            true
        } else {
            let version = Version::of(object);
            let before = self.versions.insert(uid, Version::of(object));
            before != Some(version)
        };
        self.count += u64::from(is_changed);
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::apps::v1::Deployment;
    use k8s_openapi::api::core::v1::ConfigMap;
    use serde::de::DeserializeOwned;
    use serde_json::json;

    use super::*;

    fn object<K: DeserializeOwned>(generation: Option<i64>, version: &str, label: &str) -> K {
        let owner = json!({"apiVersion": "v", "kind": "k", "name": "shop", "uid": "u"});
        let metadata = json!({"namespace": "n", "uid": "o", "generation": generation, "resourceVersion": version,
            "labels": {"a": label}, "ownerReferences": [owner]});
        serde_json::from_value(json!({"metadata": metadata})).unwrap()
    }

    #[test]
    fn a_status_that_changes_is_not_a_change() {
        let (counts, key) = (ChangeCounts::default(), ("n".to_owned(), "shop".to_owned()));
        let see = |object: &Deployment, is_deleted| {
            counts.on_object(object, is_deleted);
            counts.count_of(&key)
        };
        assert_eq!(see(&object(Some(1), "1", "x"), false), 1);
        assert_eq!(see(&object(Some(1), "2", "x"), false), 1, "its status");
        assert_eq!(see(&object(Some(2), "3", "x"), false), 2, "its specification");
        assert_eq!(see(&object(Some(2), "4", "y"), false), 3, "its labels");
        assert_eq!(see(&object(Some(2), "5", "y"), true), 4, "it was deleted");
    }

    #[test]
    fn an_object_without_a_generation_is_known_by_its_version() {
        let (counts, key) = (ChangeCounts::default(), ("n".to_owned(), "shop".to_owned()));
        for (version, count) in [("1", 1), ("1", 1), ("2", 2)] {
            counts.on_object(&object::<ConfigMap>(None, version, "x"), false);
            assert_eq!(counts.count_of(&key), count);
        }
    }
}
