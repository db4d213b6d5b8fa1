//! A basket as a list shows it: without its lines, so that a page of the fullest baskets is as small as any other.

use chrono::{DateTime, Utc};

use super::basket_view::{BasketStatus, MoneyView};
use crate::domain::{BasketId, Version};

/// An entry of a list of baskets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BasketSummary {
    /// Identity.
    pub id: BasketId,
    /// The buyer.
    pub buyer_id: String,
    /// Status.
    pub status: BasketStatus,
    /// Number of lines.
    pub line_count: u32,
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
