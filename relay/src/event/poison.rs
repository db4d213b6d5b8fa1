//! Why a row cannot be delivered.

use std::fmt;
use std::sync::Arc;

use crate::event::record::RecordError;
use crate::event::row::RowError;

named! {
    /// Why a row cannot be delivered: the value of a metric label and of a record header.
    pub enum PoisonKind {
        /// The record would be larger than `sink.maxMessageBytes`.
        TooLarge = "too_large",
        /// The routing gives no topic.
        Unroutable = "unroutable",
        /// Column `headers` cannot be converted to Kafka headers.
        Headers = "headers",
        /// A required column is NULL, or a column has a value that cannot be read.
        Unreadable = "unreadable",
        /// The row has no key, and its topic is compacted.
        NoKey = "no_key",
        /// Kafka rejected the record.
        Refused = "refused",
        /// CloudEvents does not allow the value of a column for its attribute.
        Attribute = "attribute",
    }
}

/// Why a row cannot be delivered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Poison {
    pub kind: PoisonKind,
    /// One sentence for the on-call engineer.
    pub error: String,
    /// The topic the row was routed to, if any.
    pub topic: Option<Arc<str>>,
}

impl Poison {
    pub fn new(kind: PoisonKind, error: impl fmt::Display) -> Poison {
        Poison { kind, error: error.to_string(), topic: None }
    }

    /// For a row with a value larger than any record may be.
    pub fn oversized(bytes: usize, limit: usize) -> Poison {
        let error = format!("the record would have {bytes} bytes, but sink.maxMessageBytes is {limit}");
        Poison::new(PoisonKind::TooLarge, error)
    }
}

impl From<&RecordError> for Poison {
    fn from(error: &RecordError) -> Self {
        match error {
            RecordError::Headers | RecordError::ReservedHeader(_) | RecordError::ContentType => {
                Poison::new(PoisonKind::Headers, error)
            }
        }
    }
}

impl From<&RowError> for Poison {
    fn from(error: &RowError) -> Self {
        let kind = match error {
            RowError::Attribute { .. } => PoisonKind::Attribute,
            _ => PoisonKind::Unreadable,
        };
        Poison::new(kind, error)
    }
}
