//! Amounts in minor units: cents, not floating-point euros.

use serde::Deserialize;

use super::limits::MAX_PRICE;
use super::validation::ValidationError;

/// An ISO 4217 code, such as EUR. Its form is checked, not its place in the list, which changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct Currency([u8; 3]);

impl TryFrom<String> for Currency {
    type Error = ValidationError;

    fn try_from(text: String) -> Result<Self, ValidationError> {
        let code =
            <[u8; 3]>::try_from(text.as_bytes()).ok().filter(|code| code.iter().all(u8::is_ascii_uppercase));
        let problem = "must be three capital letters (ISO 4217), such as EUR";
        code.map(Currency).ok_or_else(|| ValidationError::new("currency", problem))
    }
}

impl Currency {
    /// The currency that was stored, under whatever rules held then.
    pub fn from_stored(code: [u8; 3]) -> Currency {
        Currency(code)
    }

    /// Its three letters.
    pub fn code(&self) -> String {
        self.0.iter().copied().map(char::from).collect()
    }
}

/// An amount in one currency, in minor units.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Money {
    /// Minor units, such as cents.
    pub amount: i64,
    /// Currency.
    pub currency: Currency,
}

impl Money {
    /// The sum with an amount of the same currency.
    pub(super) fn plus(self, other: Money) -> Money {
        Money { amount: self.amount.saturating_add(other.amount), ..self }
    }

    /// A multiple.
    pub(super) fn times(self, factor: u32) -> Money {
        Money { amount: self.amount.saturating_mul(i64::from(factor)), ..self }
    }
}

/// The price of one piece: 0 to [`MAX_PRICE`] minor units.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "Money")]
pub struct Price(Money);

impl Price {
    /// `amount` minor units.
    pub fn new(amount: i64, currency: Currency) -> Result<Price, ValidationError> {
        if (0..=MAX_PRICE).contains(&amount) {
            return Ok(Price(Money { amount, currency }));
        }
        Err(ValidationError::new("amount", format!("must be 0 to {MAX_PRICE} minor units")))
    }

    pub(super) fn from_stored(money: Money) -> Price {
        Price(money)
    }

    /// The amount with its currency.
    pub fn money(&self) -> Money {
        self.0
    }

    /// Currency.
    pub fn currency(&self) -> Currency {
        self.0.currency
    }
}

impl TryFrom<Money> for Price {
    type Error = ValidationError;

    fn try_from(money: Money) -> Result<Self, ValidationError> {
        Price::new(money.amount, money.currency)
    }
}
