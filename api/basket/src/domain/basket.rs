//! The aggregate: the one place where a basket changes.

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::buyer::{BuyerId, PaymentMethod};
use super::events::DomainEvent;
use super::line::{Line, Quantity};
use super::money::Money;

/// Most lines of a basket. Keeps the snapshot that is published at checkout far below Kafka's record limit.
pub const MAX_LINES: usize = 200;

/// Identity of a basket.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct BasketId(pub Uuid);

impl std::fmt::Display for BasketId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

/// Counts the changes of a basket, from 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Version(pub i64);

/// Where a basket is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Status {
    /// It can be changed.
    Open,
    /// It was ordered, and never changes again.
    CheckedOut,
}

/// Why the business says no. A refusal is an outcome: it is recorded, and a repeated command gets it again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[serde(tag = "refusal", rename_all = "snake_case")]
pub enum Refusal {
    /// There is no such basket.
    #[error("there is no basket with this id")]
    BasketNotFound,
    /// It was checked out.
    #[error("the basket is closed and cannot be changed")]
    BasketClosed,
    /// Nothing to order.
    #[error("an empty basket cannot be checked out")]
    BasketEmpty,
    /// All items of a basket have one currency.
    #[error("the basket has items in another currency")]
    CurrencyMismatch,
    /// The article is in the basket at another price.
    #[error("the basket has this article at another price")]
    PriceMismatch,
    /// Too many lines.
    #[error("a basket has at most {MAX_LINES} lines")]
    TooManyLines,
    /// Too many pieces of one article.
    #[error("a line has at most {} pieces", super::line::MAX_QUANTITY)]
    TooManyPieces,
    /// A sum is too large.
    #[error("the basket's total is too large")]
    TotalTooLarge,
    /// The caller knew another version.
    #[error("the basket has changed: its version is {current}")]
    VersionMismatch {
        /// What it is now.
        current: i64,
    },
}

/// A basket with the events of its latest change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Basket {
    id: BasketId,
    buyer: BuyerId,
    status: Status,
    lines: Vec<Line>,
    payment_method: Option<PaymentMethod>,
    version: Version,
    created_at: DateTime<Utc>,
    updated_at: DateTime<Utc>,
    events: Vec<DomainEvent>,
}

/// A basket as it is stored. Only for adapters that load one.
#[derive(Clone, Debug)]
pub struct Stored {
    /// Identity.
    pub id: BasketId,
    /// For whom.
    pub buyer: BuyerId,
    /// Status.
    pub status: Status,
    /// Lines in the order they were put in.
    pub lines: Vec<Line>,
    /// Set once checked out.
    pub payment_method: Option<PaymentMethod>,
    /// Version.
    pub version: Version,
    /// When it was created.
    pub created_at: DateTime<Utc>,
    /// When it last changed.
    pub updated_at: DateTime<Utc>,
}

impl Basket {
    /// A new, empty basket.
    pub fn create(id: BasketId, buyer: BuyerId, now: DateTime<Utc>) -> Basket {
        let created = DomainEvent::BasketCreated { buyer: buyer.clone() };
        Basket {
            id,
            buyer,
            status: Status::Open,
            lines: Vec::new(),
            payment_method: None,
            version: Version(1),
            created_at: now,
            updated_at: now,
            events: vec![created],
        }
    }

    /// The basket that was stored.
    pub fn restore(stored: Stored) -> Basket {
        let Stored { id, buyer, status, lines, payment_method, version, created_at, updated_at } = stored;
        Basket {
            id,
            buyer,
            status,
            lines,
            payment_method,
            version,
            created_at,
            updated_at,
            events: Vec::new(),
        }
    }

    /// Puts an article in, or more of one that is there at the same price.
    pub fn add_item(&mut self, added: Line, now: DateTime<Utc>) -> Result<(), Refusal> {
        self.require_open()?;
        let currency = added.unit_price.currency();
        if self.lines.iter().any(|line| line.unit_price.currency() != currency) {
            return Err(Refusal::CurrencyMismatch);
        }
        let mut lines = self.lines.clone();
        let full = lines.len() >= MAX_LINES;
        let line = match lines.iter_mut().find(|line| line.sku == added.sku) {
            Some(line) if line.unit_price != added.unit_price => return Err(Refusal::PriceMismatch),
            Some(line) => {
                let pieces = u32::from(line.quantity).saturating_add(u32::from(added.quantity));
                line.quantity = Quantity::try_from(pieces).map_err(|_| Refusal::TooManyPieces)?;
                line.clone()
            }
            None if full => return Err(Refusal::TooManyLines),
            None => {
                lines.push(added.clone());
                added.clone()
            }
        };
        total(&lines)?;
        self.lines = lines;
        self.changed(DomainEvent::ItemAdded { added, line }, now);
        Ok(())
    }

    /// Orders it. It never changes again.
    pub fn check_out(&mut self, payment_method: PaymentMethod, now: DateTime<Utc>) -> Result<(), Refusal> {
        self.require_open()?;
        if self.lines.is_empty() {
            return Err(Refusal::BasketEmpty);
        }
        self.status = Status::CheckedOut;
        self.payment_method = Some(payment_method);
        self.changed(DomainEvent::BasketCheckedOut { payment_method }, now);
        Ok(())
    }

    /// Refuses when the caller knew another version than this.
    pub fn require_version(&self, expected: Option<Version>) -> Result<(), Refusal> {
        match expected {
            Some(expected) if expected != self.version => {
                Err(Refusal::VersionMismatch { current: self.version.0 })
            }
            _ => Ok(()),
        }
    }

    fn require_open(&self) -> Result<(), Refusal> {
        if self.status == Status::Open { Ok(()) } else { Err(Refusal::BasketClosed) }
    }

    fn changed(&mut self, event: DomainEvent, now: DateTime<Utc>) {
        self.version.0 += 1;
        self.updated_at = now;
        self.events.push(event);
    }

    /// What happened since it was created or loaded, in order.
    pub fn events(&self) -> &[DomainEvent] {
        &self.events
    }
    /// Identity.
    pub fn id(&self) -> BasketId {
        self.id
    }
    /// For whom.
    pub fn buyer(&self) -> &BuyerId {
        &self.buyer
    }
    /// Status.
    pub fn status(&self) -> Status {
        self.status
    }
    /// Lines in the order they were put in.
    pub fn lines(&self) -> &[Line] {
        &self.lines
    }
    /// Set once checked out.
    pub fn payment_method(&self) -> Option<PaymentMethod> {
        self.payment_method
    }
    /// Version.
    pub fn version(&self) -> Version {
        self.version
    }
    /// When it was created.
    pub fn created_at(&self) -> DateTime<Utc> {
        self.created_at
    }
    /// When it last changed.
    pub fn updated_at(&self) -> DateTime<Utc> {
        self.updated_at
    }
    /// Sum of all lines; `None` for an empty basket, which has no currency yet.
    pub fn total(&self) -> Option<Money> {
        total(&self.lines).ok().flatten()
    }
}

fn total(lines: &[Line]) -> Result<Option<Money>, Refusal> {
    let mut sum: Option<Money> = None;
    for line in lines {
        let line = line.total().ok_or(Refusal::TotalTooLarge)?;
        sum = Some(match sum {
            None => line,
            Some(sum) => sum.plus(line).ok_or(Refusal::TotalTooLarge)?,
        });
    }
    Ok(sum)
}

#[cfg(test)]
mod tests;
