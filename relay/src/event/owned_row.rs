//! A row with its values, instead of references to a message of the stream: what a replay sends.

use std::borrow::Cow;

use chrono::DateTime;
use outbox::column;
use pg_replication::PgTime;

use super::row::{Attributes, EventId, OutboxRow, RowError};
use super::value::checked;

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct OwnedRow {
    pub id: Option<String>,
    pub event_type: Option<String>,
    /// Time of writing, RFC 3339.
    pub time: Option<String>,
    /// Value of the column that selects the topic.
    pub route: Option<String>,
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

impl OwnedRow {
    /// The row, if its values are valid.
    pub fn as_row<'a>(&'a self) -> Result<OutboxRow<'a>, RowError> {
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
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::record::rfc3339;

    #[test]
    fn a_row_is_read_back_with_the_time_it_was_written_at() {
        let time = PgTime::from_micros(123_456);
        let row = OwnedRow {
            id: Some("e-1".into()),
            time: Some(rfc3339(time)),
            event_type: Some("t".into()),
            ..OwnedRow::default()
        };
        assert_eq!(row.as_row().unwrap().occurred_at, Some(time));
        let without = OwnedRow { id: None, ..row };
        assert_eq!(without.as_row().map(drop), Err(RowError::Null("id")));
    }
}
