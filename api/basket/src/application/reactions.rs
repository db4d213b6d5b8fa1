//! What follows from a domain event, in the same unit of work. A new reaction is a new file and a line where the
//! bus is made; nothing that exists has to change.

mod integration_events;
mod read_model;

pub use integration_events::IntegrationEvents;
pub use read_model::ReadModel;

use super::command::CommandMetadata;
use super::ports::Changes;
use crate::domain::{Basket, DomainEvent};

/// A domain event, with what surrounds it.
#[derive(Clone, Copy, Debug)]
pub struct Happened<'a> {
    /// What happened.
    pub event: &'a DomainEvent,
    /// The basket after all events of the command.
    pub basket: &'a Basket,
    /// Why.
    pub cause: &'a CommandMetadata,
}

/// Something that follows from domain events.
pub trait Reaction: Send + Sync {
    /// Reacts. What it adds to `changes` is committed with the event or not at all.
    fn react(&self, happened: &Happened<'_>, changes: &mut Changes) -> Result<(), serde_json::Error>;
}
