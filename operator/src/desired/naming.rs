//! Names and labels of the objects that belong to a resource.

use std::collections::BTreeMap;

use kube::api::ObjectMeta;
use kube::{Resource, ResourceExt};

use crate::resource::OutboxRelay;

/// Who makes the objects; server-side apply knows them by it.
pub const MANAGER: &str = "outbox-operator";

/// Name of the relay's container.
pub(crate) const CONTAINER: &str = "relay";

const NAME: &str = "app.kubernetes.io/name";
/// The label with the name of the resource.
pub const INSTANCE: &str = "app.kubernetes.io/instance";
/// The label by which everything of this operator is told.
pub const MANAGED_BY: &str = "app.kubernetes.io/managed-by";

/// The objects' names end at 63 characters, and the suffixes that Kubernetes appends to those of pods need room, too.
const LONGEST: usize = 50;

/// Whether the objects of a resource could have their names. The schema refuses a new resource whose name is not so; one from before that
/// rule may exist.
///
/// # Errors
/// What is wrong with the name, and what to do.
pub fn check(relay: &OutboxRelay) -> Result<(), String> {
    let name = relay.name_any();
    let is_label = name.starts_with(|first: char| first.is_ascii_lowercase())
        && name.bytes().all(|byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'-'))
        && name.len() <= LONGEST;
    let problem = || {
        format!(
            "metadata.name: the Service {name}-relay could not exist: a name starts with a letter, has lower-case letters, digits and '-' \
             only, and {LONGEST} characters at most. Delete this resource, and create it under another name"
        )
    };
    if is_label { Ok(()) } else { Err(problem()) }
}

/// The name of every object of a resource. Their kinds differ, so it is the same.
pub fn object_name(relay: &OutboxRelay) -> String {
    format!("{}-relay", relay.name_any())
}

/// Labels that pods are selected by. They never change.
pub fn selector(relay: &OutboxRelay) -> BTreeMap<String, String> {
    [(NAME, "outbox-relay".to_owned()), (INSTANCE, relay.name_any())]
        .map(|(key, value)| (key.to_owned(), value))
        .into()
}

/// Labels of every object by which the operator finds it.
pub fn own_labels(relay: &OutboxRelay) -> BTreeMap<String, String> {
    let mut labels = selector(relay);
    labels.insert(MANAGED_BY.to_owned(), MANAGER.to_owned());
    labels
}

/// Labels of every object.
pub fn labels(relay: &OutboxRelay) -> BTreeMap<String, String> {
    let mut labels = relay.spec.relay.labels.clone();
    labels.extend(own_labels(relay));
    labels
}

/// Name, namespace, labels, annotations and owner of an object of a resource: when the resource goes, Kubernetes collects it.
pub fn metadata(relay: &OutboxRelay) -> ObjectMeta {
    ObjectMeta {
        name: Some(object_name(relay)),
        namespace: relay.namespace(),
        labels: Some(labels(relay)),
        annotations: Some(relay.spec.relay.annotations.clone()).filter(|annotations| !annotations.is_empty()),
        owner_references: Some(relay.controller_owner_ref(&()).into_iter().collect()),
        ..ObjectMeta::default()
    }
}
