//! Commands, and what identifies one.

use chrono::{DateTime, Utc};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use uuid::Uuid;

use super::read_model::BasketView;
use crate::domain::{Basket, BasketId, Principal, Refusal, Version};

/// Identity of a command in the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(transparent)]
pub struct CommandId(pub Uuid);

impl std::fmt::Display for CommandId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

/// A wish, with the way to fulfil it. A command reads and writes nothing itself: it decides, and the bus does the
/// rest. That makes it as easy to test as a sum.
pub trait Command: Serialize + Send + Sync {
    /// Its name in the log and in metrics.
    const TYPE: &'static str;

    /// The basket it needs to see; none for a command that makes one.
    fn basket_id(&self) -> Option<BasketId>;

    /// Decides: the basket as it shall be, with the events that led there, or a refusal.
    fn decide(&self, basket: Option<Basket>, by: &Principal, now: DateTime<Utc>) -> Result<Basket, Refusal>;
}

/// A command about a basket that exists.
pub trait Change: Serialize + Send + Sync {
    /// Its name in the log and in metrics.
    const TYPE: &'static str;

    /// Which basket.
    fn basket_id(&self) -> BasketId;

    /// The version the caller knows, if it matters.
    fn expected_version(&self) -> Option<Version>;

    /// Changes it. A refusal MUST leave it as it was.
    fn apply(&self, basket: &mut Basket, now: DateTime<Utc>) -> Result<(), Refusal>;
}

impl<C: Change> Command for C {
    const TYPE: &'static str = <C as Change>::TYPE;

    fn basket_id(&self) -> Option<BasketId> {
        Some(Change::basket_id(self))
    }

    fn decide(&self, basket: Option<Basket>, by: &Principal, now: DateTime<Utc>) -> Result<Basket, Refusal> {
        let mut basket =
            basket.filter(|basket| by.can_access(basket.owner())).ok_or(Refusal::BasketNotFound)?;
        basket.require_version(self.expected_version())?;
        self.apply(&mut basket, now)?;
        Ok(basket)
    }
}

/// Who caused something, and as part of what: written beside everything that follows from it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CommandMetadata {
    /// The command.
    pub command: CommandId,
    /// Who sent it.
    pub principal: Principal,
    /// The conversation it belongs to; the command's own id where the caller names none.
    pub correlation_id: String,
    /// W3C trace context of the request.
    pub traceparent: Option<String>,
    /// W3C trace state of the request.
    pub tracestate: Option<String>,
}

/// A command with all that identifies it.
#[derive(Clone, Debug)]
pub struct CommandEnvelope<C> {
    /// What is wished.
    pub command: C,
    /// By whom, as part of what.
    pub cause: CommandMetadata,
    /// The caller's name for this wish, within its own commands of this type: the same key is the same wish.
    pub idempotency_key: Option<String>,
    /// Tells the same wish from another one under the same key.
    pub fingerprint: String,
    /// When it arrived.
    pub received_at: DateTime<Utc>,
}

/// What the log keeps of a command.
#[derive(Clone, Debug)]
pub struct CommandRecord<'a> {
    /// Type of the command.
    pub command_type: &'static str,
    /// Its content.
    pub payload: Value,
    /// The basket it needs to see.
    pub basket_id: Option<BasketId>,
    /// By whom, as part of what.
    pub cause: &'a CommandMetadata,
    /// The caller's name for it.
    pub idempotency_key: Option<&'a str>,
    /// Tells the same wish from another one under the same key.
    pub fingerprint: &'a str,
    /// When it arrived.
    pub received_at: DateTime<Utc>,
}

impl<'a> CommandRecord<'a> {
    /// The record of a command.
    pub fn of<C: Command>(wish: &'a CommandEnvelope<C>) -> Result<CommandRecord<'a>, serde_json::Error> {
        Ok(CommandRecord {
            command_type: C::TYPE,
            payload: serde_json::to_value(&wish.command)?,
            basket_id: wish.command.basket_id(),
            cause: &wish.cause,
            idempotency_key: wish.idempotency_key.as_deref(),
            fingerprint: &wish.fingerprint,
            received_at: wish.received_at,
        })
    }
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
