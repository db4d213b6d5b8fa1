//! One event, validated when it is created: what the writer can commit, the relay can deliver.

use std::collections::BTreeMap;

use serde_json::Value;
use uuid::Uuid;

use crate::{attribute, header};

/// Largest payload as JSON text. Kafka brokers take 1 MiB per record by default, and CloudEvents asks
/// intermediaries to carry 64 KiB: an event that needs more should carry a reference.
pub const MAX_PAYLOAD_BYTES: usize = 512 * 1024;
/// Longest aggregate id: it is the key of every record, and is hashed to choose the partition.
pub const MAX_AGGREGATE_ID_BYTES: usize = 512;
/// Longest aggregate type and event type. A Kafka topic name, which the aggregate type becomes part of, has at
/// most 249 characters.
pub const MAX_TYPE_BYTES: usize = 200;

/// W3C trace context at the time of writing, passed on unchanged.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TraceContext {
    /// `traceparent` header.
    pub traceparent: Option<String>,
    /// `tracestate` header.
    pub tracestate: Option<String>,
}

/// One row of the outbox table.
///
/// ```
/// # fn main() -> Result<(), outbox::InvalidEvent> {
/// let event = outbox::Event::new("basket", "b-42", "basket.created.v1", serde_json::json!({"buyer": "ann"}))?
///     .with_header("correlation-id", "c-7")?;
/// assert_eq!(event.id().get_version_num(), 7);
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct Event {
    id: Uuid,
    aggregate_type: String,
    aggregate_id: String,
    event_type: String,
    payload: Value,
    headers: BTreeMap<String, String>,
    trace: TraceContext,
}

/// Why an event cannot be written. The text contains the field and the limit, never the content.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidEvent {
    /// A required text is empty.
    #[error("{field} is empty")]
    Empty {
        /// Name of the field.
        field: &'static str,
    },
    /// A text or the payload is over its limit.
    #[error("{field} has {bytes} bytes, but the limit is {limit}")]
    TooLong {
        /// Name of the field.
        field: &'static str,
        /// Its size.
        bytes: usize,
        /// The limit.
        limit: usize,
    },
    /// A character that PostgreSQL cannot store (U+0000), or that a topic or header cannot contain.
    #[error("{field} contains a character that is not allowed there")]
    Character {
        /// Name of the field.
        field: &'static str,
    },
    /// A header name reserved for the relay.
    #[error("header '{name}' is set by the relay and cannot be set by a row")]
    ReservedHeader {
        /// The name.
        name: String,
    },
}

impl Event {
    /// An event with a new id (UUIDv7).
    pub fn new(
        aggregate_type: impl Into<String>,
        aggregate_id: impl Into<String>,
        event_type: impl Into<String>,
        payload: Value,
    ) -> Result<Self, InvalidEvent> {
        let event = Event {
            id: Uuid::now_v7(),
            aggregate_type: aggregate_type.into(),
            aggregate_id: aggregate_id.into(),
            event_type: event_type.into(),
            payload,
            headers: BTreeMap::new(),
            trace: TraceContext::default(),
        };
        check_name("aggregatetype", &event.aggregate_type)?;
        check_name("type", &event.event_type)?;
        check_text("aggregateid", &event.aggregate_id, MAX_AGGREGATE_ID_BYTES)?;
        check_payload(&event.payload)?;
        Ok(event)
    }

    /// The same event under an id that the caller chose, for example one it has already stored elsewhere.
    #[must_use]
    pub fn with_id(mut self, id: Uuid) -> Self {
        self.id = id;
        self
    }

    /// Adds a Kafka header. Names are visible ASCII; those reserved for the relay are rejected.
    pub fn with_header(
        mut self,
        name: impl Into<String>,
        value: impl Into<String>,
    ) -> Result<Self, InvalidEvent> {
        let (name, value) = (name.into(), value.into());
        check_name("header name", &name)?;
        check_text("header value", &value, MAX_AGGREGATE_ID_BYTES)?;
        // The payload is jsonb, and trace context has its own columns.
        let set_by_relay = [header::CONTENT_TYPE, header::TRACEPARENT, header::TRACESTATE];
        if header::is_reserved(&name) || set_by_relay.iter().any(|own| name.eq_ignore_ascii_case(own)) {
            return Err(InvalidEvent::ReservedHeader { name });
        }
        self.headers.insert(name, value);
        Ok(self)
    }

