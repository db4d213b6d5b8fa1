//! Encodes a row as a Kafka record: CloudEvents 1.0, Kafka protocol binding, binary content mode.

use std::borrow::Cow;

use chrono::{DateTime, SecondsFormat, Utc};
use outbox::{Position, attribute, header};
use pg_replication::PgTime;
use rdkafka::message::{Header, OwnedHeaders};
use serde_json::Value;

use crate::error::{RefillCause, excerpt};
use crate::event::dead_letter::DeadLetterSummary;
use crate::event::row::{Attributes, JSON_MEDIA_TYPE, OutboxRow, PartialRow};

/// Headers of a typical record, with a few of the row's own: one allocation instead of four.
const USUAL_HEADERS: usize = 12;

/// Roughly the bytes librdkafka and the broker add to a record beyond the row's values: framing, the names of the
/// headers below, and values of fixed length. Used only to reject a record that cannot fit.
const RECORD_OVERHEAD_BYTES: usize = 512;

/// Why a row cannot become a record.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RecordError {
    #[error("column 'headers' is not a flat JSON object of strings")]
    Headers,
    #[error("column 'headers' sets '{0}', which the relay sets itself")]
    ReservedHeader(String),
    #[error("column 'headers' sets a content-type that is not a media type, or is application/cloudevents")]
    ContentType,
}

/// Why an event is sent. A replayed event has no position.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Provenance<'a> {
    /// Its row is delivered, perhaps by a refill with this cause.
    Row { position: Position, refill: Option<RefillCause> },
    /// Its dead letter is sent again.
    DeadLetter,
    /// Its row is sent again, by the replay of this name.
    Replay(&'a str),
}

/// Builds the records of one outbox.
#[derive(Debug)]
pub struct RecordEncoder {
    /// `ce_source`.
    pub source: String,
}

impl RecordEncoder {
    /// The approximate size of a row's record in bytes, never too low: the row's own headers count with the size of
    /// their JSON.
    pub fn size(&self, row: &OutboxRow<'_>) -> usize {
        let body = len(row.payload.as_deref()) + len(row.key.as_deref()) + len(row.headers);
        let texts = row.id.as_bytes().len() + row.event_type.len() + size_of(&row.attributes);
        body + texts + self.source.len() + RECORD_OVERHEAD_BYTES
    }

    /// The same for a row with omitted values.
    pub fn size_with_left_out(&self, row: &PartialRow<'_>) -> usize {
        let body = len(row.payload.as_deref()) + len(row.key.as_deref()) + len(row.headers);
        let id = row.id.as_ref().map_or(0, |id| id.as_bytes().len());
        let texts = id + len(row.event_type) + size_of(&row.attributes);
        body + texts + row.omitted_bytes + self.source.len() + RECORD_OVERHEAD_BYTES
    }

    /// The record's headers in a fixed order, the row's own last.
    pub fn headers(
        &self,
        row: &OutboxRow<'_>,
        provenance: Provenance<'_>,
        time: PgTime,
    ) -> Result<OwnedHeaders, RecordError> {
        let time = rfc3339(time);
        let mut headers = OwnedHeaders::new_with_capacity(USUAL_HEADERS)
            .insert(bytes(header::CE_SPECVERSION, header::SPEC_VERSION.as_bytes()))
            .insert(bytes(header::CE_ID, row.id.as_bytes()))
            .insert(bytes(header::CE_SOURCE, self.source.as_bytes()))
            .insert(bytes(header::CE_TYPE, row.event_type.as_bytes()))
            .insert(bytes(header::CE_TIME, time.as_bytes()));
        headers = match provenance {
            Provenance::Row { position, .. } => {
                headers.insert(bytes(header::CE_SEQUENCE, &position.encode()))
            }
            Provenance::DeadLetter => headers.insert(bytes(header::DEAD_LETTER_REPLAYED, b"true")),
            Provenance::Replay(name) => headers.insert(bytes(header::CE_REPLAY, name.as_bytes())),
        };
        if let Provenance::Row { refill: Some(cause), .. } = provenance {
            headers = headers.insert(bytes(header::CE_REFILL, cause.name().as_bytes()));
        }
        let Attributes { content_type, subject, data_schema, traceparent, tracestate } = row.attributes;
        for (name, value) in [
            (header::CONTENT_TYPE, content_type),
            (header::CE_SUBJECT, subject),
            (header::CE_DATA_SCHEMA, data_schema),
            (header::TRACEPARENT, traceparent),
            (header::TRACESTATE, tracestate),
            (header::CE_TRACEPARENT, traceparent),
            (header::CE_TRACESTATE, tracestate),
        ] {
            if let Some(value) = value {
                headers = headers.insert(bytes(name, value.as_bytes()));
            }
        }
        match row.headers {
            None => Ok(headers),
            Some(json) => with_own_headers(headers, json, &row.attributes),
        }
    }
}

