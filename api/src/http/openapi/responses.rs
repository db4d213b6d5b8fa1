//! Answers of operations: the one to a request that succeeds, and the problems.

use serde_json::{Map, Value, json};

use super::Schemas;
use crate::http::examples;
use crate::http::operation::{Class, Operation};
use crate::http::problem::kinds;

/// Those of one operation.
pub fn of(operation: &Operation, schemas: &mut Schemas) -> Map<String, Value> {
    let answer = &operation.answer;
    let mut responses = Map::new();
    let mut success = json!({ "description": answer.description, "headers": headers(operation) });
    success["content"] = schemas.answer(&answer.content);
    responses.insert(answer.status.as_str().to_owned(), success);
    if operation.class == Class::Read && !answer.headers.is_empty() {
        let not_modified =
            json!({ "description": "It has not changed since.", "headers": headers(operation) });
        responses.insert("304".to_owned(), not_modified);
    }
    for status in operation.problem_statuses() {
        let reference = format!("#/components/responses/{status}");
        responses.insert(status.to_string(), json!({ "$ref": reference }));
    }
    responses
}

fn headers(operation: &Operation) -> Value {
    let mut headers = json!({ "X-Request-Id": header("Finds the request in the service's log.") });
    for own in operation.answer.headers {
        headers[own.name] = header(own.description);
    }
    if operation.class.is_command() {
        headers["Command-Id"] = json!({
            "description": "The command in the command log.", "schema": { "type": "string", "format": "uuid" },
        });
        headers["Idempotent-Replayed"] = json!({
            "description": "This is the answer to an earlier request.",
            "schema": { "type": "string", "enum": ["true"] },
        });
    }
    headers
}

/// One response for each status that is a problem, with an example of each type it can be.
pub fn problems() -> Map<String, Value> {
    let mut responses = Map::new();
    for kind in kinds::ALL {
        let name = kind.status.as_str();
        let response = responses.entry(name).or_insert_with(|| problem(kind.status));
        let key = kind.slug.unwrap_or("about-blank");
        if let Some(examples) = response.pointer_mut("/content/application~1problem+json/examples") {
            examples[key] = json!({ "summary": kind.meaning, "value": examples::problem(kind) });
        }
    }
    responses
}

fn problem(status: warp::http::StatusCode) -> Value {
    let mut headers = json!({ "X-Request-Id": header("Finds the request in the service's log.") });
    let retry_after = || {
        json!({
            "description": "Seconds to wait before the next attempt.", "schema": { "type": "integer", "minimum": 0 },
        })
    };
    match status.as_u16() {
        401 => headers["WWW-Authenticate"] = header("How to authenticate (RFC 6750)."),
        405 => headers["Allow"] = header("Methods of the resource."),
        // With idempotency-key-in-progress only.
        409 | 429 | 503 => headers["Retry-After"] = retry_after(),
        412 => headers["ETag"] = header("The basket's current version."),
        _ => {}
    }
    json!({
        "description": status.canonical_reason().unwrap_or("Problem"),
        "headers": headers,
        "content": { "application/problem+json": {
            "schema": { "$ref": "#/components/schemas/Problem" },
            "examples": {},
        } },
    })
}

fn header(description: &str) -> Value {
    json!({ "description": description, "schema": { "type": "string" } })
}
