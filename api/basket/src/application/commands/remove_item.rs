//! Take an article out of a basket.

use chrono::{DateTime, Utc};
use serde::Serialize;

use crate::application::Change;
use crate::domain::{Basket, BasketId, Refusal, Sku, Version};

/// The wish to be rid of an article.
#[derive(Clone, Debug, Serialize)]
pub struct RemoveItem {
    /// Which basket.
    pub basket_id: BasketId,
    /// Which article.
    pub sku: Sku,
    /// The version the caller knows, if it matters.
    pub expected_version: Option<Version>,
}

impl Change for RemoveItem {
    const TYPE: &'static str = "remove_item";

    fn basket_id(&self) -> BasketId {
        self.basket_id
    }

    fn expected_version(&self) -> Option<Version> {
        self.expected_version
    }

    fn apply(&self, basket: &mut Basket, now: DateTime<Utc>) -> Result<(), Refusal> {
        basket.remove_item(&self.sku, now)
    }
}
