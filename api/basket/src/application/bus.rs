//! The command bus: the one path every command takes.
//!
//! claim -> handle -> save -> react -> complete -> commit, in one unit of work. A refusal takes the same path
//! without the middle: it is an outcome, and a repeated command gets it again.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::command::{Command, CommandId, Failure, Identified, Outcome};
use super::ports::{Claim, CommandRecord, PortError, UnitOfWork, Units};
use super::reactions::Reaction;
use super::view::BasketView;
use crate::domain::Basket;

/// What the caller of a command learns.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// The command as it is in the log; the first one, when this was a repetition.
    pub command: CommandId,
    /// How it ended.
    pub outcome: Outcome,
    /// Whether the outcome is that of an earlier execution.
    pub replayed: bool,
}

/// Why there is no outcome.
#[derive(Debug, thiserror::Error)]
pub enum BusError {
    /// The same command is being executed at this moment.
    #[error("a command with this key is being executed")]
    InProgress,
    /// The key was used for another wish.
    #[error("the key was used for another command")]
    KeyReused,
    /// The world did not do its part.
    #[error(transparent)]
    Port(#[from] PortError),
}

/// Is told how commands end, for metrics.
pub trait Observer: Send + Sync {
    /// A command of this type ended like this: `accepted`, `refused`, `replayed`, `conflict` or `failed`.
    fn ended(&self, command_type: &'static str, outcome: &'static str, took: Duration);
}

/// See the module's text.
pub struct Bus {
    units: Arc<dyn Units>,
    reactions: Vec<Box<dyn Reaction>>,
    observer: Arc<dyn Observer>,
}

impl Bus {
    /// A bus whose commands are reacted to by `reactions`, in their order.
    pub fn new(units: Arc<dyn Units>, reactions: Vec<Box<dyn Reaction>>, observer: Arc<dyn Observer>) -> Bus {
        Bus { units, reactions, observer }
    }

    /// Executes a command once, however often it is sent.
    pub async fn dispatch<C: Command>(&self, wish: &Identified<C>) -> Result<Answer, BusError> {
        let started = Instant::now();
        let answer = self.execute(wish).await;
        let outcome = match &answer {
            Ok(answer) if answer.replayed => "replayed",
            Ok(answer) => answer.outcome.name(),
            Err(BusError::InProgress | BusError::KeyReused) => "conflict",
            Err(BusError::Port(_)) => "failed",
        };
        self.observer.ended(C::TYPE, outcome, started.elapsed());
        answer
    }

    async fn execute<C: Command>(&self, wish: &Identified<C>) -> Result<Answer, BusError> {
        let mut work = self.units.begin().await?;
        match work.claim(&record(wish)?).await? {
            Claim::New => {}
            Claim::Repeated { command, outcome } => return Ok(Answer { command, outcome, replayed: true }),
            Claim::KeyReused => return Err(BusError::KeyReused),
            Claim::InProgress => return Err(BusError::InProgress),
        }
        let outcome = match wish.command.handle(&mut *work, wish.received_at).await {
            Ok(basket) => {
                self.store(&basket, wish, &mut *work).await?;
                Outcome::Accepted(BasketView::from(&basket))
            }
            Err(Failure::Refused(refusal)) => Outcome::Refused(refusal),
            Err(Failure::Port(error)) => return Err(error.into()),
        };
        work.complete(wish.cause.command, &outcome).await?;
        work.commit().await?;
        Ok(Answer { command: wish.cause.command, outcome, replayed: false })
    }

    async fn store<C>(
        &self,
        basket: &Basket,
        wish: &Identified<C>,
        work: &mut dyn UnitOfWork,
    ) -> Result<(), PortError> {
        work.save(basket).await?;
        for event in basket.events() {
            for reaction in &self.reactions {
                reaction.react(event, basket, &wish.cause, work).await?;
            }
        }
        Ok(())
    }
}

fn record<C: Command>(wish: &Identified<C>) -> Result<CommandRecord<'_>, PortError> {
    let payload = serde_json::to_value(&wish.command).map_err(|error| PortError::Failed(error.into()))?;
    Ok(CommandRecord {
        command_type: C::TYPE,
        payload,
        cause: &wish.cause,
        idempotency_key: wish.idempotency_key.as_deref(),
        fingerprint: &wish.fingerprint,
        received_at: wish.received_at,
    })
}
