//! Why a row cannot be delivered.

use std::fmt;
use std::sync::Arc;

use crate::event::record::RecordError;
use crate::event::row::RowError;

/// Why a row cannot be delivered: the value of a metric label and of a record header.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum PoisonKind {
    /// The record would be larger than `sink.maxMessageBytes`.
    TooLarge,
    /// The routing gives no topic.
    Unroutable,
    /// Column `headers` cannot be converted to Kafka headers.
    Headers,
    /// A required column is NULL, or a column has a value that cannot be read.
    Unreadable,
    /// The row has no key, and its topic is compacted.
    NoKey,
    /// Kafka rejected the record.
    Refused,
    /// CloudEvents does not allow the value of a column for its attribute.
    Attribute,
}

impl PoisonKind {
    pub const ALL: [PoisonKind; 7] = [
        PoisonKind::TooLarge,
        PoisonKind::Unroutable,
        PoisonKind::Headers,
        PoisonKind::Unreadable,
        PoisonKind::NoKey,
        PoisonKind::Refused,
        PoisonKind::Attribute,
    ];

    pub fn label(self) -> &'static str {
        match self {
            PoisonKind::TooLarge => "too_large",
            PoisonKind::Unroutable => "unroutable",
            PoisonKind::Headers => "headers",
            PoisonKind::Unreadable => "unreadable",
            PoisonKind::NoKey => "no_key",
            PoisonKind::Refused => "refused",
            PoisonKind::Attribute => "attribute",
        }
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
