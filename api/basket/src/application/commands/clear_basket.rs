//! Take everything out of a basket.

use chrono::{DateTime, Utc};
use serde::Serialize;

use crate::application::Change;
use crate::domain::{Basket, BasketId, Refusal, Version};

/// The wish for an empty basket.
#[derive(Clone, Debug, Serialize)]
pub struct ClearBasket {
    /// Which basket.
    pub basket_id: BasketId,
    /// The version the caller knows, if it matters.
    pub expected_version: Option<Version>,
}

impl Change for ClearBasket {
    const TYPE: &'static str = "clear_basket";

    fn basket_id(&self) -> BasketId {
        self.basket_id
    }

    fn expected_version(&self) -> Option<Version> {
        self.expected_version
    }

    fn apply(&self, basket: &mut Basket, now: DateTime<Utc>) -> Result<(), Refusal> {
        basket.clear(now)
    }
}
