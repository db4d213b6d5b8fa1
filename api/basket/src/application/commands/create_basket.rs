//! Create a basket.

use chrono::{DateTime, Utc};
use serde::Serialize;

use crate::application::Command;
use crate::domain::{Basket, BasketId, BuyerId, Principal, Refusal};

/// The wish for a new basket.
#[derive(Clone, Debug, Serialize)]
pub struct CreateBasket {
    /// Identity it shall have; unused before.
    pub id: BasketId,
    /// For whom.
    pub buyer_id: BuyerId,
}

impl Command for CreateBasket {
    const TYPE: &'static str = "create_basket";

    fn basket_id(&self) -> Option<BasketId> {
        None
    }

    fn decide(&self, _: Option<Basket>, by: &Principal, now: DateTime<Utc>) -> Result<Basket, Refusal> {
        Ok(Basket::create(self.id, by, self.buyer_id.clone(), now))
    }
}
