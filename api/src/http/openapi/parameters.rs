//! Parameters of operations: what their path, their class and their own query take.

use basket::application::queries::{DEFAULT_PAGE, MAX_PAGE};
use serde_json::{Value, json};

use crate::http::idempotency::Key;
use crate::http::operation::Class;
use crate::http::path;
use crate::http::problem::kinds;
use crate::http::routes::Route;

/// An idempotency key as clients write it: a quoted string of structured fields, or bare.
const KEY_PATTERN: &str = r#"^([!#-~]{1,255}|"([ !#-\[\]-~]|\\["\\]){1,255}")$"#;

/// Those that many operations have.
pub fn shared() -> Value {
    json!({
        "X-Request-Id": header("X-Request-Id", "Name of this request in the service's log: 1 to 100 letters, digits, dots, hyphens and underscores. Anything else gets a new one.",
            json!({ "type": "string" })),
        "Correlation-Id": header("Correlation-Id",
            "Copied to the events of the command; the command's id if there is none.",
            json!({ "type": "string", "pattern": "^[!-~]{1,255}$" })),
        "traceparent": header("traceparent",
            "W3C Trace Context, copied to the events of the command. An invalid value is ignored.",
            json!({ "type": "string" })),
        "tracestate": header("tracestate", "W3C Trace Context, copied along with traceparent.",
            json!({ "type": "string" })),
        "Idempotency-Key": key(false),
        "Required-Idempotency-Key": key(true),
        "If-Match": header("If-Match", "Only if the basket is still at this version: its ETag, or *.",
            json!({ "type": "string", "pattern": r#"^(\*|"[0-9]{1,18}")$"# })),
        "If-None-Match": header("If-None-Match", "Only if the basket is at another version: its ETag, or *.",
            json!({ "type": "string", "pattern": r#"^(\*|(W/)?"[0-9]{1,18}")$"# })),
        "limit": query("limit", "Entries of the page at most.",
            json!({ "type": "integer", "minimum": 1, "maximum": MAX_PAGE, "default": DEFAULT_PAGE })),
        "page_token": query("page_token", "The next_page_token of a page of the same list.", json!({ "type": "string" })),
    })
}

/// Those of one operation.
pub fn of(route: &Route) -> Vec<Value> {
    let operation = &route.operation;
    let mut parameters: Vec<Value> =
        path::parameters(route.template).map(|name| path_parameter(name, route.template)).collect();
    parameters.extend(operation.query.iter().map(|own| query(own.name, own.description, (own.schema)())));
    let of_class: &[&str] = match operation.class {
        Class::Public => &[],
        Class::Read if route.template.starts_with("/v1/baskets") => &["If-None-Match"],
        Class::Read => &[],
        Class::List => &["limit", "page_token"],
        Class::Create => &["Required-Idempotency-Key"],
        Class::Change(Key::Required) => &["Required-Idempotency-Key", "If-Match"],
        Class::Change(Key::Optional) => &["Idempotency-Key", "If-Match"],
    };
    let of_commands: &[&str] =
        if operation.class.is_command() { &["Correlation-Id", "traceparent", "tracestate"] } else { &[] };
    let of_all: &[&str] = &["X-Request-Id"];
    let shared = of_class.iter().chain(of_commands).chain(of_all);
    parameters.extend(shared.map(|name| json!({ "$ref": format!("#/components/parameters/{name}") })));
    parameters
}

fn path_parameter(name: &str, template: &str) -> Value {
    let id = || json!({ "type": "string", "format": "uuid" });
    let (description, schema) = match name {
        "sku" => ("Article number.", json!({ "$ref": "#/components/schemas/Sku" })),
        "type" => {
            let types: Vec<&str> = kinds::ALL.iter().filter_map(|kind| kind.slug).collect();
            ("Last segment of the type's URI.", json!({ "type": "string", "enum": types }))
        }
        _ if template.starts_with("/v1/commands") => {
            ("Id of the command: the Command-Id of its answer.", id())
        }
        _ => ("Id of the basket.", id()),
    };
    json!({ "name": name, "in": "path", "required": true, "description": description, "schema": schema })
}

fn query(name: &str, description: &str, schema: Value) -> Value {
    json!({ "name": name, "in": "query", "description": description, "schema": schema })
}

fn header(name: &str, description: &str, schema: Value) -> Value {
    json!({ "name": name, "in": "header", "description": description, "schema": schema })
}

fn key(required: bool) -> Value {
    json!({
        "name": "Idempotency-Key", "in": "header", "required": required,
        "description": "Your name for this request, best a new UUID: sent again under the same name it is answered as \
                        the first time.",
        "schema": { "type": "string", "pattern": KEY_PATTERN },
        "example": "0199c1de-8a5e-7c63-b2c8-2f4f2c6b0a11",
    })
}
