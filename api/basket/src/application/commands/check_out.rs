//! Order what is in a basket.

use chrono::{DateTime, Utc};
use serde::Serialize;

use super::load;
use crate::application::ports::{BoxFuture, UnitOfWork};
use crate::application::{Command, Failure};
use crate::domain::{Basket, BasketId, PaymentMethod, Version};

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

impl Command for CheckOut {
    const TYPE: &'static str = "check_out";

    fn handle<'a>(
        &'a self,
        work: &'a mut dyn UnitOfWork,
        now: DateTime<Utc>,
    ) -> BoxFuture<'a, Result<Basket, Failure>> {
        Box::pin(async move {
            let mut basket = load(work, self.basket_id, self.expected_version).await?;
            basket.check_out(self.payment_method, now)?;
            Ok(basket)
        })
    }
}
