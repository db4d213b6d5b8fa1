//! The OpenAPI 3.1 document, made from the table of routes and the types themselves, so that neither can say something
//! the service does not do.

#![allow(clippy::indexing_slicing, reason = "members of JSON objects that were made a few lines above")]

mod parameters;
mod responses;

use schemars::generate::{SchemaGenerator, SchemaSettings};
use serde_json::{Map, Value, json};

use super::operation::{Class, Content, Schema, Tag};
use super::problem::Body;
use super::routes::{ROUTES, Route};

/// The document.
pub fn document() -> Value {
    let mut schemas = Schemas::new();
    let paths = paths(&mut schemas);
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "Basket API",
            "version": env!("CARGO_PKG_VERSION"),
            "summary": "Baskets of a shop, with events through a transactional outbox.",
            "description": "Every write is a command: under an Idempotency-Key it is executed once, however often it \
                            is sent, and the command log says what came of it. Errors are problem details \
                            (RFC 9457).",
            "contact": { "name": "The team that runs this service" },
            "license": { "name": "Apache-2.0", "identifier": "Apache-2.0" },
        },
        "servers": [{ "url": "/" }],
        "security": [{ "bearer": [] }],
        "tags": Tag::ALL.map(|(tag, description)| json!({ "name": tag.name(), "description": description })),
        "paths": paths,
        "components": {
            "securitySchemes": { "bearer": {
                "type": "http", "scheme": "bearer", "bearerFormat": "JWT",
                "description": "An access token of the configured issuer. A configurable role, auditor if nothing \
                                else is set, reads the commands of all principals.",
            } },
            "parameters": parameters::shared(),
            "schemas": schemas.all(),
            "responses": responses::problems(),
        },
    })
}

fn paths(schemas: &mut Schemas) -> Map<String, Value> {
    let mut paths = Map::new();
    for route in &ROUTES {
        let path = paths.entry(route.template).or_insert_with(|| json!({}));
        path[route.method.as_str().to_ascii_lowercase()] = operation(route, schemas);
        if route.method == warp::http::Method::GET {
            path["head"] = head(route, schemas);
        }
    }
    paths
}

fn operation(route: &Route, schemas: &mut Schemas) -> Value {
    let operation = &route.operation;
    let mut described = json!({
        "operationId": operation.id,
        "tags": [operation.tag.name()],
        "summary": operation.summary,
        "description": operation.description,
        "parameters": parameters::of(route),
        "responses": responses::of(operation, schemas),
    });
    if operation.class == Class::Public {
        described["security"] = json!([]);
    }
    if let Some(body) = &operation.request {
        let schema = schemas.received(body);
        described["requestBody"] =
            json!({ "required": true, "content": { "application/json": content(body, &schema) } });
    }
    described
}

/// HEAD: as GET, without the bodies.
fn head(route: &Route, schemas: &mut Schemas) -> Value {
    let mut described = operation(route, schemas);
    let operation = &route.operation;
    described["operationId"] = format!("{}_head", operation.id).into();
    described["summary"] = format!("{}: the headers only", operation.summary).into();
    let statuses = operation.problem_statuses();
    for status in statuses {
        described["responses"][status.to_string()] = json!({ "description": "As GET, without a body." });
    }
    if let Some(answer) = described["responses"][operation.answer.status.as_str()].as_object_mut() {
        answer.remove("content");
    }
    described
}

fn content(schema: &Schema, reference: &Value) -> Value {
    json!({ "schema": reference, "examples": { "example": { "value": (schema.example)() } } })
}

/// Schemas of everything that is sent or received.
struct Schemas {
    sent: SchemaGenerator,
    received: SchemaGenerator,
}

impl Schemas {
    fn new() -> Schemas {
        let settings = |contract: fn(SchemaSettings) -> SchemaSettings| {
            let settings = contract(SchemaSettings::draft2020_12());
            let settings = settings.with(|settings| settings.definitions_path = "/components/schemas".into());
            settings.into_generator()
        };
        let mut sent = settings(SchemaSettings::for_serialize);
        sent.subschema_for::<Body<'_>>();
        Schemas { sent, received: settings(SchemaSettings::for_deserialize) }
    }

    fn sent(&mut self, schema: &Schema) -> Value {
        (schema.of)(&mut self.sent).to_value()
    }

    fn received(&mut self, schema: &Schema) -> Value {
        (schema.of)(&mut self.received).to_value()
    }

    fn all(mut self) -> Map<String, Value> {
        let mut all = self.received.take_definitions(true);
        all.extend(self.sent.take_definitions(true));
        all
    }

    /// The content of an answer, by its media type.
    fn answer(&mut self, answer: &Content) -> Value {
        match answer {
            Content::Json(schema) => {
                let reference = self.sent(schema);
                json!({ "application/json": content(schema, &reference) })
            }
            Content::JsonObject => json!({ "application/json": { "schema": { "type": "object" } } }),
            Content::Html => json!({ "text/html": { "schema": { "type": "string" } } }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reference_leads_somewhere() {
        let document = document();
        let mut references = Vec::new();
        collect(&document, &mut references);
        assert!(references.len() > 50);
        for reference in references {
            let pointer = reference.strip_prefix('#').unwrap();
            assert!(document.pointer(pointer).is_some(), "{reference}");
        }
    }

    fn collect(value: &Value, references: &mut Vec<String>) {
        match value {
            Value::Object(members) => {
                references.extend(members.get("$ref").and_then(Value::as_str).map(str::to_owned));
                members.values().for_each(|value| collect(value, references));
            }
            Value::Array(items) => items.iter().for_each(|item| collect(item, references)),
            _ => {}
        }
    }
}
