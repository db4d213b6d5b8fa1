//! The read model: a basket as it is shown, with everything computed.

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use crate::domain::{Basket, BasketId, BuyerId, Line, Money, PaymentMethod, Status, Version};

/// A basket as readers see it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
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
    /// Version.
    pub version: Version,
    /// When it was created.
    pub created_at: DateTime<Utc>,
    /// When it last changed.
    pub updated_at: DateTime<Utc>,
}

/// A line with its total.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LineView {
    /// The line.
    #[serde(flatten)]
    pub line: Line,
    /// Unit price times quantity.
    pub total: Option<Money>,
}

impl From<&Basket> for BasketView {
    fn from(basket: &Basket) -> BasketView {
        let lines = basket.lines().iter().map(|line| LineView { line: line.clone(), total: line.total() });
        BasketView {
            id: basket.id(),
            buyer_id: basket.buyer().clone(),
            status: basket.status(),
            lines: lines.collect(),
            total: basket.total(),
            payment_method: basket.payment_method(),
            version: basket.version(),
            created_at: basket.created_at(),
            updated_at: basket.updated_at(),
        }
    }
}
