//! Amounts in minor units: cents, not floating-point euros.

use serde::{Deserialize, Serialize};

use super::text::Invalid;

/// Largest amount, in minor units: ten thousand million of a currency with cents. Far above any basket, and far
/// enough below `i64::MAX` that sums are checked long before they overflow.
pub const MAX_AMOUNT: i64 = 1_000_000_000_000;

/// An ISO 4217 code, such as EUR. Its form is checked, not its place in the list, which changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Currency([u8; 3]);

impl TryFrom<String> for Currency {
    type Error = Invalid;

    fn try_from(text: String) -> Result<Self, Invalid> {
        let code =
            <[u8; 3]>::try_from(text.as_bytes()).ok().filter(|code| code.iter().all(u8::is_ascii_uppercase));
        code.map(Currency)
            .ok_or_else(|| Invalid::new("currency", "must be three capital letters (ISO 4217), such as EUR"))
    }
}

impl From<Currency> for String {
    fn from(currency: Currency) -> String {
        currency.0.iter().copied().map(char::from).collect()
    }
}

/// A non-negative amount in one currency.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "RawMoney", into = "RawMoney")]
pub struct Money {
    amount: i64,
    currency: Currency,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawMoney {
    amount: i64,
    currency: Currency,
}

impl Money {
    /// `amount` in minor units, 0 to [`MAX_AMOUNT`].
    pub fn new(amount: i64, currency: Currency) -> Result<Money, Invalid> {
        if !(0..=MAX_AMOUNT).contains(&amount) {
            return Err(Invalid::new("amount", format!("must be 0 to {MAX_AMOUNT} minor units")));
        }
        Ok(Money { amount, currency })
    }

    /// Minor units.
    pub fn amount(&self) -> i64 {
        self.amount
    }

    /// Currency.
    pub fn currency(&self) -> Currency {
        self.currency
    }

    /// `times` this amount; `None` above [`MAX_AMOUNT`].
    pub fn times(&self, times: u32) -> Option<Money> {
        let amount = self.amount.checked_mul(i64::from(times))?;
        Money::new(amount, self.currency).ok()
    }

    /// The sum; `None` for another currency or above [`MAX_AMOUNT`].
    pub fn plus(&self, other: Money) -> Option<Money> {
        let amount = self.amount.checked_add(other.amount).filter(|_| self.currency == other.currency)?;
        Money::new(amount, self.currency).ok()
    }
}

impl TryFrom<RawMoney> for Money {
    type Error = Invalid;

    fn try_from(raw: RawMoney) -> Result<Self, Invalid> {
        Money::new(raw.amount, raw.currency)
    }
}

impl From<Money> for RawMoney {
    fn from(money: Money) -> RawMoney {
        RawMoney { amount: money.amount, currency: money.currency }
    }
}
