//! The versions of the resource that the API server serves.

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::{
    CustomResourceDefinition, CustomResourceDefinitionVersion,
};
use kube::CustomResourceExt;

use super::OutboxRelay;

/// Served since the first release, with the fields of the version that is stored: the API server converts one into the
/// other by changing `apiVersion`.
const DEPRECATED: &str = "v1alpha1";

/// What people apply.
pub fn definition() -> CustomResourceDefinition {
    let mut definition = OutboxRelay::crd();
    let deprecated = definition.spec.versions.first().map(|stored| CustomResourceDefinitionVersion {
        name: DEPRECATED.to_owned(),
        storage: false,
        deprecated: Some(true),
        deprecation_warning: Some(format!(
            "outbox.dev/{DEPRECATED} is deprecated: write outbox.dev/{}, which has the same fields",
            stored.name
        )),
        ..stored.clone()
    });
    definition.spec.versions.extend(deprecated);
    definition
}
