//! What a sender of commands sees of the application.

use super::command::{CommandEnvelope, CommandId, Outcome};
use super::ports::{BoxFuture, PortError};

/// Executes commands. The bus does, and so does whatever surrounds it: metrics, retries, log spans.
pub trait Dispatch: Send + Sync {
    /// Executes a command once, however often it is sent.
    fn dispatch<'a>(
        &'a self,
        command: &'a CommandEnvelope,
    ) -> BoxFuture<'a, Result<CommandResult, DispatchError>>;
}

/// What the sender of a command learns.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CommandResult {
    /// The command in the log; the first one, if this was a repetition.
    pub command: CommandId,
    /// How it ended.
    pub outcome: Outcome,
    /// Whether the outcome is that of an earlier execution.
    pub replayed: bool,
}

/// Why there is no outcome. Nothing was written.
#[derive(Debug, thiserror::Error)]
pub enum DispatchError {
    /// The same command is being executed at this moment.
    #[error("a command with this key is being executed")]
    InProgress,
    /// The key was used for another command.
    #[error("the key was used for another command")]
    KeyReused,
    /// The store failed.
    #[error(transparent)]
    Port(#[from] PortError),
    /// An event that cannot be written as JSON: a bug.
    #[error("an event of the command cannot be serialized")]
    SerializationFailed(#[from] serde_json::Error),
}
