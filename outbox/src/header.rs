//! Kafka header names: the CloudEvents 1.0 Kafka protocol binding, binary content mode.

/// CloudEvents version, always [`SPEC_VERSION`].
pub const CE_SPECVERSION: &str = "ce_specversion";
/// Event id; consumers deduplicate on it.
pub const CE_ID: &str = "ce_id";
/// The outbox the event came from: a stable, configured name.
pub const CE_SOURCE: &str = "ce_source";
/// Event type.
pub const CE_TYPE: &str = "ce_type";
/// Time of writing, RFC 3339 in UTC.
pub const CE_TIME: &str = "ce_time";
/// The event's [`Position`](crate::Position) as text; sorts in commit order.
pub const CE_SEQUENCE: &str = "ce_sequence";
/// Trace context at the time of writing.
pub const CE_TRACEPARENT: &str = "ce_traceparent";
/// Vendor part of the trace context.
pub const CE_TRACESTATE: &str = "ce_tracestate";
/// Media type of the record's value. CloudEvents forbids a `ce_` form of it.
pub const CONTENT_TYPE: &str = "content-type";

/// The CloudEvents version these headers follow.
pub const SPEC_VERSION: &str = "1.0";

/// Whether `name` belongs to the relay. A row's own headers must not use these names.
pub fn is_reserved(name: &str) -> bool {
    name.starts_with("ce_") || name == CONTENT_TYPE
}
