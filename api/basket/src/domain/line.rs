//! One line of a basket: a snapshot of the shop's offer at the time it was added.

use serde::Deserialize;

use super::limits::MAX_QUANTITY;
use super::money::{Money, Price};
use super::validation::{ValidationError, bounded};

/// The shop's article number. The two relative path names are rejected: an address could not hold them.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct Sku(String);

impl TryFrom<String> for Sku {
    type Error = ValidationError;

    fn try_from(text: String) -> Result<Self, ValidationError> {
        if text == "." || text == ".." {
            return Err(ValidationError::new("sku", "must not be '.' or '..'"));
        }
        bounded("sku", text, Sku::MAX_CHARACTERS).map(Sku)
    }
}

impl Sku {
    /// Longest article number.
    pub const MAX_CHARACTERS: usize = 64;

    /// As text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// The article's name, for people.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct Name(String);

impl TryFrom<String> for Name {
    type Error = ValidationError;

    fn try_from(text: String) -> Result<Self, ValidationError> {
        bounded("name", text, Name::MAX_CHARACTERS).map(Name)
    }
}

impl Name {
    /// Longest name.
    pub const MAX_CHARACTERS: usize = 200;

    /// As text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// Number of pieces: 1 to [`MAX_QUANTITY`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "u32")]
pub struct Quantity(u32);

impl TryFrom<u32> for Quantity {
    type Error = ValidationError;

    fn try_from(pieces: u32) -> Result<Self, ValidationError> {
        if (1..=MAX_QUANTITY).contains(&pieces) {
            return Ok(Quantity(pieces));
        }
        Err(ValidationError::new("quantity", format!("must be 1 to {MAX_QUANTITY}")))
    }
}

impl Quantity {
    /// Number of pieces.
    pub fn pieces(self) -> u32 {
        self.0
    }

    /// The sum; `None` above [`MAX_QUANTITY`].
    pub(super) fn checked_add(self, more: Quantity) -> Option<Quantity> {
        self.0.checked_add(more.0).and_then(|pieces| Quantity::try_from(pieces).ok())
    }
}

/// A line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Line {
    /// Article number.
    pub sku: Sku,
    /// Name.
    pub name: Name,
    /// Number of pieces.
    pub quantity: Quantity,
    /// Price of one piece.
    pub unit_price: Price,
}

impl Line {
    /// The line that was stored, under whatever rules held then.
    pub fn from_stored(sku: String, name: String, pieces: u32, unit_price: Money) -> Line {
        let unit_price = Price::from_stored(unit_price);
        Line { sku: Sku(sku), name: Name(name), quantity: Quantity(pieces), unit_price }
    }

    /// Unit price times quantity.
    pub fn total(&self) -> Money {
        self.unit_price.money().times(self.quantity.pieces())
    }
}
