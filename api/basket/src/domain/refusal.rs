//! Why the business says no. *Refusal* is the word for it everywhere: in code, log, metrics and documents.

use super::limits::{MAX_LINES, MAX_QUANTITY};

/// A refusal is an outcome: it is recorded under its name, and a repeated command gets it again.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error, strum::EnumString, strum::IntoStaticStr)]
#[strum(serialize_all = "snake_case", const_into_str)]
pub enum Refusal {
    /// There is no such basket, or it belongs to another caller: a caller cannot tell which.
    #[error("there is no basket with this id")]
    BasketNotFound,
    /// The article is not in the basket.
    #[error("the basket has no item with this sku")]
    ItemNotFound,
    /// It was checked out or abandoned.
    #[error("the basket is closed and cannot be changed")]
    BasketClosed,
    /// There is nothing to order.
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
    #[error("a line has at most {MAX_QUANTITY} pieces")]
    TooManyPieces,
    /// The caller expected another version.
    #[error("the basket has changed: its version is {current}")]
    VersionMismatch {
        /// The version it has.
        current: i64,
    },
}
