//! One line of a basket: a snapshot of what the shop offered when it was put in.

use serde::{Deserialize, Serialize};

use super::money::Money;
use super::text::{Invalid, bounded};

/// Most pieces of one article. A shop that sells more at once does not use a basket.
pub const MAX_QUANTITY: u32 = 9_999;

/// The shop's article number.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Sku(String);

impl TryFrom<String> for Sku {
    type Error = Invalid;

    fn try_from(text: String) -> Result<Self, Invalid> {
        bounded("sku", text, 64).map(Sku)
    }
}

impl From<Sku> for String {
    fn from(sku: Sku) -> String {
        sku.0
    }
}

/// The article's name, for people.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Name(String);

impl TryFrom<String> for Name {
    type Error = Invalid;

    fn try_from(text: String) -> Result<Self, Invalid> {
        bounded("name", text, 200).map(Name)
    }
}

impl From<Name> for String {
    fn from(name: Name) -> String {
        name.0
    }
}

/// How many: 1 to [`MAX_QUANTITY`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "u32", into = "u32")]
pub struct Quantity(u32);

impl TryFrom<u32> for Quantity {
    type Error = Invalid;

    fn try_from(pieces: u32) -> Result<Self, Invalid> {
        if (1..=MAX_QUANTITY).contains(&pieces) {
            return Ok(Quantity(pieces));
        }
        Err(Invalid::new("quantity", format!("must be 1 to {MAX_QUANTITY}")))
    }
}

impl From<Quantity> for u32 {
    fn from(quantity: Quantity) -> u32 {
        quantity.0
    }
}

/// A line.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Line {
    /// Article number.
    pub sku: Sku,
    /// Name.
    pub name: Name,
    /// How many.
    pub quantity: Quantity,
    /// Price of one piece.
    pub unit_price: Money,
}

impl Line {
    /// Price of the line; `None` when it is too large to be a price.
    pub fn total(&self) -> Option<Money> {
        self.unit_price.times(self.quantity.into())
    }
}
