//! Dead letters as they are read back from their topic. All calls block.

use std::ops::ControlFlow;

use chrono::{DateTime, SecondsFormat, Utc};
use outbox::header;
use rdkafka::message::{BorrowedMessage, Headers, Message};
use serde_json::{Value, json};

use crate::config::Sink;
use crate::event::owned_row::OwnedRow;
use crate::kafka::topic_reader::{ReadError, TopicReader, failed};
use crate::progress::offset::Offset;
use crate::topics::partitions::PartitionNumber;

/// Longest excerpt of a key or an error on a line for people.
const MAX_SHOWN_CHARS: usize = 120;

/// A record of a dead-letter topic.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DeadLetter {
    pub partition: PartitionNumber,
    pub offset: Offset,
    /// Kafka timestamp, in milliseconds since 1970.
    pub timestamp: Option<i64>,
    /// `ce_source`: the outbox the row came from.
    pub source: Option<String>,
    pub position: Option<String>,
    /// Why it is a dead letter: the label of a `PoisonKind`.
    pub reason: String,
    /// The error as a sentence.
    pub error: Option<String>,
    /// The topic the row was routed to.
    pub topic: Option<String>,
    pub omitted: Option<String>,
    /// The row, without the omitted columns.
    pub row: OwnedRow,
}

impl DeadLetter {
    /// `None` for a record that is not a dead letter.
    fn of(message: &BorrowedMessage<'_>) -> Option<DeadLetter> {
        let mut letter = DeadLetter {
            partition: PartitionNumber(message.partition()),
            offset: Offset(message.offset()),
            timestamp: message.timestamp().to_millis(),
            ..DeadLetter::default()
        };
        let row = &mut letter.row;
        row.key = message.key().map(<[u8]>::to_vec);
        row.payload = message.payload().map(<[u8]>::to_vec);
        let mut reason = None;
        for header in message.headers()?.iter() {
            let Some(value) = header.value else { continue };
            let text = || Some(String::from_utf8_lossy(value).into_owned());
            match header.key {
                header::CE_SOURCE => letter.source = text(),
                header::CE_ID => row.id = text(),
                header::CE_TYPE => row.event_type = text(),
                header::CE_TIME => row.time = text(),
                header::CE_SEQUENCE => letter.position = text(),
                header::CE_SUBJECT => row.subject = text(),
                header::CE_DATA_SCHEMA => row.data_schema = text(),
                header::CE_TRACEPARENT => row.traceparent = text(),
                header::CE_TRACESTATE => row.tracestate = text(),
                header::CONTENT_TYPE => row.content_type = text(),
                header::DEAD_LETTER_REASON => reason = text(),
                header::DEAD_LETTER_ERROR => letter.error = text(),
                header::DEAD_LETTER_TOPIC => letter.topic = text(),
                header::DEAD_LETTER_ROUTE => row.route = text(),
                header::DEAD_LETTER_OMITTED => letter.omitted = text(),
                header::DEAD_LETTER_HEADERS => row.headers = Some(value.to_vec()),
                _ => {}
            }
        }
        Some(DeadLetter { reason: reason?, ..letter })
    }

    /// For machines: everything but the payload.
    pub fn json(&self) -> Value {
        json!({
            "partition": self.partition,
            "offset": self.offset,
            "time": self.written_at(),
            "source": self.source,
            "id": self.row.id,
            "type": self.row.event_type,
            "position": self.position,
            "reason": self.reason,
            "error": self.error,
            "topic": self.topic,
            "route": self.row.route,
            "omitted": self.omitted,
            "key": self.row.key.as_ref().map(|key| String::from_utf8_lossy(key).into_owned()),
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
            self.row.key.as_ref().map_or_else(|| "-".into(), |key| shown(&String::from_utf8_lossy(key))),
            text(&self.row.id),
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

    pub fn topics(&self) -> &TopicReader {
        &self.reader
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
            position: Some("00000001-0000000000000010-0000000000000003".into()),
            timestamp: Some(0),
            reason: "unroutable".into(),
            error: Some("x".repeat(500)),
            row: OwnedRow {
                id: Some("e-1".into()),
                key: Some(b"k\n1".to_vec()),
                payload: Some(b"secret".to_vec()),
                ..OwnedRow::default()
            },
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
}
