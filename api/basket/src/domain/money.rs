//! Amounts in minor units: cents, not floating-point euros.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::basket::MAX_LINES;
use super::line::{MAX_QUANTITY, Quantity};
use super::validation::ValidationError;

/// Highest price of one piece, in minor units: a hundred million of a currency with cents.
pub const MAX_PRICE: i64 = 10_000_000_000;

/// Largest integer that every JSON reader keeps exactly (RFC 8259, section 6).
const MAX_EXACT: i64 = (1 << 53) - 1;

// The fullest basket at the highest price still has an exact total: sums need no check while they are made.
const _: () = assert!(MAX_PRICE <= MAX_EXACT / MAX_QUANTITY as i64 / MAX_LINES as i64);

/// An ISO 4217 code, such as EUR. Its form is checked, not its place in the list, which changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(try_from = "String", into = "String")]
#[schemars(extend("pattern" = "^[A-Z]{3}$", "examples" = ["EUR"]))]
pub struct Currency([u8; 3]);

impl TryFrom<String> for Currency {
    type Error = ValidationError;

    fn try_from(text: String) -> Result<Self, ValidationError> {
        let code =
            <[u8; 3]>::try_from(text.as_bytes()).ok().filter(|code| code.iter().all(u8::is_ascii_uppercase));
        code.map(Currency).ok_or_else(|| {
            ValidationError::new("currency", "must be three capital letters (ISO 4217), such as EUR")
        })
    }
}

impl From<Currency> for String {
    fn from(currency: Currency) -> String {
        currency.0.iter().copied().map(char::from).collect()
    }
}

/// An amount in one currency, in minor units.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Money {
    /// Minor units, such as cents.
    #[schemars(range(min = 0, max = MAX_EXACT))]
    amount: i64,
    currency: Currency,
}

impl Money {
    /// Minor units.
    pub fn amount(&self) -> i64 {
        self.amount
    }

    /// Currency.
    pub fn currency(&self) -> Currency {
        self.currency
    }

    /// The sum with an amount of the same currency.
    pub(super) fn plus(self, other: Money) -> Money {
        Money { amount: self.amount.saturating_add(other.amount), ..self }
    }
}

/// The price of one piece: 0 to [`MAX_PRICE`] minor units.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(try_from = "Money", into = "Money")]
#[schemars(inline, extend("properties" = {
    "amount": {
        "description": "Minor units, such as cents.", "type": "integer", "minimum": 0, "maximum": MAX_PRICE
    },
    "currency": { "type": "string", "pattern": "^[A-Z]{3}$", "examples": ["EUR"] }
}))]
pub struct Price(Money);

impl Price {
    /// `amount` minor units.
    pub fn new(amount: i64, currency: Currency) -> Result<Price, ValidationError> {
        if (0..=MAX_PRICE).contains(&amount) {
            return Ok(Price(Money { amount, currency }));
        }
        Err(ValidationError::new("amount", format!("must be 0 to {MAX_PRICE} minor units")))
    }

    /// Currency.
    pub fn currency(&self) -> Currency {
        self.0.currency
    }

    /// What that many pieces cost.
    pub fn times(&self, pieces: Quantity) -> Money {
        Money { amount: self.0.amount.saturating_mul(i64::from(u32::from(pieces))), ..self.0 }
    }
}

impl TryFrom<Money> for Price {
    type Error = ValidationError;

    fn try_from(money: Money) -> Result<Self, ValidationError> {
        Price::new(money.amount, money.currency)
    }
}

impl From<Price> for Money {
    fn from(price: Price) -> Money {
        price.0
    }
}
