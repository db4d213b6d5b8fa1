//! Dead letters as they are read back from their topic. All calls block.

use std::borrow::Cow;
use std::ops::ControlFlow;

use chrono::{DateTime, SecondsFormat, Utc};
use outbox::{column, header};
use pg_replication::PgTime;
use rdkafka::message::{BorrowedMessage, Headers, Message};
use serde_json::{Value, json};

use crate::config::Sink;
use crate::event::row::{Attributes, EventId, OutboxRow, RowError};
use crate::event::value::checked;
use crate::kafka::topic_reader::{ReadError, TopicReader, failed};
use crate::progress::offset::Offset;
use crate::topics::partitions::PartitionNumber;

/// Longest excerpt of a key or an error on a line for people.
const MAX_SHOWN_CHARS: usize = 120;

/// A record of a dead-letter topic.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DeadLetter {
    /// Partition of the dead-letter topic.
    pub partition: PartitionNumber,
    /// Offset in that partition.
    pub offset: Offset,
    /// Kafka timestamp, in milliseconds since 1970.
    pub timestamp: Option<i64>,
    /// `ce_source`: the outbox the row came from.
    pub source: Option<String>,
    pub id: Option<String>,
    pub event_type: Option<String>,
    /// Time of writing, RFC 3339.
    pub time: Option<String>,
    pub position: Option<String>,
    /// Why it is a dead letter: the label of a `PoisonKind`.
    pub reason: String,
    /// The error as a sentence.
    pub error: Option<String>,
    /// The topic the row was routed to.
    pub topic: Option<String>,
    /// Value of the column that selects the topic.
    pub route: Option<String>,
    /// Columns that were omitted.
    pub omitted: Option<String>,
    /// Media type of the payload.
    pub content_type: Option<String>,
    pub subject: Option<String>,
    /// URI of the payload's schema.
    pub data_schema: Option<String>,
    pub traceparent: Option<String>,
    pub tracestate: Option<String>,
    pub key: Option<Vec<u8>>,
    /// Column `headers` as JSON text.
    pub headers: Option<Vec<u8>>,
    pub payload: Option<Vec<u8>>,
}

impl DeadLetter {
    /// `None` for a record that is not a dead letter.
    fn of(message: &BorrowedMessage<'_>) -> Option<DeadLetter> {
        let mut letter = DeadLetter {
            partition: PartitionNumber(message.partition()),
            offset: Offset(message.offset()),
            timestamp: message.timestamp().to_millis(),
            key: message.key().map(<[u8]>::to_vec),
            payload: message.payload().map(<[u8]>::to_vec),
            ..DeadLetter::default()
        };
        let mut reason = None;
        for header in message.headers()?.iter() {
            let Some(value) = header.value else { continue };
            let text = || Some(String::from_utf8_lossy(value).into_owned());
            match header.key {
                header::CE_SOURCE => letter.source = text(),
                header::CE_ID => letter.id = text(),
                header::CE_TYPE => letter.event_type = text(),
                header::CE_TIME => letter.time = text(),
                header::CE_SEQUENCE => letter.position = text(),
                header::CE_SUBJECT => letter.subject = text(),
                header::CE_DATA_SCHEMA => letter.data_schema = text(),
                header::CE_TRACEPARENT => letter.traceparent = text(),
                header::CE_TRACESTATE => letter.tracestate = text(),
                header::CONTENT_TYPE => letter.content_type = text(),
                header::DEAD_LETTER_REASON => reason = text(),
                header::DEAD_LETTER_ERROR => letter.error = text(),
                header::DEAD_LETTER_TOPIC => letter.topic = text(),
                header::DEAD_LETTER_ROUTE => letter.route = text(),
                header::DEAD_LETTER_OMITTED => letter.omitted = text(),
                header::DEAD_LETTER_HEADERS => letter.headers = Some(value.to_vec()),
                _ => {}
            }
        }
        Some(DeadLetter { reason: reason?, ..letter })
    }

