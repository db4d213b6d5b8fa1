//! What the application needs of the world. Adapters fulfil these contracts; the words MUST and MUST NOT are meant.

use std::error::Error;
use std::future::Future;
use std::pin::Pin;

use super::command::{Cause, CommandId, Outcome};
use super::integration::IntegrationEvent;
use super::view::BasketView;
use crate::domain::{Basket, BasketId};

/// A future behind a pointer, so that ports can be trait objects.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// The world did not do its part.
#[derive(Debug, thiserror::Error)]
pub enum PortError {
    /// It is away, full or too slow: the same may succeed later.
    #[error("the store is not available")]
    Unavailable(#[source] Box<dyn Error + Send + Sync>),
    /// It refused something that should not be refused: a bug.
    #[error("the store refused")]
    Failed(#[source] Box<dyn Error + Send + Sync>),
}

/// Begins units of work.
pub trait Units: Send + Sync {
    /// Begins one. Nothing is visible to anybody before it is committed, and dropping it MUST leave no trace.
    fn begin(&self) -> BoxFuture<'_, Result<Box<dyn UnitOfWork>, PortError>>;
}

/// A command's record, before its work.
#[derive(Clone, Debug)]
pub struct CommandRecord<'a> {
    /// Type of the command.
    pub command_type: &'static str,
    /// Its content, for the audit log.
    pub payload: serde_json::Value,
    /// By whom, as part of what.
    pub cause: &'a Cause,
    /// The caller's name for it.
    pub idempotency_key: Option<&'a str>,
    /// Tells the same wish from another one under the same key.
    pub fingerprint: &'a str,
    /// When it arrived.
    pub received_at: chrono::DateTime<chrono::Utc>,
}

/// What became of the claim to execute a command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Claim {
    /// It is new, and ours to execute.
    New,
    /// It was executed before.
    Repeated {
        /// As this command.
        command: CommandId,
        /// With this outcome.
        outcome: Outcome,
    },
    /// The key was used for another wish.
    KeyReused,
    /// The same is being executed at this moment.
    InProgress,
}

/// Everything one command reads and writes, in one transaction.
pub trait UnitOfWork: Send {
    /// Records the command as begun and claims its key. MUST answer without waiting for a twin that is under way,
    /// and MUST NOT let two units claim one key.
    fn claim<'a>(&'a mut self, record: &'a CommandRecord<'a>) -> BoxFuture<'a, Result<Claim, PortError>>;

    /// The basket, locked against other units until this one ends: events of one basket get their order from this.
    fn load(&mut self, id: BasketId) -> BoxFuture<'_, Result<Option<Basket>, PortError>>;

    /// Stores the basket. MUST fail if the stored version is not the one before its events.
    fn save<'a>(&'a mut self, basket: &'a Basket) -> BoxFuture<'a, Result<(), PortError>>;

    /// Stores what readers see.
    fn project<'a>(&'a mut self, view: &'a BasketView) -> BoxFuture<'a, Result<(), PortError>>;

    /// Puts an event into the outbox, behind those put there before.
    fn publish<'a>(
        &'a mut self,
        event: &'a IntegrationEvent,
        cause: &'a Cause,
    ) -> BoxFuture<'a, Result<(), PortError>>;

    /// Completes the command's record with its outcome and the events it published. MUST be the only completion.
    fn complete<'a>(
        &'a mut self,
        command: CommandId,
        outcome: &'a Outcome,
    ) -> BoxFuture<'a, Result<(), PortError>>;

    /// Makes all of it durable and visible at once.
    fn commit(self: Box<Self>) -> BoxFuture<'static, Result<(), PortError>>;
}
