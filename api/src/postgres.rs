//! The Postgres adapters: one transaction for everything a command does, and the read model.

mod queries;
mod unit;

pub use queries::ViewQueries;
pub use unit::PostgresUnits;

use basket::application::ports::PortError;
use sqlx::migrate::Migrator;

/// The repository's migrations, built into the program.
pub static MIGRATIONS: Migrator = sqlx::migrate!("../migrations");

/// Classes of SQLSTATE that mean "not now": connection, resources, operator, and transactions that got in each
/// other's way.
const TRANSIENT_CLASSES: [&str; 4] = ["08", "53", "57", "40"];

/// Sorts a driver's error: what a later attempt may cure, and what is a bug.
fn port_error(error: sqlx::Error) -> PortError {
    let transient = match &error {
        sqlx::Error::Io(_)
        | sqlx::Error::PoolTimedOut
        | sqlx::Error::PoolClosed
        | sqlx::Error::WorkerCrashed => true,
        sqlx::Error::Database(database) => database.code().is_some_and(|code| {
            TRANSIENT_CLASSES.iter().any(|class| code.starts_with(class)) || code == "55P03"
        }),
        _ => false,
    };
    if transient { PortError::Unavailable(error.into()) } else { PortError::Failed(error.into()) }
}
