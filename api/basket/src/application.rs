//! What can be asked of baskets.
//!
//! Commands change a basket. They go through the [`Bus`], each in one unit of work with its log entry, the state, the
//! read model and the outgoing events. [`queries`] read the read model and do not go through the bus. What the
//! application needs from outside is in [`ports`]; [`in_memory`] implements them without a database.

mod basket_summary;
mod basket_view;
mod bus;
mod command;
mod dispatch;
pub mod expire_baskets;
pub mod in_memory;
pub mod integration_events;
pub mod ports;
pub mod queries;
mod reaction;
mod retry;

pub use basket_summary::BasketSummary;
pub use basket_view::{BasketStatus, BasketView, LineView, MoneyView};
pub use bus::Bus;
pub use command::{
    BasketChange, BasketCommand, CommandContext, CommandEnvelope, CommandId, CommandType, IdempotencyKey,
    Outcome, OutcomeKind,
};
pub use dispatch::{CommandResult, Dispatch, DispatchError};
pub use reaction::Reaction;
pub use retry::Retry;
