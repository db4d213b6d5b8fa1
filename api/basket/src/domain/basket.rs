//! The aggregate: the one place where a basket changes.

use chrono::{DateTime, Utc};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::buyer::{BuyerId, PaymentMethod};
use super::events::{AbandonReason, DomainEvent};
use super::line::{Line, Quantity, Sku};
use super::money::Money;
use super::principal::Principal;
use super::refusal::Refusal;

/// Most lines of a basket. Keeps the snapshot that is published at checkout far below Kafka's record limit.
pub const MAX_LINES: usize = 200;

/// Identity of a basket.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(transparent)]
pub struct BasketId(pub Uuid);

impl std::fmt::Display for BasketId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

/// Counts the changes of a basket, from 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(transparent)]
#[schemars(extend("minimum" = 1))]
pub struct Version(pub i64);

/// Where a basket is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Status {
    /// It can be changed.
    Open,
    /// It was ordered, and never changes again.
    CheckedOut,
    /// It was given up, and never changes again.
    Abandoned,
}

/// A basket with the events of its latest change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Basket {
    id: BasketId,
    owner: String,
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
pub struct BasketSnapshot {
    /// Identity.
    pub id: BasketId,
    /// The principal that created it.
    pub owner: String,
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
    pub fn create(id: BasketId, owner: &Principal, buyer: BuyerId, now: DateTime<Utc>) -> Basket {
        let created = DomainEvent::BasketCreated { buyer: buyer.clone() };
        Basket {
            id,
            owner: owner.to_string(),
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
    pub fn from_snapshot(snapshot: BasketSnapshot) -> Basket {
        let BasketSnapshot {
            id,
            owner,
            buyer,
            status,
            lines,
            payment_method,
            version,
            created_at,
            updated_at,
        } = snapshot;
        Basket {
            id,
            owner,
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
        let full = self.lines.len() >= MAX_LINES;
        let line = match self.lines.iter_mut().find(|line| line.sku == added.sku) {
            Some(line) if line.unit_price != added.unit_price => return Err(Refusal::PriceMismatch),
            Some(line) => {
                line.quantity = line.quantity.plus(added.quantity).ok_or(Refusal::TooManyPieces)?;
                line.clone()
            }
            None if full => return Err(Refusal::TooManyLines),
            None => {
                self.lines.push(added.clone());
                added.clone()
            }
        };
        self.changed(DomainEvent::ItemAdded { added, line }, now);
        Ok(())
    }

    /// Sets how many pieces of an article there are. The number it has already is no change.
    pub fn change_quantity(
        &mut self,
        sku: &Sku,
        quantity: Quantity,
        now: DateTime<Utc>,
    ) -> Result<(), Refusal> {
        self.require_open()?;
        let line = self.lines.iter_mut().find(|line| line.sku == *sku).ok_or(Refusal::ItemNotFound)?;
        let previous = std::mem::replace(&mut line.quantity, quantity);
        let line = line.clone();
        if previous != quantity {
            self.changed(DomainEvent::ItemQuantityChanged { previous, line }, now);
        }
        Ok(())
    }

    /// Takes an article out, however many there are.
    pub fn remove_item(&mut self, sku: &Sku, now: DateTime<Utc>) -> Result<(), Refusal> {
        self.require_open()?;
        let place = self.lines.iter().position(|line| line.sku == *sku).ok_or(Refusal::ItemNotFound)?;
        let line = self.lines.remove(place);
        self.changed(DomainEvent::ItemRemoved { line }, now);
        Ok(())
    }

    /// Takes everything out. An empty basket stays as it is.
    pub fn clear(&mut self, now: DateTime<Utc>) -> Result<(), Refusal> {
        self.require_open()?;
        let lines = std::mem::take(&mut self.lines);
        if !lines.is_empty() {
            self.changed(DomainEvent::BasketCleared { lines }, now);
        }
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

    /// Gives it up. It never changes again.
    pub fn abandon(&mut self, reason: AbandonReason, now: DateTime<Utc>) -> Result<(), Refusal> {
        self.require_open()?;
        self.status = Status::Abandoned;
        self.changed(DomainEvent::BasketAbandoned { reason }, now);
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
    /// The principal that created it.
    pub fn owner(&self) -> &str {
        &self.owner
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
        self.lines.iter().map(Line::total).reduce(Money::plus)
    }
}

#[cfg(test)]
mod tests;
