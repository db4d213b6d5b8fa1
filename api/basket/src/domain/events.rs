//! What has happened to a basket. Internal: other services see integration events, which are made of these and
//! versioned on their own.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::buyer::{BuyerId, PaymentMethod};
use super::line::{Line, Quantity};

/// Raised by the aggregate, handled in the transaction that changes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DomainEvent {
    /// It was created.
    BasketCreated {
        /// For whom.
        buyer: BuyerId,
    },
    /// An article was put in, or more of one that was there.
    ItemAdded {
        /// What was added; the quantity is the addition.
        added: Line,
        /// The line as it is now.
        line: Line,
    },
    /// There are more or fewer pieces of an article.
    ItemQuantityChanged {
        /// Pieces before.
        previous: Quantity,
        /// The line as it is now.
        line: Line,
    },
    /// An article was taken out.
    ItemRemoved {
        /// The line as it was.
        line: Line,
    },
    /// Everything was taken out.
    BasketCleared {
        /// The lines as they were.
        lines: Vec<Line>,
    },
    /// It was checked out.
    BasketCheckedOut {
        /// How it is paid.
        payment_method: PaymentMethod,
    },
    /// Nobody will order it any more.
    BasketAbandoned {
        /// Why.
        reason: AbandonReason,
    },
}

/// Why a basket was abandoned.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum AbandonReason {
    /// Its owner asked for it.
    Requested,
    /// Nobody touched it for too long.
    Expired,
}
