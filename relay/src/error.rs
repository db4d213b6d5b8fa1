//! The relay's error: its kind, what happened, and the row that it concerns. [`ErrorKind`] has the table of what the relay
//! does about each kind and what the on-call engineer should do.

mod backoff;
mod cause;
mod excerpt;
mod kind;
mod refill_cause;

use std::fmt;

use outbox::Position;

pub use self::backoff::Backoff;
pub(crate) use self::backoff::jitter;
pub use self::cause::{chain, reason_of_all, reason_of_connection, reason_of_sqlstate};
pub use self::excerpt::excerpt;
pub use self::kind::{Action, ErrorKind};
pub use self::refill_cause::RefillCause;

/// An error with its kind and a description.
#[derive(Debug)]
pub struct RelayError {
    /// Decides action, remedy and metric labels.
    pub kind: ErrorKind,
    /// What happened, to what.
    pub detail: String,
    /// The row that has to be delivered before the error counts as resolved, where one is known.
    pub at: Option<Position>,
}

impl RelayError {
    /// An error of this kind; `detail` says what happened, to what.
    pub fn new(kind: ErrorKind, detail: impl Into<String>) -> Self {
        RelayError { kind, detail: detail.into(), at: None }
    }

    /// The error counts as resolved only when the row at `position` is delivered.
    #[must_use]
    pub fn at(self, position: Position) -> Self {
        RelayError { at: Some(position), ..self }
    }
}

impl fmt::Display for RelayError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}; {}", self.detail, self.kind.remedy())
    }
}
