//! The command bus: the one path every command takes.
//!
//! middleware -> look up -> decide -> react -> commit. A refusal takes the same path without the reactions: it is
//! an outcome, and a repeated command gets it again.

use std::sync::Arc;

use super::command::{Command, CommandEnvelope, CommandId, CommandRecord, Outcome};
use super::middleware::{Decision, Middleware, Next, Wish};
use super::ports::{Changes, Committed, First, Found, Isolation, PortError, UnitOfWorkFactory};
use super::reactions::{Happened, Reaction};
use super::read_model::BasketView;
use crate::domain::Basket;

/// What the caller of a command learns.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CommandResult {
    /// The command as it is in the log; the first one, when this was a repetition.
    pub command: CommandId,
    /// How it ended.
    pub outcome: Outcome,
    /// Whether the outcome is that of an earlier execution.
    pub replayed: bool,
}

/// Why there is no outcome. Nothing was written.
#[derive(Debug, thiserror::Error)]
pub enum BusError {
    /// The same command is being executed at this moment.
    #[error("a command with this key is being executed")]
    InProgress,
    /// The key was used for another wish.
    #[error("the key was used for another command")]
    KeyReused,
    /// Another command was faster; the next attempt will see what it did.
    #[error("another command changed the basket at the same time")]
    Conflict,
    /// The world did not do its part.
    #[error(transparent)]
    Port(#[from] PortError),
    /// A content that cannot be written as JSON: a bug.
    #[error("the command or one of its events cannot be written down")]
    SerializationFailed(#[from] serde_json::Error),
}

/// See the module's text.
pub struct Bus {
    units: Arc<dyn UnitOfWorkFactory>,
    reactions: Vec<Box<dyn Reaction>>,
    middleware: Vec<Box<dyn Middleware>>,
}

impl Bus {
    /// A bus that does its work in `units`.
    pub fn new(units: Arc<dyn UnitOfWorkFactory>) -> Bus {
        Bus { units, reactions: Vec::new(), middleware: Vec::new() }
    }

    /// Lets `reaction` follow from each domain event, after those registered before.
    #[must_use]
    pub fn reacting(mut self, reaction: impl Reaction + 'static) -> Bus {
        self.reactions.push(Box::new(reaction));
        self
    }

    /// Puts `middleware` around the work, inside that registered before.
    #[must_use]
    pub fn with(mut self, middleware: impl Middleware + 'static) -> Bus {
        self.middleware.push(Box::new(middleware));
        self
    }

    /// Executes a command once, however often it is sent.
    pub async fn dispatch<C: Command>(&self, wish: &CommandEnvelope<C>) -> Result<CommandResult, BusError> {
        let record = CommandRecord::of(wish)?;
        let decide = |basket| wish.command.decide(basket, &wish.cause.principal, wish.received_at);
        let wish = Wish { record: &record, decide: &decide, isolation: Isolation::Optimistic };
        Next::new(self, &self.middleware).run(wish).await
    }

    /// One attempt.
    pub(super) async fn execute(&self, wish: Wish<'_>) -> Result<CommandResult, BusError> {
        let record = wish.record;
        let mut unit = self.units.begin(wish.isolation).await?;
        // A command that makes a basket sees none: whether its key is new, the commit tells.
        let blind = record.basket_id.is_none() && wish.isolation == Isolation::Optimistic;
        let found = if blind { Found::default() } else { unit.look_up(record).await? };
        if let Some(first) = found.first {
            return repeated(record, first);
        }
        let changes = self.changes(record, found.basket, wish.decide)?;
        match unit.commit(record, &changes).await? {
            Committed::Done => {
                Ok(CommandResult { command: record.cause.command, outcome: changes.outcome, replayed: false })
            }
            Committed::Conflict => Err(BusError::Conflict),
            Committed::InProgress => Err(BusError::InProgress),
        }
    }

    fn changes(
        &self,
        record: &CommandRecord<'_>,
        basket: Option<Basket>,
        decide: &Decision<'_>,
    ) -> Result<Changes, BusError> {
        let basket = match decide(basket) {
            Ok(basket) => basket,
            Err(refusal) => return Ok(Changes::nothing(Outcome::Refused(refusal))),
        };
        let mut changes = Changes::nothing(Outcome::Accepted(BasketView::from(&basket)));
        for event in basket.events() {
            let happened = Happened { event, basket: &basket, cause: record.cause };
            for reaction in &self.reactions {
                reaction.react(&happened, &mut changes)?;
            }
        }
        changes.basket = Some(basket).filter(|basket| !basket.events().is_empty());
        Ok(changes)
    }
}

impl Changes {
    fn nothing(outcome: Outcome) -> Changes {
        Changes { outcome, basket: None, view: None, events: Vec::new() }
    }
}

fn repeated(record: &CommandRecord<'_>, first: First) -> Result<CommandResult, BusError> {
    if first.fingerprint == record.fingerprint {
        return Ok(CommandResult { command: first.command, outcome: first.outcome, replayed: true });
    }
    Err(BusError::KeyReused)
}
