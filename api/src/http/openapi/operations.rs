//! The operations: what each takes, what it answers, and which problems it can have.

#![allow(clippy::indexing_slicing, reason = "members of JSON objects that were made a few lines above")]

use basket::application::CommandType;
use serde_json::{Map, Value, json};

use super::examples;
use crate::http::problem::kinds;
use basket::application::queries::{DEFAULT_PAGE, MAX_PAGE};

/// Problems every operation that needs a token can have.
const ALWAYS: [u16; 11] = [400, 401, 405, 406, 408, 413, 414, 429, 431, 500, 503];
/// Problems of commands on top.
const OF_COMMANDS: [u16; 2] = [409, 422];
/// Problems of a change of a basket that is there.
const OF_CHANGES: [u16; 3] = [404, 412, 428];

struct Operation {
    method: &'static str,
    path: &'static str,
    id: &'static str,
    tag: &'static str,
    summary: &'static str,
    parameters: Vec<Value>,
    body: Option<&'static str>,
    success: (u16, &'static str),
    problems: Vec<u16>,
}

/// All of them, by path.
pub fn paths() -> Map<String, Value> {
    let mut paths = Map::new();
    for operation in baskets().into_iter().chain(items()).chain(commands()) {
        let path = paths.entry(operation.path).or_insert_with(|| json!({}));
        path[operation.method] = described(&operation);
        if operation.method == "get" {
            path["head"] = head(&operation);
        }
    }
    paths.insert("/openapi.json".to_owned(), contract("openapi", "This document", "application/json", &[]));
    let slug = json!({
        "name": "type", "in": "path", "required": true, "description": "Last segment of the type's URI.",
        "schema": { "enum": kinds::ALL.iter().filter_map(|kind| kind.slug).collect::<Vec<_>>() },
    });
    let page = contract("problem_type", "What a problem type means", "text/html", &[slug]);
    paths.insert("/problems/{type}".to_owned(), page);
    paths
}

fn baskets() -> Vec<Operation> {
    let commands = |more: &[u16]| [&ALWAYS[..], &OF_COMMANDS, &[415], more].concat();
    let filters = vec![
        query("buyer_id", "Only this buyer's.", json!({ "$ref": "#/components/schemas/BuyerId" })),
        query("status", "Only those in this status.", json!({ "$ref": "#/components/schemas/Status" })),
    ];
    vec![
        Operation {
            method: "post",
            path: "/v1/baskets",
            id: "create_basket",
            tag: "baskets",
            summary: "Create a basket",
            parameters: vec![key(true)],
            body: Some("NewBasket"),
            success: (201, "Basket"),
            problems: commands(&[]),
        },
        Operation {
            method: "get",
            path: "/v1/baskets",
            id: "list_baskets",
            tag: "baskets",
            summary: "Your baskets, newest first",
            parameters: [filters, paging()].concat(),
            body: None,
            success: (200, "BasketPage"),
            problems: ALWAYS.to_vec(),
        },
        Operation {
            method: "get",
            path: "/v1/baskets/{id}",
            id: "get_basket",
            tag: "baskets",
            summary: "One basket",
            parameters: vec![id("Id of the basket."), if_none_match()],
            body: None,
            success: (200, "Basket"),
            problems: [&ALWAYS[..], &[404]].concat(),
        },
        Operation {
            method: "delete",
            path: "/v1/baskets/{id}",
            id: "abandon_basket",
            tag: "baskets",
            summary: "Give a basket up",
            parameters: vec![id("Id of the basket."), key(false), if_match()],
            body: None,
            success: (200, "Basket"),
            problems: [&ALWAYS[..], &OF_COMMANDS, &OF_CHANGES].concat(),
        },
        Operation {
            method: "post",
            path: "/v1/baskets/{id}/checkout",
            id: "check_out",
            tag: "baskets",
            summary: "Order what is in a basket",
            parameters: vec![id("Id of the basket."), key(true), if_match()],
            body: Some("Payment"),
            success: (200, "Basket"),
            problems: commands(&OF_CHANGES),
        },
    ]
}

fn items() -> Vec<Operation> {
    let operation = |method, path: &'static str, op, summary, body: Option<&'static str>, key_required| {
        let mut parameters = vec![id("Id of the basket."), key(key_required), if_match()];
        if path.ends_with("{sku}") {
            parameters.insert(1, sku());
        }
        let media_type: &[u16] = if body.is_some() { &[415] } else { &[] };
        let problems = [&ALWAYS[..], &OF_COMMANDS, &OF_CHANGES, media_type].concat();
        let success = (200, "Basket");
        Operation { method, path, id: op, tag: "baskets", summary, parameters, body, success, problems }
    };
    let (items, item) = ("/v1/baskets/{id}/items", "/v1/baskets/{id}/items/{sku}");
    let add = "Put an article in, or more of one that is there";
    vec![
        operation("post", items, "add_item", add, Some("NewItem"), true),
        operation("delete", items, "clear_basket", "Take everything out", None, false),
        operation("patch", item, "change_quantity", "Have more or fewer pieces", Some("NewQuantity"), false),
        operation("delete", item, "remove_item", "Take an article out", None, false),
    ]
}

fn commands() -> Vec<Operation> {
    let name = json!({ "type": "string", "minLength": 1, "maxLength": 200, "pattern": r"^[^\u0000-\u001f\u007f-\u009f]*$" });
    let time = || json!({ "type": "string", "format": "date-time" });
    let filters = vec![
        query("principal", "Only this principal's; another one's for auditors only.", name),
        query("type", "Only those of this type.", json!({ "enum": CommandType::names() })),
        query("outcome", "Only those that ended like this.", json!({ "enum": ["accepted", "refused"] })),
        query("from", "Only those received at this time or later.", time()),
        query("until", "Only those received before this time.", time()),
    ];
    vec![
        Operation {
            method: "get",
            path: "/v1/commands",
            id: "list_commands",
            tag: "commands",
            summary: "Your commands, newest first; everybody's for auditors",
            parameters: [filters, paging()].concat(),
            body: None,
            success: (200, "CommandPage"),
            problems: [&ALWAYS[..], &[403]].concat(),
        },
        Operation {
            method: "get",
            path: "/v1/commands/{id}",
            id: "get_command",
            tag: "commands",
            summary: "One command",
            parameters: vec![id("Id of the command: the Command-Id of its answer.")],
            body: None,
            success: (200, "Command"),
            problems: [&ALWAYS[..], &[404]].concat(),
        },
    ]
}

fn described(operation: &Operation) -> Value {
    let (status, schema) = operation.success;
    let mut responses = Map::new();
    responses.insert(
        status.to_string(),
        json!({
            "description": operation.summary,
            "headers": headers(operation),
            "content": { "application/json": {
                "schema": reference("schemas", schema),
                "examples": { "example": { "value": examples::of(schema) } },
            } },
        }),
    );
    if operation.id == "get_basket" {
        let headers = json!({ "ETag": header("The basket's version.") });
        responses
            .insert("304".to_owned(), json!({ "description": "You have this version", "headers": headers }));
    }
    for problem in &operation.problems {
        responses.insert(problem.to_string(), reference("responses", &problem.to_string()));
    }
    let mut described = json!({
        "operationId": operation.id, "tags": [operation.tag], "summary": operation.summary,
        "parameters": operation.parameters, "responses": responses,
    });
    if let Some(body) = operation.body {
        described["requestBody"] = json!({ "required": true, "content": { "application/json": {
            "schema": reference("schemas", body),
            "examples": { "example": { "value": examples::of(body) } },
        } } });
    }
    described
}

/// HEAD: as GET, without the bodies.
fn head(operation: &Operation) -> Value {
    let mut described = described(operation);
    described["operationId"] = format!("{}_head", operation.id).into();
    described["summary"] = format!("{}: the headers only", operation.summary).into();
    let statuses = operation.problems.iter().chain([&operation.success.0]);
    for status in statuses {
        described["responses"][status.to_string()] = json!({ "description": "As GET, without a body" });
    }
    described
}

fn headers(operation: &Operation) -> Value {
    let mut headers = json!({ "X-Request-Id": header("Finds the request in the service's log.") });
    if operation.success.1 == "Basket" {
        headers["ETag"] = header("The basket's version.");
    }
    if operation.success.1.ends_with("Page") {
        headers["Link"] = header("The first and the next page (RFC 8288).");
    }
    if operation.method != "get" {
        headers["Command-Id"] = header("The command in the log.");
        let replayed = json!({ "description": "This is the answer to an earlier request.", "schema": { "const": "true" } });
        headers["Idempotent-Replayed"] = replayed;
    }
    if operation.success.0 == 201 {
        headers["Location"] = header("The basket.");
    }
    headers
}

fn contract(id: &str, summary: &str, media_type: &str, parameters: &[Value]) -> Value {
    let responses = |body: bool| {
        let mut responses = Map::new();
        let mut found = json!({ "description": summary });
        if body {
            found["content"][media_type] = json!({ "schema": true });
        }
        responses.insert("200".to_owned(), found);
        for problem in [400, 404, 405, 406, 414, 429, 431, 503] {
            let described = json!({ "description": "As GET, without a body" });
            let with_body = reference("responses", &problem.to_string());
            responses.insert(problem.to_string(), if body { with_body } else { described });
        }
        responses
    };
    json!({
        "get": { "operationId": id, "summary": summary, "security": [], "parameters": parameters,
                 "responses": responses(true) },
        "head": { "operationId": format!("{id}_head"), "summary": format!("{summary}: the headers only"), "security": [],
                  "parameters": parameters, "responses": responses(false) },
    })
}

fn reference(what: &str, name: &str) -> Value {
    json!({ "$ref": format!("#/components/{what}/{name}") })
}

/// A response header.
pub fn header(description: &str) -> Value {
    json!({ "description": description, "schema": { "type": "string" } })
}

fn id(description: &str) -> Value {
    let schema = json!({ "type": "string", "format": "uuid" });
    json!({ "name": "id", "in": "path", "required": true, "description": description, "schema": schema })
}

fn sku() -> Value {
    let schema = reference("schemas", "Sku");
    json!({ "name": "sku", "in": "path", "required": true, "description": "Article number.", "schema": schema })
}

fn query(name: &str, description: &str, schema: Value) -> Value {
    json!({ "name": name, "in": "query", "description": description, "schema": schema })
}

fn paging() -> Vec<Value> {
    let limit = json!({ "type": "integer", "minimum": 1, "maximum": MAX_PAGE, "default": DEFAULT_PAGE });
    vec![
        query("limit", "Entries of the page at most.", limit),
        query("page_token", "The next_page_token of a page of the same list.", json!({ "type": "string" })),
    ]
}

fn key(required: bool) -> Value {
    json!({
        "name": "Idempotency-Key", "in": "header", "required": required,
        "description": "Your name for this request, best a new UUID: sent again under the same name it is answered as \
                        the first time.",
        "schema": { "type": "string", "minLength": 1, "maxLength": 255, "pattern": "^[!#-~]+$" },
        "example": "0199c1de-8a5e-7c63-b2c8-2f4f2c6b0a11",
    })
}

fn if_match() -> Value {
    json!({
        "name": "If-Match", "in": "header", "description": "Only if the basket is still at this version: its ETag.",
        "schema": { "anyOf": [{ "const": "*" }, { "type": "string", "pattern": "^\"[0-9]{1,18}\"$" }] },
    })
}

fn if_none_match() -> Value {
    json!({
        "name": "If-None-Match", "in": "header", "description": "Only if the basket is at another version: its ETag.",
        "schema": { "anyOf": [{ "const": "*" }, { "type": "string", "pattern": "^(W/)?\"[0-9]{1,18}\"$" }] },
    })
}
