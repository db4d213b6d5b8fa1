//! Give a basket up.

use chrono::{DateTime, Utc};
use serde::Serialize;

use crate::application::Change;
use crate::domain::{AbandonReason, Basket, BasketId, Refusal, Version};

/// The wish to give a basket up.
#[derive(Clone, Debug, Serialize)]
pub struct AbandonBasket {
    /// Which basket.
    pub basket_id: BasketId,
    /// Why.
    pub reason: AbandonReason,
    /// The version the caller knows, if it matters.
    pub expected_version: Option<Version>,
}

impl Change for AbandonBasket {
    const TYPE: &'static str = "abandon_basket";

    fn basket_id(&self) -> BasketId {
        self.basket_id
    }

    fn expected_version(&self) -> Option<Version> {
        self.expected_version
    }

    fn apply(&self, basket: &mut Basket, now: DateTime<Utc>) -> Result<(), Refusal> {
        basket.abandon(self.reason, now)
    }
}