/// A record that is ready to be sent to a partition.
#[derive(Debug)]
pub struct Prepared<'a> {
    pub key: Option<Cow<'a, [u8]>>,
    /// `None` is a tombstone.
    pub value: Option<Cow<'a, [u8]>>,
    pub headers: OwnedHeaders,
    /// Approximate size of the record.
    pub bytes: usize,
    /// The event's time, which becomes the Kafka timestamp.
    pub time: PgTime,
    /// Set for a dead letter.
    pub dead: Option<DeadLetterSummary>,
}

impl<'a> Prepared<'a> {
    pub fn event(row: OutboxRow<'a>, headers: OwnedHeaders, bytes: usize, time: PgTime) -> Prepared<'a> {
        Prepared { key: row.key, value: row.payload, headers, bytes, time, dead: None }
    }

    /// A copy that does not borrow from the message the row arrived in.
    pub fn into_owned(self) -> Prepared<'static> {
        let Prepared { key, value, headers, bytes, time, dead } = self;
        let owned = |part: Option<Cow<'a, [u8]>>| part.map(|part| Cow::Owned(part.into_owned()));
        Prepared { key: owned(key), value: owned(value), headers, bytes, time, dead }
    }
}

/// Trace context is sent under two names; the media type of JSON is part of the overhead.
fn size_of(attributes: &Attributes<'_>) -> usize {
    let Attributes { content_type, subject, data_schema, traceparent, tracestate } = *attributes;
    let content_type = content_type.filter(|media_type| *media_type != JSON_MEDIA_TYPE);
    len(content_type) + len(subject) + len(data_schema) + 2 * (len(traceparent) + len(tracestate))
}

fn len(value: Option<impl AsRef<[u8]>>) -> usize {
    value.map_or(0, |value| value.as_ref().len())
}

fn bytes<'a>(key: &'a str, value: &'a [u8]) -> Header<'a, &'a [u8]> {
    Header { key, value: Some(value) }
}

fn with_own_headers(
    mut headers: OwnedHeaders,
    json: &[u8],
    attributes: &Attributes<'_>,
) -> Result<OwnedHeaders, RecordError> {
    let Ok(Value::Object(own)) = serde_json::from_slice(json) else { return Err(RecordError::Headers) };
    for (name, value) in &own {
        let Value::String(value) = value else { return Err(RecordError::Headers) };
        if header::is_reserved(name) || is_set(name, attributes) {
            return Err(RecordError::ReservedHeader(excerpt(name)));
        }
        if name.is_empty() || name.contains('\0') {
            return Err(RecordError::Headers);
        }
        let is_content_type = name.eq_ignore_ascii_case(header::CONTENT_TYPE);
        if is_content_type && !attribute::is_content_type(value) {
            return Err(RecordError::ContentType);
        }
        let name = if is_content_type { header::CONTENT_TYPE } else { name };
        headers = headers.insert(bytes(name, value.as_bytes()));
    }
    Ok(headers)
}

/// Whether a column of the row already sets this header.
fn is_set(name: &str, attributes: &Attributes<'_>) -> bool {
    [
        (header::CONTENT_TYPE, attributes.content_type),
        (header::TRACEPARENT, attributes.traceparent),
        (header::TRACESTATE, attributes.tracestate),
    ]
    .iter()
    .any(|(own, value)| value.is_some() && name.eq_ignore_ascii_case(own))
}

/// A time in the format of `ce_time`.
pub fn rfc3339(time: PgTime) -> String {
    ce_time(DateTime::from_timestamp_micros(time.unix_micros()).unwrap_or(DateTime::UNIX_EPOCH))
}

/// The same, of a time that SQL returned.
pub fn ce_time(time: DateTime<Utc>) -> String {
    time.to_rfc3339_opts(SecondsFormat::Micros, true)
}

#[cfg(test)]
mod tests {
    use rdkafka::message::Headers;

    use super::*;
    use crate::event::row::EventId;

    const POSITION: Position = Position { timeline: 1, commit_lsn: 0x10, index: 0 };
    const ROW: Provenance<'_> = Provenance::Row { position: POSITION, refill: None };

