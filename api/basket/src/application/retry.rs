//! Retries commands that met another one, within bounds.

use std::sync::Arc;

use super::command::CommandEnvelope;
use super::dispatch::{CommandResult, Dispatch, DispatchError};
use super::ports::{BoxFuture, PortError};

/// Attempts in all. A conflict is rare: a deadlock, or a duplicate that committed in between. One that comes back every
/// time is a fault that the caller should know of.
const ATTEMPTS: u32 = 4;

/// Executes a command again after a conflict, which has written nothing.
pub struct Retry {
    first: Arc<dyn Dispatch>,
    again: Arc<dyn Dispatch>,
}

impl Retry {
    /// The first attempt goes to `first`, later ones to `again`. They differ where the first attempt is optimistic:
    /// commands on one busy basket must then queue for its lock, or one of them starves.
    pub fn new(first: Arc<dyn Dispatch>, again: Arc<dyn Dispatch>) -> Retry {
        Retry { first, again }
    }
}

impl Dispatch for Retry {
    fn dispatch<'a>(
        &'a self,
        command: &'a CommandEnvelope,
    ) -> BoxFuture<'a, Result<CommandResult, DispatchError>> {
        Box::pin(async move {
            let mut result = self.first.dispatch(command).await;
            for _ in 1..ATTEMPTS {
                if !matches!(result, Err(DispatchError::Port(PortError::Conflict(_)))) {
                    break;
                }
                result = self.again.dispatch(command).await;
            }
            result
        })
    }
}
