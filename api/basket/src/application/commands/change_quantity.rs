//! Have more or fewer pieces of an article.

use chrono::{DateTime, Utc};
use serde::Serialize;

use crate::application::Change;
use crate::domain::{Basket, BasketId, Quantity, Refusal, Sku, Version};

/// The wish for another number of pieces.
#[derive(Clone, Debug, Serialize)]
pub struct ChangeQuantity {
    /// Which basket.
    pub basket_id: BasketId,
    /// Of which article.
    pub sku: Sku,
    /// How many there shall be.
    pub quantity: Quantity,
    /// The version the caller knows, if it matters.
    pub expected_version: Option<Version>,
}

impl Change for ChangeQuantity {
    const TYPE: &'static str = "change_quantity";

    fn basket_id(&self) -> BasketId {
        self.basket_id
    }

    fn expected_version(&self) -> Option<Version> {
        self.expected_version
    }

    fn apply(&self, basket: &mut Basket, now: DateTime<Utc>) -> Result<(), Refusal> {
        basket.change_quantity(&self.sku, self.quantity, now)
    }
}
