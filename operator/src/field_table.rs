//! The fields of the custom resource as a table, made from its schema, so that the documents cannot differ from it.

use std::fmt::Write;

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::JSONSchemaProps;
use kube::CustomResourceExt;

use crate::resource::OutboxRelay;

const HEAD: &str = "# Fields of OutboxRelay

Written by `cargo xtask crds` from the schema; `kubectl explain outboxrelay.spec --recursive` shows the same.
Concepts and a tour: [OPERATOR.md](OPERATOR.md).

| field | default | allowed | meaning |
|---|---|---|---|
";

/// What Kubernetes documents itself is not repeated.
const KUBERNETES_OWN: [&str; 6] = [
    "spec.relay.affinity",
    "spec.relay.imagePullSecrets",
    "spec.relay.networkPolicy.egress",
    "spec.relay.networkPolicy.ingressFrom",
    "spec.relay.resources",
    "spec.relay.tolerations",
];

/// The table, as Markdown.
pub fn markdown() -> String {
    let mut table = HEAD.to_owned();
    let crd = OutboxRelay::crd();
    let schema = crd.spec.versions.into_iter().next().and_then(|version| version.schema);
    let root = schema.and_then(|schema| schema.open_api_v3_schema);
    let spec = root.and_then(|root| root.properties).and_then(|mut fields| fields.remove("spec"));
    if let Some(spec) = spec {
        add(&mut table, "spec", &spec);
    }
    table
}

fn add(table: &mut String, path: &str, schema: &JSONSchemaProps) {
    let required = schema.required.clone().unwrap_or_default();
    for (name, field) in schema.properties.iter().flatten() {
        let path = format!("{path}.{name}");
        let default = match &field.default {
            Some(default) if field.properties.is_none() => format!("`{}`", shown(&default.0)),
            None if required.contains(name) => "required".to_owned(),
            _ => String::new(),
        };
        let meaning = field.description.as_deref().unwrap_or_default().replace('\n', " ").replace('|', "\\|");
        // Writing to a String cannot fail.
        let _ = writeln!(table, "| `{path}` | {default} | {} | {meaning} |", allowed(field));
        if !KUBERNETES_OWN.contains(&path.as_str()) {
            add(table, &path, field);
            if let Some(item) = item(field) {
                add(table, &format!("{path}[]"), item);
            }
        }
    }
}

fn item(field: &JSONSchemaProps) -> Option<&JSONSchemaProps> {
    use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::JSONSchemaPropsOrArray;
    match field.items.as_ref()? {
        JSONSchemaPropsOrArray::Schema(item) => Some(item),
        JSONSchemaPropsOrArray::Schemas(_) => None,
    }
}

fn allowed(field: &JSONSchemaProps) -> String {
    let choices: Vec<String> =
        field.enum_.iter().flatten().map(|value| format!("`{}`", shown(&value.0))).collect();
    if !choices.is_empty() {
        return choices.join(", ");
    }
    match (field.minimum, field.maximum) {
        (Some(from), Some(to)) => return format!("{from} to {to}"),
        (Some(from), None) => return format!("{from} and more"),
        _ => {}
    }
    field.pattern.as_ref().map(|pattern| format!("`{}`", pattern.replace('|', "\\|"))).unwrap_or_default()
}

fn shown(value: &serde_json::Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}
