//! The aggregate: the one place where a basket changes.

use chrono::{DateTime, Utc};

use super::buyer::{BuyerId, PaymentMethod};
use super::events::{AbandonReason, BasketChanged, DomainEvent};
use super::identity::{BasketId, Version};
use super::limits::MAX_LINES;
use super::line::{Line, Quantity, Sku};
use super::money::Money;
use super::principal::Principal;
use super::refusal::Refusal;

/// Where a basket is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    /// It can be changed.
    Open,
    /// It was ordered, and never changes again.
    CheckedOut {
        /// How it is paid.
        payment_method: PaymentMethod,
    },
    /// It was given up, and never changes again.
    Abandoned,
}

/// The state of a basket. Adapters store it and load it; only [`Basket`] changes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BasketSnapshot {
    /// Identity.
    pub id: BasketId,
    /// The principal that created it.
    pub owner: Principal,
    /// The buyer.
    pub buyer: BuyerId,
    /// Status.
    pub status: Status,
    /// Lines in the order in which they were added.
    pub lines: Vec<Line>,
    /// Version.
    pub version: Version,
    /// When it was created.
    pub created_at: DateTime<Utc>,
    /// When it last changed.
    pub updated_at: DateTime<Utc>,
}

impl BasketSnapshot {
    /// Sum of all lines; `None` for an empty basket, which has no currency yet.
    pub fn total(&self) -> Option<Money> {
        self.lines.iter().map(Line::total).reduce(Money::plus)
    }
}

/// A basket, with the events of its latest changes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Basket {
    state: BasketSnapshot,
    events: Vec<DomainEvent>,
}

impl Basket {
    /// A new, empty basket.
    pub fn create(id: BasketId, owner: Principal, buyer: BuyerId, now: DateTime<Utc>) -> Basket {
        let created = BasketChanged::Created { buyer: buyer.clone() };
        let version = Version(1);
        let state = BasketSnapshot {
            id,
            owner,
            buyer,
            status: Status::Open,
            lines: Vec::new(),
            version,
            created_at: now,
            updated_at: now,
        };
        Basket { state, events: vec![DomainEvent { version, occurred_at: now, change: created }] }
    }

    /// The basket that was stored. Nothing is validated: today's rules are for changes, not for what exists.
    pub fn from_snapshot(state: BasketSnapshot) -> Basket {
        Basket { state, events: Vec::new() }
    }

    /// Adds an article, or more pieces of one that is in the basket at the same price.
    pub fn add_item(&mut self, added: Line, now: DateTime<Utc>) -> Result<(), Refusal> {
        self.require_open()?;
        let currency = added.unit_price.currency();
        let lines = &mut self.state.lines;
        if lines.iter().any(|line| line.unit_price.currency() != currency) {
            return Err(Refusal::CurrencyMismatch);
        }
        let full = lines.len() >= MAX_LINES;
        let line = match lines.iter_mut().find(|line| line.sku == added.sku) {
            Some(line) if line.unit_price != added.unit_price => return Err(Refusal::PriceMismatch),
            Some(line) => {
                line.quantity = line.quantity.checked_add(added.quantity).ok_or(Refusal::TooManyPieces)?;
                line.clone()
            }
            None if full => return Err(Refusal::TooManyLines),
            None => {
                lines.push(added.clone());
                added.clone()
            }
        };
        let total = self.state.total();
        self.raise(BasketChanged::ItemAdded { added, line, total }, now);
        Ok(())
    }

    /// Sets the number of pieces of an article. The number it already has is no change.
    pub fn change_quantity(
        &mut self,
        sku: &Sku,
        quantity: Quantity,
        now: DateTime<Utc>,
    ) -> Result<(), Refusal> {
        self.require_open()?;
        let line = self.state.lines.iter_mut().find(|line| line.sku == *sku).ok_or(Refusal::ItemNotFound)?;
        let previous = std::mem::replace(&mut line.quantity, quantity);
        let line = line.clone();
        if previous != quantity {
            let total = self.state.total();
            self.raise(BasketChanged::ItemQuantityChanged { previous, line, total }, now);
        }
        Ok(())
    }

    /// Removes an article with all its pieces.
    pub fn remove_item(&mut self, sku: &Sku, now: DateTime<Utc>) -> Result<(), Refusal> {
        self.require_open()?;
        let index = self.state.lines.iter().position(|line| line.sku == *sku).ok_or(Refusal::ItemNotFound)?;
        let line = self.state.lines.remove(index);
        let total = self.state.total();
        self.raise(BasketChanged::ItemRemoved { line, total }, now);
        Ok(())
    }

    /// Removes all lines. An empty basket stays as it is.
    pub fn clear(&mut self, now: DateTime<Utc>) -> Result<(), Refusal> {
        self.require_open()?;
        let lines = std::mem::take(&mut self.state.lines);
        if !lines.is_empty() {
            self.raise(BasketChanged::Cleared { lines }, now);
        }
        Ok(())
    }

    /// Orders it. It never changes again.
    pub fn check_out(&mut self, payment_method: PaymentMethod, now: DateTime<Utc>) -> Result<(), Refusal> {
        self.require_open()?;
        if self.state.lines.is_empty() {
            return Err(Refusal::BasketEmpty);
        }
        self.state.status = Status::CheckedOut { payment_method };
        self.raise(BasketChanged::CheckedOut { payment_method }, now);
        Ok(())
    }

    /// Gives it up. It never changes again.
    pub fn abandon(&mut self, reason: AbandonReason, now: DateTime<Utc>) -> Result<(), Refusal> {
        self.require_open()?;
        self.state.status = Status::Abandoned;
        self.raise(BasketChanged::Abandoned { reason }, now);
        Ok(())
    }

    /// Refuses when the caller expected another version than this.
    pub fn require_version(&self, expected: Option<Version>) -> Result<(), Refusal> {
        match expected {
            Some(expected) if expected != self.state.version => {
                Err(Refusal::VersionMismatch { current: self.state.version.0 })
            }
            _ => Ok(()),
        }
    }

    fn require_open(&self) -> Result<(), Refusal> {
        if self.state.status == Status::Open { Ok(()) } else { Err(Refusal::BasketClosed) }
    }

    /// The clocks of two replicas differ, and a command that waited has an old `now`: time never goes back against
    /// the version.
    fn raise(&mut self, change: BasketChanged, now: DateTime<Utc>) {
        self.state.version.0 += 1;
        self.state.updated_at = self.state.updated_at.max(now);
        let (version, occurred_at) = (self.state.version, self.state.updated_at);
        self.events.push(DomainEvent { version, occurred_at, change });
    }

    /// Its state.
    pub fn snapshot(&self) -> &BasketSnapshot {
        &self.state
    }

    /// What happened since it was created or loaded, in order.
    pub fn events(&self) -> &[DomainEvent] {
        &self.events
    }

    /// The version it had before these events; `None` for a basket that is new.
    pub fn stored_version(&self) -> Option<Version> {
        let events = i64::try_from(self.events.len()).unwrap_or(i64::MAX);
        Some(Version(self.state.version.0.saturating_sub(events))).filter(|version| version.0 > 0)
    }
}

#[cfg(test)]
mod tests;
