//! Why the business says no.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::basket::MAX_LINES;
use super::line::MAX_QUANTITY;

/// A refusal is an outcome: it is recorded, and a repeated command gets it again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema, thiserror::Error)]
#[serde(tag = "refusal", rename_all = "snake_case")]
pub enum Refusal {
    /// There is no such basket, or it is somebody else's: a caller cannot tell which.
    #[error("there is no basket with this id")]
    BasketNotFound,
    /// The article is not in the basket.
    #[error("the basket has no item with this sku")]
    ItemNotFound,
    /// It was checked out or abandoned.
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
    #[error("a line has at most {MAX_QUANTITY} pieces")]
    TooManyPieces,
    /// The caller knew another version.
    #[error("the basket has changed: its version is {current}")]
    VersionMismatch {
        /// What it is now.
        current: i64,
    },
}
