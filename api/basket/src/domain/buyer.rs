//! Who buys, and how they pay.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::validation::{PRINTABLE, ValidationError, bounded};

/// The shop's own name for a buyer; means nothing to us.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(try_from = "String", into = "String")]
#[schemars(extend("minLength" = 1, "maxLength" = 100, "pattern" = PRINTABLE, "examples" = ["buyer-17"]))]
pub struct BuyerId(String);

impl TryFrom<String> for BuyerId {
    type Error = ValidationError;

    fn try_from(text: String) -> Result<Self, ValidationError> {
        bounded("buyer_id", text, 100).map(BuyerId)
    }
}

impl From<BuyerId> for String {
    fn from(buyer: BuyerId) -> String {
        buyer.0
    }
}

impl BuyerId {
    /// As text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// How a basket is paid. Only the kind: no card number ever comes near this service.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
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
