//! Reading. Queries see the read model only: they load no aggregate, lock nothing, and never meet the bus.

use super::ports::{BoxFuture, PortError};
use super::view::BasketView;
use crate::domain::BasketId;

/// Most baskets of one page.
pub const MAX_PAGE: u32 = 100;
/// Baskets of a page when the caller does not say.
pub const DEFAULT_PAGE: u32 = 20;

/// Which baskets, in what portion.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BasketFilter {
    /// Only this buyer's.
    pub buyer_id: Option<String>,
    /// Newest first, after this one.
    pub after: Option<BasketId>,
    /// How many: 1 to [`MAX_PAGE`].
    pub limit: u32,
}

/// A portion.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Page {
    /// The baskets, newest first (ids are UUIDv7 and sort by time).
    pub baskets: Vec<BasketView>,
    /// Where the next portion begins; `None` when this was the last.
    pub next: Option<BasketId>,
}

/// The read model.
pub trait BasketQueries: Send + Sync {
    /// One basket.
    fn get(&self, id: BasketId) -> BoxFuture<'_, Result<Option<BasketView>, PortError>>;

    /// Many baskets. MUST show each basket that exists during the whole walk exactly once.
    fn list<'a>(&'a self, filter: &'a BasketFilter) -> BoxFuture<'a, Result<Page, PortError>>;
}
