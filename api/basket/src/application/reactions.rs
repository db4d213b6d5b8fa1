//! What follows from a domain event, in the same unit of work. A new reaction is a new file and a line where the
//! bus is made; nothing that exists has to change.

mod integration_events;
mod read_model;

pub use integration_events::IntegrationEvents;
pub use read_model::ReadModel;

use super::command::Cause;
use super::ports::{BoxFuture, PortError, UnitOfWork};
use crate::domain::{Basket, DomainEvent};

/// Something that follows from domain events.
pub trait Reaction: Send + Sync {
    /// Reacts to `event`; `basket` is as it is after all events of the command. What it writes to `work` is
    /// committed with the change or not at all.
    fn react<'a>(
        &'a self,
        event: &'a DomainEvent,
        basket: &'a Basket,
        cause: &'a Cause,
        work: &'a mut dyn UnitOfWork,
    ) -> BoxFuture<'a, Result<(), PortError>>;
}
