//! The ports over a store in memory: for tests of the application, and for a service without a database.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::basket_view::BasketView;
use super::command::{CommandEnvelope, CommandType, Outcome};
use super::integration_events::IntegrationEvent;
use super::ports::{Claim, CompletedCommand, PortError, UnitOfWork, UnitOfWorkFactory};
use crate::domain::{Basket, BasketId, BasketSnapshot, Version};

/// What makes a command unique: its sender, its type, and the sender's key.
type KeyScope = (String, CommandType, String);

/// The store. Clones share it.
#[derive(Clone, Default)]
pub struct InMemoryStore(Arc<Mutex<Tables>>);

#[derive(Default)]
struct Tables {
    baskets: HashMap<BasketId, BasketSnapshot>,
    views: HashMap<BasketId, BasketView>,
    outbox: Vec<IntegrationEvent>,
    log: Vec<(CommandEnvelope, Outcome)>,
    keys: HashMap<KeyScope, CompletedCommand>,
    claimed: HashSet<KeyScope>,
}

impl InMemoryStore {
    /// The events in the outbox, in their order.
    pub fn outbox(&self) -> Vec<IntegrationEvent> {
        self.tables().outbox.clone()
    }

    /// The commands that were completed, with their outcomes.
    pub fn log(&self) -> Vec<(CommandEnvelope, Outcome)> {
        self.tables().log.clone()
    }

    /// The basket in the read model.
    pub fn view(&self, id: BasketId) -> Option<BasketView> {
        self.tables().views.get(&id).cloned()
    }

    /// A panic elsewhere cannot leave the tables half written: a commit checks first and then inserts.
    fn tables(&self) -> MutexGuard<'_, Tables> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl UnitOfWorkFactory for InMemoryStore {
    type Unit = InMemoryUnit;

    async fn begin(&self) -> Result<InMemoryUnit, PortError> {
        Ok(InMemoryUnit {
            store: self.clone(),
            claimed: None,
            saved: None,
            view: None,
            events: Vec::new(),
            completed: None,
        })
    }
}

/// A unit of work: collects the writes until the commit.
pub struct InMemoryUnit {
    store: InMemoryStore,
    claimed: Option<KeyScope>,
    saved: Option<(Option<Version>, BasketSnapshot)>,
    view: Option<BasketView>,
    events: Vec<IntegrationEvent>,
    completed: Option<(CommandEnvelope, Outcome)>,
}

impl UnitOfWork for InMemoryUnit {
    async fn claim(&mut self, command: &CommandEnvelope) -> Result<Claim, PortError> {
        let Some(scope) = key_scope(command) else { return Ok(Claim::New) };
        let mut tables = self.store.tables();
        if let Some(first) = tables.keys.get(&scope) {
            return Ok(Claim::Completed(first.clone()));
        }
        if !tables.claimed.insert(scope.clone()) {
            return Ok(Claim::InProgress);
        }
        drop(tables);
        self.claimed = Some(scope);
        Ok(Claim::New)
    }

    async fn load(&mut self, id: BasketId) -> Result<Option<Basket>, PortError> {
        Ok(self.store.tables().baskets.get(&id).cloned().map(Basket::from_snapshot))
    }

    async fn save(&mut self, basket: &Basket) -> Result<(), PortError> {
        self.saved = Some((basket.stored_version(), basket.snapshot().clone()));
        Ok(())
    }

    async fn project(&mut self, basket: &Basket) -> Result<(), PortError> {
        self.view = Some(BasketView::from(basket));
        Ok(())
    }

    async fn append(&mut self, events: &[IntegrationEvent], _: &CommandEnvelope) -> Result<(), PortError> {
        self.events.extend_from_slice(events);
        Ok(())
    }

    async fn complete(&mut self, command: &CommandEnvelope, outcome: &Outcome) -> Result<(), PortError> {
        self.completed = Some((command.clone(), outcome.clone()));
        Ok(())
    }

    async fn commit(mut self) -> Result<(), PortError> {
        let mut tables = self.store.tables();
        if let Some((before, basket)) = self.saved.take() {
            if tables.baskets.get(&basket.id).map(|stored| stored.version) != before {
                return Err(PortError::Conflict("the basket has another version".into()));
            }
            tables.baskets.insert(basket.id, basket);
        }
        if let Some(view) = self.view.take() {
            tables.views.insert(view.id, view);
        }
        tables.outbox.append(&mut self.events);
        if let Some((command, outcome)) = self.completed.take() {
            if let Some((scope, key)) = self.claimed.clone().zip(command.idempotency_key.clone()) {
                let first = CompletedCommand {
                    id: command.id,
                    fingerprint: key.fingerprint,
                    outcome: outcome.clone(),
                };
                tables.keys.insert(scope, first);
            }
            tables.log.push((command, outcome));
        }
        drop(tables);
        Ok(())
    }
}

impl Drop for InMemoryUnit {
    fn drop(&mut self) {
        if let Some(scope) = self.claimed.take() {
            self.store.tables().claimed.remove(&scope);
        }
    }
}

fn key_scope(command: &CommandEnvelope) -> Option<KeyScope> {
    let key = command.idempotency_key.as_ref()?;
    Some((command.context.principal.to_string(), command.command.command_type(), key.key.clone()))
}