    /// Adds the trace context of the request that caused the event. A part that no record can carry is left out: a
    /// trace must not prevent the event.
    #[must_use]
    pub fn with_trace(mut self, trace: TraceContext) -> Self {
        let fit = |part: Option<String>| part.filter(|text| attribute::is_text(text));
        self.trace = TraceContext { traceparent: fit(trace.traceparent), tracestate: fit(trace.tracestate) };
        self
    }

    /// Event id.
    pub fn id(&self) -> Uuid {
        self.id
    }
    /// Kind of aggregate.
    pub fn aggregate_type(&self) -> &str {
        &self.aggregate_type
    }
    /// Identity of the aggregate.
    pub fn aggregate_id(&self) -> &str {
        &self.aggregate_id
    }
    /// Event type with its version.
    pub fn event_type(&self) -> &str {
        &self.event_type
    }
    /// The event itself.
    pub fn payload(&self) -> &Value {
        &self.payload
    }
    /// Extra Kafka headers.
    pub fn headers(&self) -> &BTreeMap<String, String> {
        &self.headers
    }
    /// Trace context.
    pub fn trace(&self) -> &TraceContext {
        &self.trace
    }
}

fn check_name(field: &'static str, name: &str) -> Result<(), InvalidEvent> {
    check_text(field, name, MAX_TYPE_BYTES)?;
    if !name.bytes().all(|b| b.is_ascii_graphic()) {
        return Err(InvalidEvent::Character { field });
    }
    Ok(())
}

fn check_text(field: &'static str, text: &str, limit: usize) -> Result<(), InvalidEvent> {
    if text.is_empty() {
        return Err(InvalidEvent::Empty { field });
    }
    if text.len() > limit {
        return Err(InvalidEvent::TooLong { field, bytes: text.len(), limit });
    }
    if text.contains('\0') {
        return Err(InvalidEvent::Character { field });
    }
    Ok(())
}

fn check_payload(payload: &Value) -> Result<(), InvalidEvent> {
    let text = payload.to_string();
    if text.len() > MAX_PAYLOAD_BYTES {
        return Err(InvalidEvent::TooLong { field: "payload", bytes: text.len(), limit: MAX_PAYLOAD_BYTES });
    }
    if holds_nul(payload) {
        return Err(InvalidEvent::Character { field: "payload" });
    }
    Ok(())
}

/// PostgreSQL rejects U+0000 in jsonb; better here than as a database error in the middle of a transaction.
fn holds_nul(value: &Value) -> bool {
    match value {
        Value::String(text) => text.contains('\0'),
        Value::Array(items) => items.iter().any(holds_nul),
        Value::Object(members) => members.iter().any(|(name, value)| name.contains('\0') || holds_nul(value)),
        Value::Null | Value::Bool(_) | Value::Number(_) => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn event(payload: Value) -> Result<Event, InvalidEvent> {
        Event::new("basket", "b-1", "basket.created.v1", payload)
    }

    #[test]
    fn values_that_cannot_be_stored_or_sent_are_rejected_with_the_field() {
        assert_eq!(Event::new("", "b", "t", json!(1)), Err(InvalidEvent::Empty { field: "aggregatetype" }));
        assert_eq!(
            Event::new("a b", "b", "t", json!(1)),
            Err(InvalidEvent::Character { field: "aggregatetype" })
        );
        assert_eq!(
            Event::new("a", "b\0", "t", json!(1)),
            Err(InvalidEvent::Character { field: "aggregateid" })
        );
        assert_eq!(event(json!({"deep": ["\u{0}"]})), Err(InvalidEvent::Character { field: "payload" }));
        let big = "x".repeat(MAX_PAYLOAD_BYTES);
        assert!(matches!(event(json!(big)), Err(InvalidEvent::TooLong { field: "payload", .. })));
    }

    #[test]
    fn a_row_cannot_set_the_relays_own_headers() {
        for name in ["ce_id", "CE_id", "dead_letter_reason", "Content-Type", "traceparent"] {
            let refused = event(json!({})).unwrap().with_header(name, "mine");
            assert_eq!(refused, Err(InvalidEvent::ReservedHeader { name: name.into() }));
        }
    }

    #[test]
    fn an_invalid_trace_does_not_prevent_the_event() {
        let trace = TraceContext { traceparent: Some("00-a\nb".into()), tracestate: Some("k=v".into()) };
        let event = event(json!({})).unwrap().with_trace(trace);
        assert_eq!(*event.trace(), TraceContext { traceparent: None, tracestate: Some("k=v".into()) });
    }
}