    /// The row, if no column was omitted.
    pub fn row<'a>(&'a self) -> Result<OutboxRow<'a>, RowError> {
        let attribute = |text: &'a Option<String>, column: &'static str| {
            text.as_deref().map(|text| checked(text, column)).transpose()
        };
        let id = attribute(&self.id, column::ID)?.ok_or(RowError::Null(column::ID))?;
        Ok(OutboxRow {
            id: EventId::Text(id.as_bytes()),
            key: self.key.as_deref().map(Cow::Borrowed),
            event_type: attribute(&self.event_type, column::TYPE)?.ok_or(RowError::Null(column::TYPE))?,
            route_by: self.route.as_deref(),
            payload: self.payload.as_deref().map(Into::into),
            headers: self.headers.as_deref(),
            attributes: Attributes {
                content_type: attribute(&self.content_type, column::DATA_CONTENT_TYPE)?,
                subject: attribute(&self.subject, column::SUBJECT)?,
                data_schema: attribute(&self.data_schema, column::DATA_SCHEMA)?,
                traceparent: attribute(&self.traceparent, column::TRACEPARENT)?,
                tracestate: attribute(&self.tracestate, column::TRACESTATE)?,
            },
            occurred_at: self.occurred_at(),
        })
    }

    fn occurred_at(&self) -> Option<PgTime> {
        let time = DateTime::parse_from_rfc3339(self.time.as_deref()?).ok()?;
        let epoch = PgTime::default().unix_micros();
        Some(PgTime::from_micros(time.timestamp_micros().checked_sub(epoch)?))
    }

    /// For machines: everything but the payload.
    pub fn json(&self) -> Value {
        json!({
            "partition": self.partition,
            "offset": self.offset,
            "time": self.written_at(),
            "source": self.source,
            "id": self.id,
            "type": self.event_type,
            "position": self.position,
            "reason": self.reason,
            "error": self.error,
            "topic": self.topic,
            "route": self.route,
            "omitted": self.omitted,
            "key": self.key.as_ref().map(|key| String::from_utf8_lossy(key).into_owned()),
        })
    }

    /// One line for people: position, time, reason, what.
    pub fn line(&self) -> String {
        let text = |value: &Option<String>| value.as_deref().map_or_else(|| "-".into(), shown);
        format!(
            "{} {} {} topic={} key={} id={} {}",
            text(&self.position),
            text(&self.written_at()),
            self.reason,
            text(&self.topic),
            self.key.as_ref().map_or_else(|| "-".into(), |key| shown(&String::from_utf8_lossy(key))),
            text(&self.id),
            text(&self.error),
        )
    }

    fn written_at(&self) -> Option<String> {
        let time = DateTime::from_timestamp_millis(self.timestamp?)?;
        Some(time.to_rfc3339_opts(SecondsFormat::Millis, true))
    }
}

/// Escaped, so that it stays on one line, and cut to a length that fits.
fn shown(text: &str) -> String {
    let mut shown: String = text.escape_debug().take(MAX_SHOWN_CHARS).collect();
    if text.escape_debug().nth(MAX_SHOWN_CHARS).is_some() {
        shown.push('…');
    }
    shown
}

/// Reads a dead-letter topic.
pub struct Reader {
    reader: TopicReader,
    topic: String,
}

impl Reader {
    /// Does not connect yet.
    pub fn new(sink: &Sink, topic: &str) -> Result<Reader, ReadError> {
        let reader = TopicReader::new(sink, "dead-letters").map_err(failed(topic))?;
        Ok(Reader { reader, topic: topic.to_owned() })
    }

    /// Partitions of a topic; 0 if it does not exist.
    pub fn partitions(&self, topic: &str) -> Result<i32, ReadError> {
        self.reader.partitions(topic)
    }

    /// Passes every dead letter now in the topic to `take`, partition by partition, until it breaks. With `since`, only
    /// those written at that time or later.
    pub fn read(
        &self,
        since: Option<DateTime<Utc>>,
        mut take: impl FnMut(DeadLetter) -> ControlFlow<()>,
    ) -> Result<(), ReadError> {
        let letter = |message: &BorrowedMessage<'_>| {
            DeadLetter::of(message).map_or(ControlFlow::Continue(()), &mut take)
        };
        self.reader.read(&self.topic, since, letter)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn letter() -> DeadLetter {
        DeadLetter {
            id: Some("e-1".into()),
            key: Some(b"k\n1".to_vec()),
            position: Some("00000001-0000000000000010-0000000000000003".into()),
            timestamp: Some(0),
            reason: "unroutable".into(),
            error: Some("x".repeat(500)),
            payload: Some(b"secret".to_vec()),
            ..DeadLetter::default()
        }
    }

    #[test]
    fn a_line_is_one_line_and_shows_no_payload() {
        let line = letter().line();
        let expected = "00000001-0000000000000010-0000000000000003 1970-01-01T00:00:00.000Z unroutable topic=- \
                        key=k\\n1 id=e-1 xxx";
        assert!(line.starts_with(expected), "{line}");
        assert!(line.ends_with("xx…") && !line.contains("secret") && !line.contains('\n'), "{line}");
        assert!(!letter().json().to_string().contains("secret"));
    }

    #[test]
    fn a_row_is_read_back_with_the_time_it_was_written_at() {
        let time = PgTime::from_micros(123_456);
        let written = Some(crate::event::record::rfc3339(time));
        let letter = DeadLetter { time: written, event_type: Some("t".into()), ..letter() };
        assert_eq!(letter.row().unwrap().occurred_at, Some(time));
        let without = DeadLetter { id: None, ..letter };
        assert_eq!(without.row().map(drop), Err(RowError::Null("id")));
    }
}