    fn row(headers: Option<&'static str>) -> OutboxRow<'static> {
        OutboxRow {
            id: EventId::Text(b"e-1"),
            key: Some(Cow::Borrowed(b"b-1")),
            event_type: "basket.created.v1",
            route_by: Some("basket"),
            payload: Some(Cow::Borrowed(b"{}")),
            headers: headers.map(str::as_bytes),
            attributes: Attributes {
                content_type: Some("application/json"),
                traceparent: Some("00-trace"),
                ..Attributes::default()
            },
            occurred_at: Some(PgTime::default()),
        }
    }

    fn encoder() -> RecordEncoder {
        RecordEncoder { source: "/shop/public.outbox".into() }
    }

    #[test]
    fn headers_are_the_cloudevents_kafka_binding() {
        let headers = encoder().headers(&row(Some(r#"{"tenant":"a"}"#)), ROW, PgTime::default()).unwrap();
        let shown: Vec<(String, String)> = headers
            .iter()
            .map(|header| (header.key.into(), String::from_utf8(header.value.unwrap().to_vec()).unwrap()))
            .collect();
        let expected = [
            ("ce_specversion", "1.0"),
            ("ce_id", "e-1"),
            ("ce_source", "/shop/public.outbox"),
            ("ce_type", "basket.created.v1"),
            ("ce_time", "2000-01-01T00:00:00.000000Z"),
            ("ce_sequence", "00000001-0000000000000010-0000000000000000"),
            ("content-type", "application/json"),
            ("traceparent", "00-trace"),
            ("ce_traceparent", "00-trace"),
            ("tenant", "a"),
        ];
        let expected: Vec<(String, String)> =
            expected.iter().map(|(k, v)| ((*k).into(), (*v).into())).collect();
        assert_eq!(shown, expected);
    }

    #[test]
    fn a_refilled_record_says_so_and_a_replayed_event_says_that_instead() {
        let shown = |provenance| {
            let headers = encoder().headers(&row(None), provenance, PgTime::default()).unwrap();
            let names = ["ce_sequence", "ce_refill", "dead_letter_replayed", "ce_replay"];
            let shown = headers.iter().filter(|header| names.contains(&header.key));
            shown.map(|header| header.key.to_owned()).collect::<Vec<_>>()
        };
        let refilled = Provenance::Row { position: POSITION, refill: Some(RefillCause::SlotLost) };
        assert_eq!(shown(ROW), ["ce_sequence"]);
        assert_eq!(shown(refilled), ["ce_sequence", "ce_refill"]);
        assert_eq!(shown(Provenance::DeadLetter), ["dead_letter_replayed"]);
        assert_eq!(shown(Provenance::Replay("october")), ["ce_replay"]);
    }

    #[test]
    fn headers_that_would_mislead_a_consumer_are_rejected() {
        let headers = |json| encoder().headers(&row(Some(json)), ROW, PgTime::default()).map(drop);
        for name in ["ce_id", "CE_ID", "dead_letter_reason", "content-type", "Content-Type", "traceparent"] {
            let json: &'static str = format!(r#"{{"{name}":"mine"}}"#).leak();
            assert_eq!(headers(json), Err(RecordError::ReservedHeader(name.into())));
        }
        assert_eq!(headers(r#"{"a":{"b":1}}"#), Err(RecordError::Headers));
        assert_eq!(headers("[1]"), Err(RecordError::Headers));
    }

    #[test]
    fn the_writer_sets_the_content_type_of_a_payload_that_is_not_json() {
        let row = |json| OutboxRow { attributes: Attributes::default(), ..row(Some(json)) };
        let headers = |json| encoder().headers(&row(json), ROW, PgTime::default());
        let own = headers(r#"{"Content-Type":"application/avro","traceparent":"t"}"#).unwrap();
        let own: Vec<_> = own.iter().skip(6).map(|header| (header.key, header.value.unwrap())).collect();
        assert_eq!(own, [("content-type", &b"application/avro"[..]), ("traceparent", b"t")]);
        for value in ["avro", "application/cloudevents+json"] {
            let json: &'static str = format!(r#"{{"content-type":"{value}"}}"#).leak();
            assert_eq!(headers(json).map(drop), Err(RecordError::ContentType));
        }
    }

    #[test]
    fn the_size_of_a_record_is_never_underestimated() {
        let long = "x".repeat(300);
        let own = Some(r#"{"tenant":"a","b":"c"}"#);
        let text = Some(long.as_str());
        let attributes = Attributes {
            content_type: text,
            subject: text,
            data_schema: text,
            traceparent: text,
            tracestate: text,
        };
        let row = OutboxRow { event_type: &long, attributes, ..row(own) };
        let headers = encoder().headers(&row, ROW, PgTime::default()).unwrap();
        let headers: usize = headers.iter().map(|h| h.key.len() + h.value.map_or(0, <[u8]>::len) + 4).sum();
        assert!(headers + "b-1".len() + "{}".len() < encoder().size(&row));
    }
}
