//! Commands: what can be asked of a basket, and what identifies one request for it.

use chrono::{DateTime, Utc};
use serde_json::{Value, json};
use strum::VariantArray;
use uuid::Uuid;

use super::basket_view::BasketView;
use crate::domain::{
    AbandonReason, Basket, BasketId, BuyerId, Line, PaymentMethod, Principal, Quantity, Refusal, Sku, Version,
};

/// Everything that can be asked of a basket: a closed set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BasketCommand {
    /// Create a basket.
    Create {
        /// Identity of the new basket; not used before.
        basket_id: BasketId,
        /// The buyer.
        buyer: BuyerId,
    },
    /// Change a basket that exists.
    Change {
        /// Which basket.
        basket_id: BasketId,
        /// The version the caller has seen, if it matters.
        expected_version: Option<Version>,
        /// What to change.
        change: BasketChange,
    },
}

/// A change of a basket that exists.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BasketChange {
    /// Add an article.
    AddItem {
        /// The article, as the shop offers it now.
        line: Line,
    },
    /// Set the number of pieces of an article.
    ChangeQuantity {
        /// Which article.
        sku: Sku,
        /// The new number.
        quantity: Quantity,
    },
    /// Remove an article.
    RemoveItem {
        /// Which article.
        sku: Sku,
    },
    /// Remove all articles.
    Clear,
    /// Order the basket.
    CheckOut {
        /// How it is paid.
        payment_method: PaymentMethod,
    },
    /// Give the basket up.
    Abandon {
        /// Why.
        reason: AbandonReason,
    },
}

/// The type of a command, by its name in the command log and in metrics.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, Hash, strum::EnumString, strum::IntoStaticStr, strum::VariantArray,
)]
#[strum(serialize_all = "snake_case", const_into_str)]
#[allow(missing_docs, reason = "each is the command of that name")]
pub enum CommandType {
    CreateBasket,
    AddItem,
    ChangeQuantity,
    RemoveItem,
    ClearBasket,
    CheckOut,
    AbandonBasket,
}

impl CommandType {
    /// The names of all types.
    pub fn names() -> Vec<&'static str> {
        CommandType::VARIANTS.iter().map(|command_type| command_type.into_str()).collect()
    }
}

impl BasketCommand {
    /// Its type.
    pub fn command_type(&self) -> CommandType {
        match self {
            BasketCommand::Create { .. } => CommandType::CreateBasket,
            BasketCommand::Change { change, .. } => match change {
                BasketChange::AddItem { .. } => CommandType::AddItem,
                BasketChange::ChangeQuantity { .. } => CommandType::ChangeQuantity,
                BasketChange::RemoveItem { .. } => CommandType::RemoveItem,
                BasketChange::Clear => CommandType::ClearBasket,
                BasketChange::CheckOut { .. } => CommandType::CheckOut,
                BasketChange::Abandon { .. } => CommandType::AbandonBasket,
            },
        }
    }

    /// The basket that has to be loaded for it; `None` for a command that creates one.
    pub fn loads(&self) -> Option<BasketId> {
        match self {
            BasketCommand::Create { .. } => None,
            BasketCommand::Change { basket_id, .. } => Some(*basket_id),
        }
    }

    /// The decision: the basket after the command, with the events that led there, or a refusal. It does no I/O.
    pub fn handle(
        &self,
        basket: Option<Basket>,
        by: &Principal,
        now: DateTime<Utc>,
    ) -> Result<Basket, Refusal> {
        match self {
            BasketCommand::Create { basket_id, buyer } => {
                Ok(Basket::create(*basket_id, by.clone(), buyer.clone(), now))
            }
            BasketCommand::Change { expected_version, change, .. } => {
                let accessible = basket.filter(|basket| by.can_access(&basket.snapshot().owner));
                let mut basket = accessible.ok_or(Refusal::BasketNotFound)?;
                basket.require_version(*expected_version)?;
                change.apply(&mut basket, now)?;
                Ok(basket)
            }
        }
    }

