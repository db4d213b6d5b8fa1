//! Commands end when an outage has left them without an answer of the database.

use basket::application::ports::BoxFuture;
use basket::application::{CommandEnvelope, CommandResult, Dispatch, DispatchError};

use super::Database;

/// Dispatches commands that use the connections of a database.
pub struct UnlessLost<D> {
    inner: D,
    database: Database,
}

impl<D: Dispatch> UnlessLost<D> {
    /// Around `inner`, which uses `database`.
    pub fn new(inner: D, database: Database) -> UnlessLost<D> {
        UnlessLost { inner, database }
    }
}

impl<D: Dispatch> Dispatch for UnlessLost<D> {
    fn dispatch<'a>(
        &'a self,
        command: &'a CommandEnvelope,
    ) -> BoxFuture<'a, Result<CommandResult, DispatchError>> {
        Box::pin(self.database.unless_lost(self.inner.dispatch(command)))
    }
}
