//! Order what is in a basket.

use chrono::{DateTime, Utc};
use serde::Serialize;

use crate::application::Change;
use crate::domain::{Basket, BasketId, PaymentMethod, Refusal, Version};

/// The wish to order.
#[derive(Clone, Debug, Serialize)]
pub struct CheckOut {
    /// Which basket.
    pub basket_id: BasketId,
    /// How it is paid.
    pub payment_method: PaymentMethod,
    /// The version the caller knows, if it matters.
    pub expected_version: Option<Version>,
}

impl Change for CheckOut {
    const TYPE: &'static str = "check_out";

    fn basket_id(&self) -> BasketId {
        self.basket_id
    }

    fn expected_version(&self) -> Option<Version> {
        self.expected_version
    }

    fn apply(&self, basket: &mut Basket, now: DateTime<Utc>) -> Result<(), Refusal> {
        basket.check_out(self.payment_method, now)
    }
}
