//! What else follows from a domain event, in the same unit of work. A new reaction is a new type and one line where the
//! bus is built; nothing that exists has to change.

use super::command::CommandEnvelope;
use super::ports::{BoxFuture, PortError};
use crate::domain::{Basket, DomainEvent};

/// Reacts to domain events. `U` is the unit of work: a reaction for every [`UnitOfWork`](super::ports::UnitOfWork) can
/// append events; one for an adapter's own type can write other tables in the same transaction.
pub trait Reaction<U>: Send + Sync {
    /// Reacts. Its writes are committed with the event or not at all.
    fn react<'a>(
        &'a self,
        event: &'a DomainEvent,
        basket: &'a Basket,
        cause: &'a CommandEnvelope,
        unit: &'a mut U,
    ) -> BoxFuture<'a, Result<(), PortError>>;
}
