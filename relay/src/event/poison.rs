//! Why a row cannot be delivered.

use std::fmt;
use std::sync::Arc;

use crate::event::record::RecordError;
use crate::event::row::RowError;

/// Why a row cannot be delivered, as a metric's label and a header's value.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum PoisonKind {
    /// The record would be larger than `sink.maxMessageBytes`.
    TooLarge,
    /// The routing gives it no topic.
    Unroutable,
    /// Its column `headers` cannot become Kafka headers.
    Headers,
    /// A column is NULL that must not be, or has a value that cannot be read.
    Unreadable,
    /// It has no key, and its topic is compacted.
    NoKey,
    /// Kafka refused its record.
    Refused,
    /// A column has a value that an attribute of a CloudEvent may not have.
    Attribute,
}

impl PoisonKind {
    /// All of them.
    pub const ALL: [PoisonKind; 7] = [
        PoisonKind::TooLarge,
        PoisonKind::Unroutable,
        PoisonKind::Headers,
        PoisonKind::Unreadable,
        PoisonKind::NoKey,
        PoisonKind::Refused,
        PoisonKind::Attribute,
    ];

    /// The label.
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
    /// In one word.
    pub kind: PoisonKind,
    /// In a sentence.
    pub error: String,
    /// The topic it was meant for, when the routing gave one.
    pub topic: Option<Arc<str>>,
}

impl Poison {
    /// Of this kind; `error` is the sentence.
    pub fn new(kind: PoisonKind, error: impl fmt::Display) -> Poison {
        Poison { kind, error: error.to_string(), topic: None }
    }

    /// Of a row with a value that is larger than any record may be.
    pub fn oversized(bytes: usize, limit: usize) -> Poison {
        let error = format!("the record would have {bytes} bytes, sink.maxMessageBytes is {limit}");
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
