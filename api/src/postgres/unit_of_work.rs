//! One command, one transaction. Each step is a function with its own SQL, in the file named for it; a further write is
//! one more such function.

mod append_events;
mod claim_key;
mod complete_command;
mod load_basket;
mod project_basket;
mod save_basket;

use basket::application::integration_events::IntegrationEvent;
use basket::application::ports::{Claim, PortError, UnitOfWork, UnitOfWorkFactory};
use basket::application::{CommandEnvelope, Outcome};
use basket::domain::{Basket, BasketId};
use sqlx::{Postgres, Transaction};

pub(super) use append_events::outbox_events;
pub(super) use claim_key::completed_command;

use super::{Database, port_error};
use crate::metrics::Metrics;

/// Begins units of work.
#[derive(Clone)]
pub struct PostgresUnitsOfWork {
    database: Database,
    metrics: Metrics,
}

impl PostgresUnitsOfWork {
    /// Over `database`; `metrics` count what was committed.
    pub fn new(database: Database, metrics: Metrics) -> PostgresUnitsOfWork {
        PostgresUnitsOfWork { database, metrics }
    }
}

impl UnitOfWorkFactory for PostgresUnitsOfWork {
    type Unit = PostgresUnitOfWork;

    async fn begin(&self) -> Result<PostgresUnitOfWork, PortError> {
        let transaction = self.database.begin().await.map_err(port_error)?;
        Ok(PostgresUnitOfWork { transaction, appended: Vec::new(), metrics: self.metrics.clone() })
    }
}

/// A transaction; it is rolled back when it is dropped.
pub struct PostgresUnitOfWork {
    transaction: Transaction<'static, Postgres>,
    appended: Vec<IntegrationEvent>,
    metrics: Metrics,
}

impl PostgresUnitOfWork {
    /// The transaction, for reactions that write other tables.
    pub fn transaction(&mut self) -> &mut Transaction<'static, Postgres> {
        &mut self.transaction
    }
}

impl UnitOfWork for PostgresUnitOfWork {
    async fn claim(&mut self, command: &CommandEnvelope) -> Result<Claim, PortError> {
        claim_key::claim_key(&mut self.transaction, command).await
    }

    async fn load(&mut self, id: BasketId) -> Result<Option<Basket>, PortError> {
        load_basket::load_basket(&mut self.transaction, id).await
    }

    async fn save(&mut self, basket: &Basket) -> Result<(), PortError> {
        save_basket::save_basket(&mut self.transaction, basket).await
    }

    async fn project(&mut self, basket: &Basket) -> Result<(), PortError> {
        project_basket::project_basket(&mut self.transaction, basket).await
    }

    async fn append(
        &mut self,
        events: &[IntegrationEvent],
        cause: &CommandEnvelope,
    ) -> Result<(), PortError> {
        append_events::append_events(&mut self.transaction, events, cause).await?;
        self.appended.extend_from_slice(events);
        Ok(())
    }

    async fn complete(&mut self, command: &CommandEnvelope, outcome: &Outcome) -> Result<(), PortError> {
        complete_command::complete_command(&mut self.transaction, command, outcome, &self.appended).await
    }

    async fn commit(self) -> Result<(), PortError> {
        self.transaction.commit().await.map_err(port_error)?;
        self.appended.iter().for_each(|event| self.metrics.outbox_row(event.event_type));
        Ok(())
    }
}
