//! A row of the stream as far as it could be decoded.

use std::borrow::Cow;
use std::fmt;

use outbox::Position;
use rdkafka::message::OwnedHeaders;

use crate::error::{ErrorKind, RelayError, excerpt};
use crate::event::poison::Poison;
use crate::event::row::{EventId, OutboxRow, PartialRow};

/// A row as it came: the record it would be, or why it can be none wherever it goes.
pub enum DecodedRow<'a> {
    /// It can be a record.
    Valid(OutboxRow<'a>, OwnedHeaders),
    /// It cannot.
    Invalid(PartialRow<'a>, Poison),
}

impl<'a> DecodedRow<'a> {
    /// Event id.
    pub fn id(&self) -> Option<&EventId<'_>> {
        match self {
            DecodedRow::Valid(row, _) => Some(&row.id),
            DecodedRow::Invalid(row, _) => row.id.as_ref(),
        }
    }

    /// Value of the column that selects the topic.
    pub fn routing_value(&self) -> Option<&'a str> {
        match self {
            DecodedRow::Valid(row, _) => row.route_by,
            DecodedRow::Invalid(row, _) => row.route_by,
        }
    }

    /// What the partition is chosen by: the key, or what stands in for it.
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

    /// Whether its record has a key.
    pub fn has_key(&self) -> bool {
        match self {
            DecodedRow::Valid(row, _) => row.key.is_some(),
            DecodedRow::Invalid(row, _) => row.key.is_some(),
        }
    }

    /// Why it can be no record.
    pub fn error(&self) -> Option<&Poison> {
        match self {
            DecodedRow::Valid(..) => None,
            DecodedRow::Invalid(_, poison) => Some(poison),
        }
    }

    /// The trouble it is where poison stops delivery.
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
