//! One line of a basket: a snapshot of what the shop offered when it was put in.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::money::{Money, Price};
use super::validation::{PRINTABLE, ValidationError, bounded};

/// Most pieces of one article. A shop that sells more at once does not use a basket.
pub const MAX_QUANTITY: u32 = 1_000;

/// The shop's article number. It is part of a path, so it cannot be one of the two names that a path resolves.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(try_from = "String", into = "String")]
#[schemars(extend("minLength" = 1, "maxLength" = 64, "pattern" = PRINTABLE, "not" = { "enum": [".", ".."] },
                  "examples" = ["tea-250"]))]
pub struct Sku(String);

impl TryFrom<String> for Sku {
    type Error = ValidationError;

    fn try_from(text: String) -> Result<Self, ValidationError> {
        if text == "." || text == ".." {
            return Err(ValidationError::new("sku", "must not be '.' or '..'"));
        }
        bounded("sku", text, 64).map(Sku)
    }
}

impl From<Sku> for String {
    fn from(sku: Sku) -> String {
        sku.0
    }
}

/// The article's name, for people.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(try_from = "String", into = "String")]
#[schemars(extend("minLength" = 1, "maxLength" = 200, "pattern" = PRINTABLE, "examples" = ["Green tea, 250 g"]))]
pub struct Name(String);

impl TryFrom<String> for Name {
    type Error = ValidationError;

    fn try_from(text: String) -> Result<Self, ValidationError> {
        bounded("name", text, 200).map(Name)
    }
}

impl From<Name> for String {
    fn from(name: Name) -> String {
        name.0
    }
}

/// How many: 1 to [`MAX_QUANTITY`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(try_from = "u32", into = "u32")]
#[schemars(extend("minimum" = 1, "maximum" = MAX_QUANTITY))]
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

impl From<Quantity> for u32 {
    fn from(quantity: Quantity) -> u32 {
        quantity.0
    }
}

impl Quantity {
    /// With `more` pieces; `None` above [`MAX_QUANTITY`].
    pub(super) fn plus(self, more: Quantity) -> Option<Quantity> {
        self.0.checked_add(more.0).and_then(|pieces| Quantity::try_from(pieces).ok())
    }
}

/// A line.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Line {
    /// Article number.
    pub sku: Sku,
    /// Name.
    pub name: Name,
    /// How many.
    pub quantity: Quantity,
    /// Price of one piece.
    pub unit_price: Price,
}

impl Line {
    /// Unit price times quantity.
    pub fn total(&self) -> Money {
        self.unit_price.times(self.quantity)
    }
}
