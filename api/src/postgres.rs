//! The Postgres adapters: one transaction for everything a command does, the read model, and the housekeeping.

mod basket_row;
mod baskets;
mod command_log;
mod documents;
mod housekeeping;
mod single_statement;
mod summary;
mod unit_of_work;

pub use baskets::PostgresBaskets;
pub use command_log::PostgresCommandLog;
pub use housekeeping::{Housekeeping, Idle};
pub use single_statement::SingleStatementUnitsOfWork;
pub use unit_of_work::{PostgresUnitOfWork, PostgresUnitsOfWork};

use basket::application::ports::PortError;
use sqlx::migrate::Migrator;

/// The repository's migrations, built into the program.
pub static MIGRATIONS: Migrator = sqlx::migrate!("../migrations");

/// Classes of SQLSTATE that mean "not now": connection, resources, operator.
const AWAY: [&str; 3] = ["08", "53", "57"];
/// Another transaction was in the way: a lock that was not given in time.
const LOCK_NOT_AVAILABLE: &str = "55P03";
/// Transactions that got in each other's way and of which this one was rolled back: serialization failure, deadlock.
const ROLLED_BACK: &str = "40";
/// A concurrent duplicate stored the key first.
const UNIQUE_VIOLATION: &str = "23505";

/// Sorts a driver's error: what the next attempt cures, what a later one may cure, and what is a bug.
fn port_error(error: sqlx::Error) -> PortError {
    use sqlx::Error as E;
    match &error {
        E::Io(_) | E::PoolTimedOut | E::PoolClosed | E::WorkerCrashed => PortError::Unavailable(error.into()),
        E::Database(database) => match database.code().as_deref() {
            Some(UNIQUE_VIOLATION) => PortError::Conflict(error.into()),
            Some(code) if code.starts_with(ROLLED_BACK) => PortError::Conflict(error.into()),
            Some(code) if code == LOCK_NOT_AVAILABLE || AWAY.iter().any(|class| code.starts_with(class)) => {
                PortError::Unavailable(error.into())
            }
            _ => PortError::Failed(error.into()),
        },
        _ => PortError::Failed(error.into()),
    }
}
