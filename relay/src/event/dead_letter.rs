//! Dead letters: records that hold as much of a row as fits.

use std::fmt;
use std::sync::Arc;

use outbox::{Position, column, header};
use pg_replication::PgTime;
use rdkafka::message::{Header, OwnedHeaders};

use crate::error::RefillCause;
use crate::event::poison::{Poison, PoisonKind};
use crate::event::record::{Prepared, rfc3339};
use crate::event::row::{Attributes, PartialRow};

/// Longest error text in a record. An error may quote values of any length.
const MAX_ERROR_BYTES: usize = 1024;
/// Longest event id shown in `/status` and logs.
const MAX_SHOWN_ID_CHARS: usize = 64;
/// Longest topic shown, the limit of Kafka's topic names: a routed name need not be a valid one.
const MAX_SHOWN_TOPIC_CHARS: usize = 249;
/// Framing of record and batch, and room for the two headers that list what was omitted: the names of all columns, and
/// the table's name.
const OVERHEAD_BYTES: usize = 128 + 320;
/// Size of a header besides its name and value: two lengths.
const HEADER_OVERHEAD_BYTES: usize = 10;

/// Builds the dead letters of one outbox.
#[derive(Debug)]
pub struct DeadLetterEncoder {
    /// The table of the rows.
    pub table: String,
    /// `ce_source` of their events.
    pub source: String,
}

impl DeadLetterEncoder {
    /// The dead letter of a row, of at most `limit` bytes. Pure, like every encoder: a replay yields the same record.
    pub fn encode<'a>(
        &self,
        row: PartialRow<'a>,
        poison: Poison,
        position: Position,
        refill: Option<RefillCause>,
        time: PgTime,
        limit: usize,
    ) -> Prepared<'a> {
        let id = row.id.as_ref().map(|id| id.as_bytes());
        let Attributes { content_type, subject, data_schema, traceparent, tracestate } = row.attributes;
        let mut letter = SizedRecord::new(limit, &row.unreadable)
            .always(header::CE_SPECVERSION, header::SPEC_VERSION.as_bytes())
            .always(header::CE_SOURCE, self.source.as_bytes())
            .always(header::CE_SEQUENCE, &position.encode())
            .always(header::CE_TIME, rfc3339(time).as_bytes())
            .always(header::DEAD_LETTER_REASON, poison.kind.name().as_bytes())
            .refill(refill)
            .if_room(column::ID, header::CE_ID, id)
            .error(&poison.error)
            .if_room("topic", header::DEAD_LETTER_TOPIC, poison.topic.as_deref().map(str::as_bytes));
        let key = letter.body(column::AGGREGATE_ID, row.key, |key| key.len());
        letter = letter
            .if_room(column::TYPE, header::CE_TYPE, row.event_type.map(str::as_bytes))
            .if_room("route", header::DEAD_LETTER_ROUTE, row.route_by.map(str::as_bytes))
            .if_room(column::SUBJECT, header::CE_SUBJECT, subject.map(str::as_bytes))
            .if_room(column::DATA_SCHEMA, header::CE_DATA_SCHEMA, data_schema.map(str::as_bytes))
            .if_room(column::TRACEPARENT, header::CE_TRACEPARENT, traceparent.map(str::as_bytes))
            .if_room(column::TRACESTATE, header::CE_TRACESTATE, tracestate.map(str::as_bytes));
        let value = letter.body(column::PAYLOAD, row.payload, |payload| payload.len());
        if value.is_some() {
            letter = letter.if_room("content-type", header::CONTENT_TYPE, content_type.map(str::as_bytes));
        }
        letter = letter.if_room(column::HEADERS, header::DEAD_LETTER_HEADERS, row.headers);
        let summary = DeadLetterSummary {
            kind: poison.kind,
            id: id.map(|id| String::from_utf8_lossy(id).chars().take(MAX_SHOWN_ID_CHARS).collect()),
            position,
            topic: poison
                .topic
                .map(|topic| topic.chars().take(MAX_SHOWN_TOPIC_CHARS).collect::<String>().into()),
        };
        let bytes = limit.saturating_sub(letter.left);
        Prepared { key, value, headers: letter.finish(&self.table), bytes, time, dead: Some(summary) }
    }
}

