//! A row of the stream, decoded completely or in part.

use std::borrow::Cow;
use std::fmt;

use outbox::Position;
use rdkafka::message::OwnedHeaders;

use crate::error::{ErrorKind, RelayError, excerpt};
use crate::event::poison::Poison;
use crate::event::row::{EventId, OutboxRow, PartialRow};

/// A decoded row: with its headers if it can become a record, with the error if it cannot.
pub enum DecodedRow<'a> {
    Valid(OutboxRow<'a>, OwnedHeaders),
    Invalid(PartialRow<'a>, Poison),
}

impl<'a> DecodedRow<'a> {
    pub fn id(&self) -> Option<&EventId<'_>> {
        match self {
            DecodedRow::Valid(row, _) => Some(&row.id),
            DecodedRow::Invalid(row, _) => row.id.as_ref(),
        }
    }

    pub fn routing_value(&self) -> Option<&'a str> {
        match self {
            DecodedRow::Valid(row, _) => row.route_by,
            DecodedRow::Invalid(row, _) => row.route_by,
        }
    }

    /// The bytes that choose the partition: the key, or without a key the event id or the position.
    pub fn partition_key(&self, position: Position) -> Cow<'_, [u8]> {
        let key = match self {
            DecodedRow::Valid(row, _) => row.key.as_deref(),
            DecodedRow::Invalid(row, _) => row.key.as_deref(),
        };
        match (key, self.id()) {
            (Some(key), _) => Cow::Borrowed(key),
            (None, Some(id)) => Cow::Borrowed(id.as_bytes()),
            (None, None) => Cow::Owned(position.encode().to_vec()),
        }
    }

    pub fn has_key(&self) -> bool {
        match self {
            DecodedRow::Valid(row, _) => row.key.is_some(),
            DecodedRow::Invalid(row, _) => row.key.is_some(),
        }
    }

    /// Why it cannot become a record.
    pub fn error(&self) -> Option<&Poison> {
        match self {
            DecodedRow::Valid(..) => None,
            DecodedRow::Invalid(_, poison) => Some(poison),
        }
    }

    /// The error that stops delivery when poison rows are not dead-lettered.
    pub fn poison_error(&self, error: impl fmt::Display, position: Position) -> RelayError {
        let what = match self.id() {
            Some(id) => {
                let id = excerpt(&String::from_utf8_lossy(id.as_bytes()));
                format!("event {id} at {position}: {error}")
            }
            None => format!("the row at {position}: {error}"),
        };
        RelayError::new(ErrorKind::PoisonRow, what).at(position)
    }
}
