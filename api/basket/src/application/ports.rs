//! Ports, implemented by adapters. MUST and MUST NOT as in RFC 2119.

use std::error::Error;
use std::future::Future;
use std::pin::Pin;

use super::command::{CommandEnvelope, CommandId, Outcome};
use super::integration_events::IntegrationEvent;
use crate::domain::{Basket, BasketId};

/// A boxed future, for traits that are used as objects.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// A port failed.
#[derive(Debug, thiserror::Error)]
pub enum PortError {
    /// Another command changed the same data. Nothing was written; the next attempt may succeed.
    #[error("the store gave way to another command")]
    Conflict(#[source] Box<dyn Error + Send + Sync>),
    /// The store did not finish in time, because of a lock or of its load. A later attempt may succeed.
    #[error("the store did not finish in time")]
    TimedOut(#[source] Box<dyn Error + Send + Sync>),
    /// The store is down or full. A later attempt may succeed.
    #[error("the store is not available")]
    Unavailable(#[source] Box<dyn Error + Send + Sync>),
    /// The store rejected something valid: a bug.
    #[error("the store refused")]
    Failed(#[source] Box<dyn Error + Send + Sync>),
}

/// Begins units of work.
pub trait UnitOfWorkFactory: Send + Sync {
    /// What it begins.
    type Unit: UnitOfWork;

    /// Begins one. Dropping it MUST undo everything it did.
    fn begin(&self) -> impl Future<Output = Result<Self::Unit, PortError>> + Send;
}

/// The reads and writes of one command: all of them are durable and visible after [`commit`](Self::commit), or none is.
pub trait UnitOfWork: Send {
    /// Claims the command's idempotency key. MUST NOT wait for a concurrent duplicate, and MUST NOT let two units that
    /// commit have one key: the one that comes second fails with [`PortError::Conflict`].
    fn claim(&mut self, command: &CommandEnvelope) -> impl Future<Output = Result<Claim, PortError>> + Send;

    /// The basket, if there is one.
    fn load(&mut self, id: BasketId) -> impl Future<Output = Result<Option<Basket>, PortError>> + Send;

    /// Stores the basket. MUST fail with [`PortError::Conflict`], here or at commit, if the stored version is not
    /// [`Basket::stored_version`]. Events that are appended afterwards MUST get the order of the versions.
    fn save(&mut self, basket: &Basket) -> impl Future<Output = Result<(), PortError>> + Send;

    /// Stores the basket in the read model.
    fn project(&mut self, basket: &Basket) -> impl Future<Output = Result<(), PortError>> + Send;

    /// Appends events to the outbox, in this order, after those appended before.
    fn append(
        &mut self,
        events: &[IntegrationEvent],
        cause: &CommandEnvelope,
    ) -> impl Future<Output = Result<(), PortError>> + Send;

    /// Records the command with its outcome and the ids of the appended events.
    fn complete(
        &mut self,
        command: &CommandEnvelope,
        outcome: &Outcome,
    ) -> impl Future<Output = Result<(), PortError>> + Send;

    /// Makes everything durable and visible at once.
    fn commit(self) -> impl Future<Output = Result<(), PortError>> + Send;
}

/// The result of claiming a command's idempotency key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Claim {
    /// The command is new, or has no key: execute it.
    New,
    /// A command with this key was executed before.
    Completed(CompletedCommand),
    /// A command with this key is being executed.
    InProgress,
}

/// A command that was executed before.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CompletedCommand {
    /// Its identity.
    pub id: CommandId,
    /// Fingerprint of its request.
    pub fingerprint: String,
    /// Its outcome.
    pub outcome: Outcome,
}
