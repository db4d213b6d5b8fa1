//! The OpenAPI 3.1 document: operations as one table, schemas from the types themselves, so that neither can say
//! something the service does not do.

#![allow(clippy::indexing_slicing, reason = "members of JSON objects that were made a few lines above")]

mod examples;
mod operations;

use schemars::generate::{SchemaGenerator, SchemaSettings};
use serde_json::{Map, Value, json};

use super::dto::{Basket, BasketPage, Command, CommandPage, NewBasket, NewItem, NewQuantity, Payment};
use super::problem::{Body, kinds};

/// The document.
pub fn document() -> Value {
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "Basket API",
            "version": env!("CARGO_PKG_VERSION"),
            "summary": "Baskets of a shop, with events through a transactional outbox.",
            "description": "Every write is a command: under an Idempotency-Key it is executed once, however often it \
                            is sent, and the log of commands says what came of it. Errors are problem details \
                            (RFC 9457).",
            "license": { "name": "Apache-2.0", "identifier": "Apache-2.0" },
        },
        "servers": [{ "url": "/" }],
        "security": [{ "bearer": [] }],
        "tags": [
            { "name": "baskets", "description": "Commands and queries about baskets." },
            { "name": "commands", "description": "The log of commands." },
        ],
        "paths": operations::paths(),
        "components": {
            "securitySchemes": { "bearer": { "type": "http", "scheme": "bearer", "bearerFormat": "JWT" } },
            "schemas": schemas(),
            "responses": responses(),
        },
    })
}

/// Schemas of everything that is sent or received.
fn schemas() -> Map<String, Value> {
    let settings =
        |of: SchemaSettings| of.with(|settings| settings.definitions_path = "/components/schemas".into());
    let mut sent = settings(SchemaSettings::draft2020_12().for_serialize()).into_generator();
    add::<Basket>(&mut sent);
    add::<BasketPage>(&mut sent);
    add::<Command>(&mut sent);
    add::<CommandPage>(&mut sent);
    add::<Body<'_>>(&mut sent);
    let mut received = settings(SchemaSettings::draft2020_12().for_deserialize()).into_generator();
    add::<NewBasket>(&mut received);
    add::<NewItem>(&mut received);
    add::<NewQuantity>(&mut received);
    add::<Payment>(&mut received);
    let mut schemas = received.take_definitions(true);
    schemas.extend(sent.take_definitions(true));
    schemas
}

fn add<T: schemars::JsonSchema>(generator: &mut SchemaGenerator) {
    generator.subschema_for::<T>();
}

/// One response for each status that is a problem, with an example of each type it can be.
fn responses() -> Map<String, Value> {
    let mut responses = Map::new();
    for kind in kinds::ALL {
        let name = kind.status.as_str();
        let response = responses.entry(name).or_insert_with(|| problem_response(kind.status.as_u16()));
        let example = examples::problem(kind);
        let key = kind.slug.unwrap_or("about-blank");
        if let Some(examples) = response.pointer_mut("/content/application~1problem+json/examples") {
            examples[key] = json!({ "summary": kind.meaning, "value": example });
        }
    }
    responses
}

fn problem_response(status: u16) -> Value {
    let mut headers =
        json!({ "X-Request-Id": operations::header("Finds the request in the service's log.") });
    match status {
        401 => headers["WWW-Authenticate"] = operations::header("How to authenticate (RFC 6750)."),
        405 => headers["Allow"] = operations::header("Methods of the resource."),
        412 => headers["ETag"] = operations::header("The basket's current version."),
        429 | 503 => headers["Retry-After"] = operations::header("Seconds to wait before the next attempt."),
        _ => {}
    }
    let reason = warp::http::StatusCode::from_u16(status).ok().and_then(|status| status.canonical_reason());
    json!({
        "description": reason.unwrap_or("Problem"),
        "headers": headers,
        "content": { "application/problem+json": {
            "schema": { "$ref": "#/components/schemas/Problem" },
            "examples": {},
        } },
    })
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
