//! What can be asked of baskets.
//!
//! Commands change a basket and go through the [`Bus`], each in one unit of work with its record, the state, the
//! read model and the outgoing events. [`queries`] read the read model and never see the bus. What the application
//! needs of the world is described in [`ports`].

mod bus;
mod command;
pub mod commands;
pub mod integration_events;
pub mod middleware;
pub mod ports;
pub mod queries;
pub mod reactions;
mod read_model;

pub use bus::{Bus, BusError, CommandResult};
pub use command::{Change, Command, CommandEnvelope, CommandId, CommandMetadata, CommandRecord, Outcome};
pub use read_model::{BasketView, CommandView, LineView};
