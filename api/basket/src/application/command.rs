//! Commands, and what identifies one.

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::ports::{BoxFuture, PortError, UnitOfWork};
use super::view::BasketView;
use crate::domain::{Basket, Refusal};

/// Identity of a command in the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct CommandId(pub Uuid);

impl std::fmt::Display for CommandId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

/// A wish to change a basket, with the way to fulfil it.
pub trait Command: Serialize + Send + Sync {
    /// Its name in the log and in metrics.
    const TYPE: &'static str;

    /// Loads what it needs from `work` and changes it. It writes nothing itself: the bus saves the basket that is
    /// returned, and lets its events be reacted to.
    fn handle<'a>(
        &'a self,
        work: &'a mut dyn UnitOfWork,
        now: DateTime<Utc>,
    ) -> BoxFuture<'a, Result<Basket, Failure>>;
}

/// Why a command did not change anything.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// The business says no. This is an outcome, and recorded.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// The world does not answer. Nothing is recorded; the same command may be sent again.
    #[error(transparent)]
    Port(#[from] PortError),
}

/// Who caused something, and as part of what: written beside everything that follows from it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cause {
    /// The command.
    pub command: CommandId,
    /// Who sent it.
    pub principal: String,
    /// The conversation it belongs to; the command's own id where the caller names none.
    pub correlation_id: String,
    /// W3C trace context of the request.
    pub traceparent: Option<String>,
    /// W3C trace state of the request.
    pub tracestate: Option<String>,
}

/// A command with all that identifies it.
#[derive(Clone, Debug)]
pub struct Identified<C> {
    /// What is wished.
    pub command: C,
    /// By whom, as part of what.
    pub cause: Cause,
    /// The caller's name for this wish, within its own commands of this type: the same key is the same wish.
    pub idempotency_key: Option<String>,
    /// Tells the same wish from another one under the same key.
    pub fingerprint: String,
    /// When it arrived.
    pub received_at: DateTime<Utc>,
}

/// How a command ended. Recorded with it; a repeated command gets it again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// The basket as it was after the change.
    Accepted(BasketView),
    /// Nothing was changed.
    Refused(Refusal),
}

impl Outcome {
    /// Its name in the log and in metrics.
    pub fn name(&self) -> &'static str {
        match self {
            Outcome::Accepted(_) => "accepted",
            Outcome::Refused(_) => "refused",
        }
    }
}
