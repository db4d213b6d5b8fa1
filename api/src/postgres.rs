//! The PostgreSQL adapters: one transaction for everything a command does, the read model, and the housekeeping.

mod basket_row;
mod baskets;
mod command_log;
mod database;
mod documents;
pub mod error;
pub mod housekeeping;
mod ids;
mod keyset;
mod migration;
mod privileges;
mod probe;
mod rebuild;
mod servers;
mod single_statement;
mod summary;
mod unit_of_work;
mod unless_lost;

pub use baskets::PostgresBaskets;
pub use command_log::PostgresCommandLog;
pub use database::{Database, for_commands};
pub use migration::{MIGRATIONS, MigrationError, migrate};
pub use privileges::{Lacking, check};
pub use probe::{Probe, State};
pub use rebuild::rebuild_read_model;
pub use servers::{InvalidAddress, Limits, NoServer, PATIENT, ServerError, Servers, Session, place};
pub use single_statement::SingleStatementUnitsOfWork;
pub use unit_of_work::{PostgresUnitOfWork, PostgresUnitsOfWork};
pub use unless_lost::UnlessLost;

use error::port_error;
