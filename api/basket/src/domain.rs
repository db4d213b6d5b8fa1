//! The basket as the business speaks of it: an aggregate, its values, its events. No I/O, no clock, no generated ids:
//! everything comes in as an argument, so a test is complete in itself.

mod basket;
mod buyer;
mod events;
mod identity;
mod limits;
mod line;
mod money;
mod principal;
mod refusal;
mod validation;

pub use basket::{Basket, BasketSnapshot, Status};
pub use buyer::{BuyerId, PaymentMethod};
pub use events::{AbandonReason, BasketChanged, DomainEvent};
pub use identity::{BasketId, Version};
pub use limits::{MAX_EXACT, MAX_LINES, MAX_PRICE, MAX_QUANTITY};
pub use line::{Line, Name, Quantity, Sku};
pub use money::{Currency, Money, Price};
pub use principal::Principal;
pub use refusal::Refusal;
pub use validation::ValidationError;
