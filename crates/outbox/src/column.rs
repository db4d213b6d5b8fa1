//! Column names of the outbox table. The first five are Debezium's, so that either reader fits the table.

/// Event id (`uuid`): the consumer's deduplication key.
pub const ID: &str = "id";
/// Kind of aggregate (`text`): routes to a topic.
pub const AGGREGATE_TYPE: &str = "aggregatetype";
/// Identity of the aggregate (`text`): the Kafka key.
pub const AGGREGATE_ID: &str = "aggregateid";
/// Event type with its version (`text`).
pub const TYPE: &str = "type";
/// The event itself (`jsonb`; `json`, `text` and `bytea` are read too).
pub const PAYLOAD: &str = "payload";
/// Extra Kafka headers (`jsonb`, nullable): a flat object of strings.
pub const HEADERS: &str = "headers";
/// W3C `traceparent` at the time of writing (`text`, nullable).
pub const TRACEPARENT: &str = "traceparent";
/// W3C `tracestate` at the time of writing (`text`, nullable).
pub const TRACESTATE: &str = "tracestate";
/// When the row was inserted (`timestamptz`), set by the database.
pub const OCCURRED_AT: &str = "occurred_at";
/// What within the aggregate the event is about (`text`, nullable, optional column).
pub const SUBJECT: &str = "subject";
/// URI of the payload's schema (`text`, nullable, optional column).
pub const DATA_SCHEMA: &str = "dataschema";
/// Media type of a payload that is text or bytes (`text`, nullable, optional column).
pub const DATA_CONTENT_TYPE: &str = "datacontenttype";
