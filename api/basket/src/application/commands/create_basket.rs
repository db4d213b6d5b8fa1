//! Create a basket.

use chrono::{DateTime, Utc};
use serde::Serialize;

use crate::application::ports::{BoxFuture, UnitOfWork};
use crate::application::{Command, Failure};
use crate::domain::{Basket, BasketId, BuyerId};

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

    fn handle<'a>(
        &'a self,
        _work: &'a mut dyn UnitOfWork,
        now: DateTime<Utc>,
    ) -> BoxFuture<'a, Result<Basket, Failure>> {
        Box::pin(async move { Ok(Basket::create(self.id, self.buyer_id.clone(), now)) })
    }
}
