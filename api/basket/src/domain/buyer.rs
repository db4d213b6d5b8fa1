//! The buyer, and how an order is paid.

use serde::Deserialize;

use super::validation::{ValidationError, bounded};

/// The shop's id of a buyer. It has no meaning in this service.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct BuyerId(String);

impl TryFrom<String> for BuyerId {
    type Error = ValidationError;

    fn try_from(text: String) -> Result<Self, ValidationError> {
        bounded("buyer_id", text, BuyerId::MAX_CHARACTERS).map(BuyerId)
    }
}

impl BuyerId {
    /// Longest id.
    pub const MAX_CHARACTERS: usize = 100;

    /// The id that was stored, under whatever rules held then.
    pub fn from_stored(text: String) -> BuyerId {
        BuyerId(text)
    }

    /// As text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// How a basket is paid. Only the kind: no card number ever reaches this service.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, strum::EnumString, strum::IntoStaticStr)]
#[serde(rename_all = "snake_case")]
#[strum(serialize_all = "snake_case", const_into_str)]
pub enum PaymentMethod {
    /// Credit or debit card.
    Card,
    /// Transfer from a bank account.
    BankTransfer,
    /// Invoice after delivery.
    Invoice,
    /// An online wallet.
    Wallet,
    /// A gift card of the shop.
    GiftCard,
    /// Cash at the door.
    CashOnDelivery,
}
