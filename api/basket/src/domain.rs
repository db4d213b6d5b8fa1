//! The basket as the business speaks of it: an aggregate, its values, its events. No I/O, no clock, no ids made up
//! here: everything comes in as an argument, so that a test says all there is to say.

mod basket;
mod buyer;
mod events;
mod line;
mod money;
mod principal;
mod refusal;
mod validation;

pub use basket::{Basket, BasketId, BasketSnapshot, MAX_LINES, Status, Version};
pub use buyer::{BuyerId, PaymentMethod};
pub use events::{AbandonReason, DomainEvent};
pub use line::{Line, MAX_QUANTITY, Name, Quantity, Sku};
pub use money::{Currency, MAX_PRICE, Money, Price};
pub use principal::Principal;
pub use refusal::Refusal;
pub use validation::ValidationError;
