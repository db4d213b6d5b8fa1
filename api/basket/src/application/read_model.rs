//! What readers see, with everything computed.

use chrono::{DateTime, Utc};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use uuid::Uuid;

use super::command::CommandId;
use crate::domain::{
    Basket, BasketId, BuyerId, Line, Money, Name, PaymentMethod, Price, Quantity, Sku, Status, Version,
};

/// A basket.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[schemars(rename = "Basket")]
pub struct BasketView {
    /// Identity.
    pub id: BasketId,
    /// For whom.
    pub buyer_id: BuyerId,
    /// Status.
    pub status: Status,
    /// Lines in the order they were put in.
    pub lines: Vec<LineView>,
    /// Sum of all lines; null while there are none.
    pub total: Option<Money>,
    /// Set once checked out.
    pub payment_method: Option<PaymentMethod>,
    /// Counts the changes, from 1; the entity tag.
    pub version: Version,
    /// When it was created.
    pub created_at: DateTime<Utc>,
    /// When it last changed.
    pub updated_at: DateTime<Utc>,
}

/// A line with its total.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[schemars(rename = "BasketLine")]
pub struct LineView {
    /// Article number.
    pub sku: Sku,
    /// Name.
    pub name: Name,
    /// How many.
    pub quantity: Quantity,
    /// Price of one piece.
    pub unit_price: Price,
    /// Unit price times quantity.
    pub total: Money,
}

impl From<&Line> for LineView {
    fn from(line: &Line) -> LineView {
        let Line { sku, name, quantity, unit_price } = line.clone();
        LineView { sku, name, quantity, unit_price, total: line.total() }
    }
}

impl From<&Basket> for BasketView {
    fn from(basket: &Basket) -> BasketView {
        BasketView {
            id: basket.id(),
            buyer_id: basket.buyer().clone(),
            status: basket.status(),
            lines: basket.lines().iter().map(LineView::from).collect(),
            total: basket.total(),
            payment_method: basket.payment_method(),
            version: basket.version(),
            created_at: basket.created_at(),
            updated_at: basket.updated_at(),
        }
    }
}

/// A command in the log: who wished what, when, and what came of it.
#[derive(Clone, Debug, PartialEq, Serialize, JsonSchema)]
#[schemars(rename = "Command")]
pub struct CommandView {
    /// Identity: the `Command-Id` of its answer, and the `causation-id` of its events.
    pub id: CommandId,
    /// Type.
    #[serde(rename = "type")]
    pub command_type: String,
    /// Who sent it.
    pub principal: String,
    /// The caller's name for it.
    pub idempotency_key: Option<String>,
    /// The conversation it belongs to.
    pub correlation_id: String,
    /// W3C trace context of the request.
    pub traceparent: Option<String>,
    /// What was wished.
    pub payload: Value,
    /// When it arrived.
    pub received_at: DateTime<Utc>,
    /// When its work was done.
    pub completed_at: DateTime<Utc>,
    /// How it ended: accepted or refused.
    pub outcome: String,
    /// Why it was refused.
    pub refusal: Option<String>,
    /// The basket it was about.
    pub basket_id: Option<BasketId>,
    /// The basket's version after it.
    pub basket_version: Option<Version>,
    /// The events it published.
    pub event_ids: Vec<Uuid>,
}
