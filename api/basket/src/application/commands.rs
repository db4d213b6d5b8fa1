//! One file per command.

mod abandon_basket;
mod add_item;
mod change_quantity;
mod check_out;
mod clear_basket;
mod create_basket;
mod remove_item;

pub use abandon_basket::AbandonBasket;
pub use add_item::AddItem;
pub use change_quantity::ChangeQuantity;
pub use check_out::CheckOut;
pub use clear_basket::ClearBasket;
pub use create_basket::CreateBasket;
pub use remove_item::RemoveItem;

use super::command::Command;

/// The names of all commands, as the log has them.
pub const TYPES: [&str; 7] = [
    CreateBasket::TYPE,
    <AddItem as Command>::TYPE,
    <ChangeQuantity as Command>::TYPE,
    <RemoveItem as Command>::TYPE,
    <ClearBasket as Command>::TYPE,
    <CheckOut as Command>::TYPE,
    <AbandonBasket as Command>::TYPE,
];
