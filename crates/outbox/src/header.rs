//! Kafka header names: the CloudEvents 1.0 Kafka protocol binding, binary content mode; and those of dead letters.

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
/// Why the record was delivered from the table instead of the stream: `SlotLost` or `SlotAhead`. Only on records of a
/// refill.
pub const CE_REFILL: &str = "ce_refill";
/// The name of the replay that sent a row's event again. Such a record has no `ce_sequence`.
pub const CE_REPLAY: &str = "ce_replay";
/// What the event is about, where the table has a column for it.
pub const CE_SUBJECT: &str = "ce_subject";
/// URI of the schema of the record's value, where the table has a column for it.
pub const CE_DATA_SCHEMA: &str = "ce_dataschema";
/// Trace context at the time of writing, under the name that instrumentation of consumers reads.
pub const TRACEPARENT: &str = "traceparent";
/// Vendor part of the trace context.
pub const TRACESTATE: &str = "tracestate";
/// Trace context at the time of writing, as in CloudEvents' extension for distributed tracing.
pub const CE_TRACEPARENT: &str = "ce_traceparent";
/// Vendor part of the trace context.
pub const CE_TRACESTATE: &str = "ce_tracestate";
/// Media type of the record's value. The Kafka binding maps it to this header, without the prefix `ce_`.
pub const CONTENT_TYPE: &str = "content-type";

/// Why the event is a dead letter: one word of a fixed list, for machines.
pub const DEAD_LETTER_REASON: &str = "dead_letter_reason";
/// The reason as a sentence, truncated if it is long.
pub const DEAD_LETTER_ERROR: &str = "dead_letter_error";
/// The topic the event was routed to; absent when it has none.
pub const DEAD_LETTER_TOPIC: &str = "dead_letter_topic";
/// Value of the column that selects the topic; absent when it is NULL.
pub const DEAD_LETTER_ROUTE: &str = "dead_letter_route";
/// Column `headers` as unchanged JSON text: the error may be in it.
pub const DEAD_LETTER_HEADERS: &str = "dead_letter_headers";
/// Columns that did not fit or could not be read, separated by commas. The row has them: find it with
/// [`DEAD_LETTER_TABLE`], `ce_id` and `ce_sequence`.
pub const DEAD_LETTER_OMITTED: &str = "dead_letter_omitted";
/// The table that has the row, as `schema.table`; present when a column was omitted.
pub const DEAD_LETTER_TABLE: &str = "dead_letter_table";
/// `true` on a replayed dead letter. It has no `ce_sequence`.
pub const DEAD_LETTER_REPLAYED: &str = "dead_letter_replayed";

/// The CloudEvents version these headers follow.
pub const SPEC_VERSION: &str = "1.0";

/// Whether `name` is reserved for the relay. A row's own headers must not use these names, in upper or lower case:
/// consumers may ignore case. [`CONTENT_TYPE`] is the relay's where the payload is JSON, and trace context where the
/// row has columns for it.
pub fn is_reserved(name: &str) -> bool {
    let begins =
        |prefix: &str| name.get(..prefix.len()).is_some_and(|start| start.eq_ignore_ascii_case(prefix));
    begins("ce_") || begins("dead_letter_")
}
