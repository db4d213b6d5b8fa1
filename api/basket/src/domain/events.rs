//! What has happened to a basket. Internal: other services see integration events, which are made of these and
//! versioned on their own.

use super::buyer::{BuyerId, PaymentMethod};
use super::line::Line;

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
    /// It was checked out.
    BasketCheckedOut {
        /// How it is paid.
        payment_method: PaymentMethod,
    },
}
