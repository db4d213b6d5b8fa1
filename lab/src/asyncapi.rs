//! The AsyncAPI document of the basket's events: topic, key, headers, and the payload of every type.

use serde_json::{Map, Value, json};

/// The topic under the relay's default routing.
const TOPIC: &str = "outbox.event.basket";

/// The document, from the JSON Schemas of the payloads by event type.
pub fn document(schemas: &Map<String, Value>) -> Value {
    let reference = |event_type: &String| json!({ "$ref": format!("#/components/messages/{event_type}") });
    let messages: Map<String, Value> =
        schemas.keys().map(|event_type| (event_type.clone(), reference(event_type))).collect();
    let components: Map<String, Value> = schemas
        .iter()
        .map(|(event_type, schema)| (event_type.clone(), message(event_type, schema)))
        .collect();
    json!({
        "asyncapi": "3.0.0",
        "info": {
            "title": "Basket events",
            "version": "1.0.0",
            "description": "What the basket service publishes through its outbox, as CloudEvents 1.0 in binary mode. \
                Events of one basket are in one partition, in the order of `version`, which counts them from 1. \
                An event may be delivered more than once: deduplicate on the header `ce_id`. \
                Ignore members, headers and types that you do not know.",
            "license": { "name": "Apache-2.0", "url": "https://www.apache.org/licenses/LICENSE-2.0" }
        },
        "defaultContentType": "application/json",
        "channels": {
            "basket": {
                "address": TOPIC,
                "description": "The topic under the relay's default routing.",
                "messages": messages,
                "bindings": { "kafka": { "topic": TOPIC, "bindingVersion": "0.5.0" } }
            }
        },
        "operations": {
            "publish": {
                "action": "send",
                "channel": { "$ref": "#/channels/basket" },
                "summary": "The relay publishes each committed event."
            }
        },
        "components": { "messages": components, "schemas": { "headers": headers() } }
    })
}

fn message(event_type: &str, schema: &Value) -> Value {
    let mut payload = schema.clone();
    // AsyncAPI's own dialect, a superset of draft 7, is meant where none is named. Every tool reads it.
    if let Some(payload) = payload.as_object_mut() {
        payload.remove("$schema");
    }
    json!({
        "name": event_type,
        "title": event_type,
        "summary": schema.get("description"),
        "headers": {
            "allOf": [
                { "$ref": "#/components/schemas/headers" },
                { "properties": { "ce_type": { "const": event_type } } }
            ]
        },
        "payload": payload,
        "correlationId": { "location": "$message.header#/correlation-id" },
        "bindings": {
            "kafka": {
                "key": { "type": "string", "format": "uuid", "description": "The basket." },
                "bindingVersion": "0.5.0"
            }
        }
    })
}

/// Headers of every record. All values are text.
fn headers() -> Value {
    let text = |description: &str| json!({ "type": "string", "description": description });
    let pattern = |description: &str, pattern: &str| json!({ "type": "string", "description": description, "pattern": pattern });
    let traceparent = "^[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}$";
    json!({
        "type": "object",
        "required": [
            "ce_specversion", "ce_id", "ce_source", "ce_type", "ce_time", "content-type", "correlation-id", "causation-id"
        ],
        "properties": {
            "ce_specversion": { "const": "1.0" },
            "ce_id": { "type": "string", "format": "uuid", "description": "The event. Deduplicate on it." },
            "ce_source": { "type": "string", "format": "uri-reference", "description": "The outbox." },
            "ce_type": text("The type of the event, with its version."),
            "ce_time": { "type": "string", "format": "date-time", "description": "When the event was written." },
            "ce_sequence": pattern(
                "The position in the history of the database. Absent where a dead letter was sent again.",
                "^[0-9a-f]{8}-[0-9a-f]{16}-[0-9a-f]{16}$"
            ),
            "content-type": { "const": "application/json" },
            "correlation-id": text("What the client called the business transaction."),
            "causation-id": { "type": "string", "format": "uuid", "description": "The command." },
            "traceparent": pattern("W3C trace context of the request.", traceparent),
            "tracestate": text("W3C trace context of the request."),
            "ce_traceparent": pattern("The same, as CloudEvents' extension for tracing has it.", traceparent),
            "ce_tracestate": text("The same, as CloudEvents' extension for tracing has it.")
        }
    })
}