    /// Its content, as the command log keeps it.
    pub fn payload(&self) -> Value {
        match self {
            BasketCommand::Create { basket_id, buyer } => {
                json!({ "id": basket_id.0, "buyer_id": buyer.as_str() })
            }
            BasketCommand::Change { basket_id, expected_version, change } => {
                let version = expected_version.map(|version| version.0);
                let target = [("basket_id", json!(basket_id.0)), ("expected_version", json!(version))];
                change.content().into_iter().chain(target).collect()
            }
        }
    }
}

impl BasketChange {
    /// Changes the basket. A refusal leaves it as it was.
    fn apply(&self, basket: &mut Basket, now: DateTime<Utc>) -> Result<(), Refusal> {
        match self {
            BasketChange::AddItem { line } => basket.add_item(line.clone(), now),
            BasketChange::ChangeQuantity { sku, quantity } => basket.change_quantity(sku, *quantity, now),
            BasketChange::RemoveItem { sku } => basket.remove_item(sku, now),
            BasketChange::Clear => basket.clear(now),
            BasketChange::CheckOut { payment_method } => basket.check_out(*payment_method, now),
            BasketChange::Abandon { reason } => basket.abandon(*reason, now),
        }
    }

    /// The members of the payload that only this event has.
    fn content(&self) -> Vec<(&'static str, Value)> {
        match self {
            BasketChange::AddItem { line } => {
                let price = line.unit_price.money();
                vec![(
                    "line",
                    json!({
                        "sku": line.sku.as_str(),
                        "name": line.name.as_str(),
                        "quantity": line.quantity.pieces(),
                        "unit_price": { "amount": price.amount, "currency": price.currency.code() },
                    }),
                )]
            }
            BasketChange::ChangeQuantity { sku, quantity } => {
                vec![("sku", json!(sku.as_str())), ("quantity", json!(quantity.pieces()))]
            }
            BasketChange::RemoveItem { sku } => vec![("sku", json!(sku.as_str()))],
            BasketChange::Clear => vec![],
            BasketChange::CheckOut { payment_method } => {
                vec![("payment_method", json!(payment_method.into_str()))]
            }
            BasketChange::Abandon { reason } => vec![("reason", json!(reason.into_str()))],
        }
    }
}

/// Identity of a command in the command log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CommandId(pub Uuid);

impl std::fmt::Display for CommandId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

/// A command with all that identifies it.
#[derive(Clone, Debug)]
pub struct CommandEnvelope {
    /// Identity.
    pub id: CommandId,
    /// What is asked.
    pub command: BasketCommand,
    /// By whom, and as part of what.
    pub context: CommandContext,
    /// The caller's key for it: the same key is the same command. `None` if it may be executed again.
    pub idempotency_key: Option<IdempotencyKey>,
    /// When it arrived.
    pub received_at: DateTime<Utc>,
}

/// Who caused a command, and as part of what. It is written beside everything that follows from the command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CommandContext {
    /// The sender.
    pub principal: Principal,
    /// The conversation it belongs to; the command's id if the caller names none.
    pub correlation_id: String,
    /// W3C trace context of the request.
    pub traceparent: Option<String>,
    /// W3C trace state of the request.
    pub tracestate: Option<String>,
}

/// A key makes a command of its sender and type unique.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IdempotencyKey {
    /// The caller's text.
    pub key: String,
    /// Digest of the request: tells another request under the same key.
    pub fingerprint: String,
}

/// How a command ended. It is recorded, and a repeated command gets it again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The basket as it was after the command.
    Accepted(BasketView),
    /// Nothing was changed.
    Refused(Refusal),
}

/// The two ways in which a command ends, by their names in the command log and in metrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq, strum::EnumString, strum::IntoStaticStr)]
#[strum(serialize_all = "snake_case", const_into_str)]
#[allow(missing_docs, reason = "each is the outcome of that name")]
pub enum OutcomeKind {
    Accepted,
    Refused,
}

impl Outcome {
    /// Which of the two it is.
    pub fn kind(&self) -> OutcomeKind {
        match self {
            Outcome::Accepted(_) => OutcomeKind::Accepted,
            Outcome::Refused(_) => OutcomeKind::Refused,
        }
    }

    /// Why it was refused, if it was.
    pub fn refusal(&self) -> Option<&Refusal> {
        match self {
            Outcome::Accepted(_) => None,
            Outcome::Refused(refusal) => Some(refusal),
        }
    }
}