/// What `/status` and the log show of a dead letter: no payload.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeadLetterSummary {
    pub kind: PoisonKind,
    /// The event's id, where it is known, cut to [`MAX_SHOWN_ID_CHARS`].
    pub id: Option<String>,
    pub position: Position,
    /// The topic the row was routed to.
    pub topic: Option<Arc<str>>,
}

impl fmt::Display for DeadLetterSummary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let id = self.id.as_deref().unwrap_or("without an id");
        write!(f, "event {id} at {} is a dead letter", self.position)?;
        match &self.topic {
            Some(topic) => write!(f, "; it was meant for topic {topic}"),
            None => Ok(()),
        }
    }
}

/// A record of limited size, filled in order of importance.
struct SizedRecord<'a> {
    headers: OwnedHeaders,
    left: usize,
    omitted: Vec<&'a str>,
}

impl<'a> SizedRecord<'a> {
    fn new(limit: usize, unreadable: &[&'a str]) -> SizedRecord<'a> {
        let left = limit.saturating_sub(OVERHEAD_BYTES);
        SizedRecord { headers: OwnedHeaders::new(), left, omitted: unreadable.to_vec() }
    }

    fn refill(self, cause: Option<RefillCause>) -> Self {
        match cause {
            Some(cause) => self.always(header::CE_REFILL, cause.name().as_bytes()),
            None => self,
        }
    }

    /// For short headers that are needed to find the record again.
    fn always(mut self, name: &str, value: &[u8]) -> Self {
        self.left = self.left.saturating_sub(size(name, value));
        self.headers = self.headers.insert(Header { key: name, value: Some(value) });
        self
    }

    fn if_room(mut self, column: &'a str, name: &str, value: Option<&[u8]>) -> Self {
        match value {
            Some(value) if size(name, value) <= self.left => self.always(name, value),
            Some(_) => {
                self.omitted.push(column);
                self
            }
            None => self,
        }
    }

    /// The error text is truncated, never omitted.
    fn error(self, text: &str) -> Self {
        let room = self.left.saturating_sub(header::DEAD_LETTER_ERROR.len() + HEADER_OVERHEAD_BYTES);
        let end = text.floor_char_boundary(room.min(MAX_ERROR_BYTES));
        let text = text.get(..end).unwrap_or_default();
        self.always(header::DEAD_LETTER_ERROR, text.as_bytes())
    }

    fn body<T>(&mut self, column: &'a str, value: Option<T>, len: impl Fn(&T) -> usize) -> Option<T> {
        let value = value?;
        let len = len(&value);
        if len > self.left {
            self.omitted.push(column);
            return None;
        }
        self.left -= len;
        Some(value)
    }

    fn finish(self, table: &str) -> OwnedHeaders {
        if self.omitted.is_empty() {
            return self.headers;
        }
        let omitted = self.omitted.join(",");
        self.always(header::DEAD_LETTER_OMITTED, omitted.as_bytes())
            .always(header::DEAD_LETTER_TABLE, table.as_bytes())
            .headers
    }
}

fn size(name: &str, value: &[u8]) -> usize {
    name.len() + value.len() + HEADER_OVERHEAD_BYTES
}

#[cfg(test)]
mod tests {
    use std::borrow::Cow;

    use proptest::prelude::*;
    use rdkafka::message::Headers;

    use super::*;
    use crate::event::poison::PoisonKind;
    use crate::event::row::EventId;

    const POSITION: Position = Position { timeline: 1, commit_lsn: 0x10, index: 3 };

    fn encoder() -> DeadLetterEncoder {
        DeadLetterEncoder { table: "public.outbox".into(), source: "/shop/public.outbox".into() }
    }

    fn poison(error: &str) -> Poison {
        Poison { kind: PoisonKind::TooLarge, error: error.into(), topic: Some("t".into()) }
    }

    fn header_of(prepared: &Prepared<'_>, name: &str) -> Option<String> {
        let found = prepared.headers.iter().find(|header| header.key == name)?;
        Some(String::from_utf8(found.value?.to_vec()).unwrap())
    }

    #[test]
    fn a_dead_letter_keeps_the_row_and_says_why() {
        let row = PartialRow {
            id: Some(EventId::Text(b"e-1")),
            key: Some(Cow::Borrowed(b"k")),
            event_type: Some("a.v1"),
            route_by: Some("a b"),
            payload: Some(Cow::Borrowed(b"{}")),
            headers: Some(br#"{"n":{}}"#),
            attributes: Attributes { content_type: Some("application/json"), ..Attributes::default() },
            ..PartialRow::default()
        };
        let letter = encoder().encode(row, poison("too large"), POSITION, None, PgTime::default(), 10_000);
        assert_eq!((letter.key.as_deref(), letter.value.as_deref()), (Some(&b"k"[..]), Some(&b"{}"[..])));
        for (name, value) in [
            ("ce_id", "e-1"),
            ("ce_source", "/shop/public.outbox"),
            ("ce_sequence", "00000001-0000000000000010-0000000000000003"),
            ("ce_type", "a.v1"),
            ("dead_letter_reason", "too_large"),
            ("dead_letter_error", "too large"),
            ("dead_letter_topic", "t"),
            ("dead_letter_route", "a b"),
            ("dead_letter_headers", r#"{"n":{}}"#),
            ("content-type", "application/json"),
        ] {
            assert_eq!(header_of(&letter, name).as_deref(), Some(value), "{name}");
        }
        assert_eq!(header_of(&letter, "dead_letter_omitted"), None);
    }

    #[test]
    fn a_payload_that_does_not_fit_is_omitted_and_the_table_named() {
        let row = PartialRow {
            id: Some(EventId::Text(b"e-1")),
            key: Some(Cow::Borrowed(b"k")),
            payload: Some(Cow::Owned(vec![b'x'; 2_000])),
            ..PartialRow::default()
        };
        let letter = encoder().encode(row, poison("e"), POSITION, None, PgTime::default(), 2_000);
        assert_eq!((letter.key.as_deref(), letter.value.as_deref()), (Some(&b"k"[..]), None));
        assert_eq!(header_of(&letter, "dead_letter_omitted").as_deref(), Some("payload"));
        assert_eq!(header_of(&letter, "dead_letter_table").as_deref(), Some("public.outbox"));
    }

    proptest! {
        #[test]
        fn a_dead_letter_always_fits(
            sizes in prop::array::uniform8(prop_oneof![0usize..40, 0usize..4_000]),
            max_bytes in 1_000usize..3_000,
        ) {
            let texts = sizes.map(|size| "ä".repeat(size));
            let [id, key, kind, route, payload, headers, trace, error] = &texts;
            let row = PartialRow {
                id: Some(EventId::Text(id.as_bytes())),
                key: Some(Cow::Borrowed(key.as_bytes())),
                event_type: Some(kind),
                route_by: Some(route),
                payload: Some(Cow::Borrowed(payload.as_bytes())),
                headers: Some(headers.as_bytes()),
                attributes: Attributes {
                    content_type: Some(trace),
                    subject: Some(trace),
                    data_schema: Some(trace),
                    traceparent: Some(trace),
                    tracestate: Some(trace),
                },
                occurred_at: None,
                unreadable: vec![column::HEADERS, column::PAYLOAD],
                omitted_bytes: 0,
            };
            let letter = encoder().encode(row, poison(error), POSITION, None, PgTime::default(), max_bytes);
            let headers: usize =
                letter.headers.iter().map(|h| size(h.key, h.value.unwrap_or_default())).sum();
            let body = letter.key.as_deref().map_or(0, <[u8]>::len) + letter.value.as_ref().map_or(0, |v| v.len());
            prop_assert!(headers + body + 128 <= max_bytes);
        }
    }
}
