//! What has happened to a basket. Internal: other services get integration events, which have their own types and
//! versions.

use chrono::{DateTime, Utc};

use super::buyer::{BuyerId, PaymentMethod};
use super::identity::Version;
use super::line::{Line, Quantity};
use super::money::Money;

/// One change of a basket, raised by the aggregate and handled in the transaction that stores the change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DomainEvent {
    /// The basket's version after this event. Each event is one version.
    pub version: Version,
    /// When it happened: never before the event of the version before.
    pub occurred_at: DateTime<Utc>,
    /// What happened.
    pub change: BasketChanged,
}

/// What happened to a basket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BasketChanged {
    /// It was created.
    Created {
        /// The buyer.
        buyer: BuyerId,
    },
    /// An article was added, or more pieces of one that was there.
    ItemAdded {
        /// The line that was added; its quantity is the addition.
        added: Line,
        /// The line after it.
        line: Line,
        /// Sum of all lines after it.
        total: Option<Money>,
    },
    /// The number of pieces of an article was changed.
    ItemQuantityChanged {
        /// Pieces before.
        previous: Quantity,
        /// The line after it.
        line: Line,
        /// Sum of all lines after it.
        total: Option<Money>,
    },
    /// An article was removed.
    ItemRemoved {
        /// The line as it was.
        line: Line,
        /// Sum of the lines that are left.
        total: Option<Money>,
    },
    /// All lines were removed.
    Cleared {
        /// The lines as they were.
        lines: Vec<Line>,
    },
    /// It was ordered.
    CheckedOut {
        /// How it is paid.
        payment_method: PaymentMethod,
    },
    /// It was given up.
    Abandoned {
        /// Why.
        reason: AbandonReason,
    },
}

/// Why a basket was abandoned.
#[derive(Clone, Copy, Debug, PartialEq, Eq, strum::IntoStaticStr)]
#[strum(serialize_all = "snake_case", const_into_str)]
pub enum AbandonReason {
    /// Its owner asked for it.
    Requested,
    /// It was not changed for too long.
    Expired,
}
