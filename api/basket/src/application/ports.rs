//! What the application needs of the world. Adapters fulfil these contracts; the words MUST and MUST NOT are meant.

use std::error::Error;
use std::future::Future;
use std::pin::Pin;

use super::command::{CommandId, CommandRecord, Outcome};
use super::integration_events::IntegrationEvent;
use super::read_model::BasketView;
use crate::domain::Basket;

/// A future behind a pointer, so that ports can be trait objects.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// The world did not do its part.
#[derive(Debug, thiserror::Error)]
pub enum PortError {
    /// Two units of work got in each other's way and this one was rolled back: it may succeed at once.
    #[error("the store gave way to another command")]
    Conflict(#[source] Box<dyn Error + Send + Sync>),
    /// It is away, full or too slow: the same may succeed later.
    #[error("the store is not available")]
    Unavailable(#[source] Box<dyn Error + Send + Sync>),
    /// It refused something that should not be refused: a bug.
    #[error("the store refused")]
    Failed(#[source] Box<dyn Error + Send + Sync>),
}

/// How a unit of work sees to it that its basket does not change under it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Isolation {
    /// It does not: [`UnitOfWork::commit`] notices. Fewest round trips; right while commands seldom meet.
    Optimistic,
    /// The basket is locked from look-up to commit; others queue. For commands that have met one.
    Locking,
}

/// Begins units of work.
pub trait UnitOfWorkFactory: Send + Sync {
    /// Begins one. Dropping it MUST leave no trace.
    fn begin(&self, isolation: Isolation) -> BoxFuture<'_, Result<Box<dyn UnitOfWork>, PortError>>;
}

/// What one command reads and writes.
pub trait UnitOfWork: Send {
    /// What is known before the work is done.
    fn look_up<'a>(&'a mut self, record: &'a CommandRecord<'a>) -> BoxFuture<'a, Result<Found, PortError>>;

    /// Writes record, key, state, read model and outbox rows: all of it, durable and visible at once, or nothing.
    /// MUST NOT wait for a twin of the command that is under way, and MUST NOT let two commands have one key.
    fn commit<'a>(
        self: Box<Self>,
        record: &'a CommandRecord<'a>,
        changes: &'a Changes,
    ) -> BoxFuture<'a, Result<Committed, PortError>>;
}

/// What is known before the work is done.
#[derive(Debug, Default)]
pub struct Found {
    /// The command that had the key first.
    pub first: Option<First>,
    /// The basket the command needs to see.
    pub basket: Option<Basket>,
}

/// The command that had a key first.
#[derive(Debug)]
pub struct First {
    /// What was wished.
    pub fingerprint: String,
    /// As which command.
    pub command: CommandId,
    /// With this outcome.
    pub outcome: Outcome,
}

/// Everything a command writes, collected while it is worked on and written at its end.
#[derive(Debug)]
pub struct Changes {
    /// How the command ended.
    pub outcome: Outcome,
    /// The basket, if it changed. Each of its events is one version: the stored one MUST be that many behind.
    pub basket: Option<Basket>,
    /// What readers see from now on.
    pub view: Option<BasketView>,
    /// What other services are told, in this order.
    pub events: Vec<IntegrationEvent>,
}

/// What became of the changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Committed {
    /// They are durable.
    Done,
    /// Nothing was written: the basket has changed or the key was taken since the look-up.
    Conflict,
    /// Nothing was written: a twin of the command is under way.
    InProgress,
}
