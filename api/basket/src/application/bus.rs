//! The command bus: the one path of every command.
//!
//! claim -> load -> handle -> save -> project -> append -> react -> complete -> commit, in one unit of work. A refusal
//! takes the same path without the middle: it is an outcome, and a repeated command gets it again.

use super::basket_view::BasketView;
use super::command::{CommandEnvelope, Outcome};
use super::dispatch::{CommandResult, Dispatch, DispatchError};
use super::integration_events::IntegrationEvent;
use super::ports::{BoxFuture, Claim, CompletedCommand, UnitOfWork, UnitOfWorkFactory};
use super::reaction::Reaction;
use crate::domain::Basket;

/// Executes commands in units of work.
pub struct Bus<F: UnitOfWorkFactory> {
    units: F,
    reactions: Vec<Box<dyn Reaction<F::Unit>>>,
}

impl<F: UnitOfWorkFactory> Bus<F> {
    /// A bus that does its work in `units`.
    pub fn new(units: F) -> Bus<F> {
        Bus { units, reactions: Vec::new() }
    }

    /// Calls `reaction` for each domain event, after those registered before.
    #[must_use]
    pub fn with_reaction(mut self, reaction: impl Reaction<F::Unit> + 'static) -> Bus<F> {
        self.reactions.push(Box::new(reaction));
        self
    }

    async fn execute(&self, command: &CommandEnvelope) -> Result<CommandResult, DispatchError> {
        let mut unit = self.units.begin().await?;
        match unit.claim(command).await? {
            Claim::New => {}
            Claim::Completed(first) => return replay(command, first),
            Claim::InProgress => return Err(DispatchError::InProgress),
        }
        let basket = match command.command.loads() {
            Some(id) => unit.load(id).await?,
            None => None,
        };
        let outcome = match command.command.handle(basket, &command.context.principal, command.received_at) {
            Ok(basket) => {
                self.write(&mut unit, &basket, command).await?;
                Outcome::Accepted(BasketView::from(&basket))
            }
            Err(refusal) => Outcome::Refused(refusal),
        };
        unit.complete(command, &outcome).await?;
        unit.commit().await?;
        Ok(CommandResult { command: command.id, outcome, replayed: false })
    }

    /// Writes what a command changed. A command that asks for what already is changes nothing.
    async fn write(
        &self,
        unit: &mut F::Unit,
        basket: &Basket,
        cause: &CommandEnvelope,
    ) -> Result<(), DispatchError> {
        if basket.events().is_empty() {
            return Ok(());
        }
        unit.save(basket).await?;
        unit.project(basket).await?;
        unit.append(&IntegrationEvent::all_of(basket)?, cause).await?;
        for event in basket.events() {
            for reaction in &self.reactions {
                reaction.react(event, basket, cause, unit).await?;
            }
        }
        Ok(())
    }
}

impl<F: UnitOfWorkFactory> Dispatch for Bus<F> {
    fn dispatch<'a>(
        &'a self,
        command: &'a CommandEnvelope,
    ) -> BoxFuture<'a, Result<CommandResult, DispatchError>> {
        Box::pin(self.execute(command))
    }
}

/// The first outcome, if the request is the same. Nothing was written, so the unit of work is dropped.
fn replay(command: &CommandEnvelope, first: CompletedCommand) -> Result<CommandResult, DispatchError> {
    let same = command.idempotency_key.as_ref().is_some_and(|key| key.fingerprint == first.fingerprint);
    if !same {
        return Err(DispatchError::KeyReused);
    }
    Ok(CommandResult { command: first.id, outcome: first.outcome, replayed: true })
}
