//! One file per command.

mod add_item;
mod check_out;
mod create_basket;

pub use add_item::AddItem;
pub use check_out::CheckOut;
pub use create_basket::CreateBasket;

use super::command::Failure;
use super::ports::UnitOfWork;
use crate::domain::{Basket, BasketId, Refusal, Version};

/// The basket a command is about, at the version its sender knew.
async fn load(work: &mut dyn UnitOfWork, id: BasketId, expected: Option<Version>) -> Result<Basket, Failure> {
    let basket = work.load(id).await?.ok_or(Refusal::BasketNotFound)?;
    basket.require_version(expected)?;
    Ok(basket)
}
