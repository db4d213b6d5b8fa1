//! Put an article into a basket.

use chrono::{DateTime, Utc};
use serde::Serialize;

use crate::application::Change;
use crate::domain::{Basket, BasketId, Line, Refusal, Version};

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

impl Change for AddItem {
    const TYPE: &'static str = "add_item";

    fn basket_id(&self) -> BasketId {
        self.basket_id
    }

    fn expected_version(&self) -> Option<Version> {
        self.expected_version
    }

    fn apply(&self, basket: &mut Basket, now: DateTime<Utc>) -> Result<(), Refusal> {
        basket.add_item(self.line.clone(), now)
    }
}
