//! The stored JSON documents: `basket.lines`, `basket_view.view`, `command_log.result`.
//!
//! Rows live for years, so these types only ever grow: a new member gets `#[serde(default)]`, an old one keeps its name,
//! and nothing is validated when it is read. A test reads every form that was ever written.

use basket::application::ports::PortError;
use basket::application::{BasketView, LineView, MoneyView, Outcome};
use basket::domain::{BasketId, Currency, Line, Money, Refusal, Version};
use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// An amount.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct MoneyDocument {
    amount: i64,
    currency: String,
}

/// An entry of `basket.lines`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct LineDocument {
    sku: String,
    name: String,
    quantity: u32,
    unit_price: MoneyDocument,
}

/// `basket_view.view`, and an accepted `command_log.result`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct BasketDocument {
    id: Uuid,
    buyer_id: String,
    status: String,
    lines: Vec<LineViewDocument>,
    total: Option<MoneyDocument>,
    payment_method: Option<String>,
    version: i64,
    created_at: DateTime<Utc>,
    updated_at: DateTime<Utc>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
struct LineViewDocument {
    #[serde(flatten)]
    line: LineDocument,
    total: MoneyDocument,
}

/// `command_log.result`: what a repeated command gets again.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OutcomeDocument {
    /// The basket as it was after the command.
    Accepted(BasketDocument),
    /// Why it was refused.
    Refused(RefusalDocument),
}

/// A refusal, by its name.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct RefusalDocument {
    refusal: String,
    /// Of a version mismatch: the version the basket had.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    current: Option<i64>,
}

/// A document that this version cannot read: a bug, because it was written by this service.
pub fn invalid_document(member: &'static str) -> PortError {
    PortError::Failed(format!("a stored document has an unknown {member}").into())
}

/// `basket.lines`.
pub fn line_documents(lines: &[Line]) -> Vec<LineDocument> {
    lines.iter().map(|line| LineView::from(line).into()).collect()
}

/// The lines of `basket.lines`.
pub fn lines(documents: Vec<LineDocument>) -> Result<Vec<Line>, PortError> {
    documents.into_iter().map(Line::try_from).collect()
}

impl TryFrom<LineDocument> for Line {
    type Error = PortError;

    fn try_from(line: LineDocument) -> Result<Line, PortError> {
        let LineDocument { sku, name, quantity, unit_price: MoneyDocument { amount, currency } } = line;
        let code = <[u8; 3]>::try_from(currency.as_bytes()).map_err(|_| invalid_document("currency"))?;
        let price = Money { amount, currency: Currency::from_stored(code) };
        Ok(Line::from_stored(sku, name, quantity, price))
    }
}

impl From<MoneyView> for MoneyDocument {
    fn from(money: MoneyView) -> MoneyDocument {
        MoneyDocument { amount: money.amount, currency: money.currency }
    }
}

impl From<MoneyDocument> for MoneyView {
    fn from(money: MoneyDocument) -> MoneyView {
        MoneyView { amount: money.amount, currency: money.currency }
    }
}

impl From<LineView> for LineDocument {
    fn from(line: LineView) -> LineDocument {
        let LineView { sku, name, quantity, unit_price, total: _ } = line;
        LineDocument { sku, name, quantity, unit_price: unit_price.into() }
    }
}

impl From<BasketView> for BasketDocument {
    fn from(basket: BasketView) -> BasketDocument {
        let line = |line: LineView| LineViewDocument { total: line.total.clone().into(), line: line.into() };
        BasketDocument {
            id: basket.id.0,
            buyer_id: basket.buyer_id,
            status: basket.status.into_str().to_owned(),
            lines: basket.lines.into_iter().map(line).collect(),
            total: basket.total.map(MoneyDocument::from),
            payment_method: basket.payment_method,
            version: basket.version.0,
            created_at: basket.created_at,
            updated_at: basket.updated_at,
        }
    }
}

impl TryFrom<BasketDocument> for BasketView {
    type Error = PortError;

    fn try_from(basket: BasketDocument) -> Result<BasketView, PortError> {
        let line = |LineViewDocument { line, total }: LineViewDocument| LineView {
            sku: line.sku,
            name: line.name,
            quantity: line.quantity,
            unit_price: line.unit_price.into(),
            total: total.into(),
        };
        Ok(BasketView {
            id: BasketId(basket.id),
            buyer_id: basket.buyer_id,
            status: basket.status.parse().map_err(|_| invalid_document("status"))?,
            lines: basket.lines.into_iter().map(line).collect(),
            total: basket.total.map(MoneyView::from),
            payment_method: basket.payment_method,
            version: Version(basket.version),
            created_at: basket.created_at,
            updated_at: basket.updated_at,
        })
    }
}

impl From<&Outcome> for OutcomeDocument {
    fn from(outcome: &Outcome) -> OutcomeDocument {
        match outcome {
            Outcome::Accepted(basket) => OutcomeDocument::Accepted(basket.clone().into()),
            Outcome::Refused(refusal) => {
                let current = match refusal {
                    Refusal::VersionMismatch { current } => Some(*current),
                    _ => None,
                };
                OutcomeDocument::Refused(RefusalDocument { refusal: refusal.into_str().to_owned(), current })
            }
        }
    }
}

impl TryFrom<OutcomeDocument> for Outcome {
    type Error = PortError;

    fn try_from(outcome: OutcomeDocument) -> Result<Outcome, PortError> {
        match outcome {
            OutcomeDocument::Accepted(basket) => basket.try_into().map(Outcome::Accepted),
            OutcomeDocument::Refused(RefusalDocument { refusal, current }) => {
                let refusal = refusal.parse().map_err(|_| invalid_document("refusal"))?;
                Ok(Outcome::Refused(match refusal {
                    Refusal::VersionMismatch { .. } => {
                        Refusal::VersionMismatch { current: current.unwrap_or_default() }
                    }
                    other => other,
                }))
            }
        }
    }
}

#[cfg(test)]
mod tests;
