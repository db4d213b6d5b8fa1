//! The command bus of the service: the units of work it writes with, and what surrounds every command.

use std::sync::Arc;

use basket::application::{Bus, Dispatch, Retry};
use clap::ValueEnum;

use crate::metrics::{Metered, Metrics};
use crate::postgres::{Database, PostgresUnitsOfWork, SingleStatementUnitsOfWork, UnlessLost};
use crate::spans::Traced;

/// How a command is written to the database.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum UnitOfWorkMode {
    /// A transaction with one statement per step.
    Transaction,
    /// Two statements in all: fewer round trips. The reactions of a bus cannot write other tables.
    SingleStatement,
}

/// The bus over `database`. Metrics are outside of the retry and count a command once; spans are inside and see each attempt.
/// A command that an outage of the database has left without an answer fails.
pub fn bus(database: &Database, metrics: &Metrics, mode: UnitOfWorkMode) -> Arc<dyn Dispatch> {
    let transactions = Bus::new(PostgresUnitsOfWork::new(database.clone(), metrics.clone()));
    let transactions: Arc<dyn Dispatch> = Arc::new(Traced::new(transactions));
    let first: Arc<dyn Dispatch> = match mode {
        UnitOfWorkMode::Transaction => Arc::clone(&transactions),
        UnitOfWorkMode::SingleStatement => Arc::new(Traced::new(Bus::new(SingleStatementUnitsOfWork::new(
            database.clone(),
            metrics.clone(),
        )))),
    };
    let ending = UnlessLost::new(Retry::new(first, transactions), database.clone());
    Arc::new(Metered::new(ending, metrics.clone()))
}
