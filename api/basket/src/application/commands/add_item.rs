//! Put an article into a basket.

use chrono::{DateTime, Utc};
use serde::Serialize;

use super::load;
use crate::application::ports::{BoxFuture, UnitOfWork};
use crate::application::{Command, Failure};
use crate::domain::{Basket, BasketId, Line, Version};

/// The wish for an article in a basket.
#[derive(Clone, Debug, Serialize)]
pub struct AddItem {
    /// Which basket.
    pub basket_id: BasketId,
    /// What to add, as the shop offers it now.
    pub line: Line,
    /// The version the caller knows, if it matters.
    pub expected_version: Option<Version>,
}

impl Command for AddItem {
    const TYPE: &'static str = "add_item";

    fn handle<'a>(
        &'a self,
        work: &'a mut dyn UnitOfWork,
        now: DateTime<Utc>,
    ) -> BoxFuture<'a, Result<Basket, Failure>> {
        Box::pin(async move {
            let mut basket = load(work, self.basket_id, self.expected_version).await?;
            basket.add_item(self.line.clone(), now)?;
            Ok(basket)
        })
    }
}
