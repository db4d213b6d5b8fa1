//! A basket as readers see it, with everything computed. Plain values: what was stored under other rules is shown too.

use chrono::{DateTime, Utc};

use crate::domain::{Basket, BasketId, Line, Money, Status, Version};

/// A basket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BasketView {
    /// Identity.
    pub id: BasketId,
    /// The buyer.
    pub buyer_id: String,
    /// Status.
    pub status: BasketStatus,
    /// Lines in the order in which they were added.
    pub lines: Vec<LineView>,
    /// Sum of all lines; `None` while there are none.
    pub total: Option<MoneyView>,
    /// How it is paid, once it is checked out.
    pub payment_method: Option<String>,
    /// Counts the changes, from 1.
    pub version: Version,
    /// When it was created.
    pub created_at: DateTime<Utc>,
    /// When it last changed.
    pub updated_at: DateTime<Utc>,
}

/// A line with its total.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LineView {
    /// Article number.
    pub sku: String,
    /// Name.
    pub name: String,
    /// Number of pieces.
    pub quantity: u32,
    /// Price of one piece.
    pub unit_price: MoneyView,
    /// Unit price times quantity.
    pub total: MoneyView,
}

/// An amount in one currency, in minor units.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MoneyView {
    /// Minor units.
    pub amount: i64,
    /// ISO 4217 code.
    pub currency: String,
}

/// Where a basket is in its life, by the name that is stored and shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq, strum::EnumString, strum::IntoStaticStr)]
#[strum(serialize_all = "snake_case", const_into_str)]
#[allow(missing_docs, reason = "each is the status of that name")]
pub enum BasketStatus {
    Open,
    CheckedOut,
    Abandoned,
}

impl From<Status> for BasketStatus {
    fn from(status: Status) -> BasketStatus {
        match status {
            Status::Open => BasketStatus::Open,
            Status::CheckedOut { .. } => BasketStatus::CheckedOut,
            Status::Abandoned => BasketStatus::Abandoned,
        }
    }
}

impl From<Money> for MoneyView {
    fn from(money: Money) -> MoneyView {
        MoneyView { amount: money.amount, currency: money.currency.code() }
    }
}

impl From<&Line> for LineView {
    fn from(line: &Line) -> LineView {
        LineView {
            sku: line.sku.as_str().to_owned(),
            name: line.name.as_str().to_owned(),
            quantity: line.quantity.pieces(),
            unit_price: line.unit_price.money().into(),
            total: line.total().into(),
        }
    }
}

impl From<&Basket> for BasketView {
    fn from(basket: &Basket) -> BasketView {
        let basket = basket.snapshot();
        let payment_method = match basket.status {
            Status::CheckedOut { payment_method } => Some(payment_method.into_str().to_owned()),
            Status::Open | Status::Abandoned => None,
        };
        BasketView {
            id: basket.id,
            buyer_id: basket.buyer.as_str().to_owned(),
            status: basket.status.into(),
            lines: basket.lines.iter().map(LineView::from).collect(),
            total: basket.total().map(MoneyView::from),
            payment_method,
            version: basket.version,
            created_at: basket.created_at,
            updated_at: basket.updated_at,
        }
    }
}
