//! Lets every log line of a command say which command it belongs to.

use basket::application::ports::{BoxFuture, PortError};
use basket::application::{CommandEnvelope, CommandResult, Dispatch, DispatchError};
use tracing::Instrument;

/// Puts a span around each attempt, and says why one has to be repeated.
pub struct Traced<D> {
    inner: D,
}

impl<D: Dispatch> Traced<D> {
    /// Around `inner`.
    pub fn new(inner: D) -> Traced<D> {
        Traced { inner }
    }
}

impl<D: Dispatch> Dispatch for Traced<D> {
    fn dispatch<'a>(
        &'a self,
        command: &'a CommandEnvelope,
    ) -> BoxFuture<'a, Result<CommandResult, DispatchError>> {
        let span = tracing::info_span!(
            "command",
            command.id = %command.id,
            command.r#type = command.command.command_type().into_str(),
            correlation.id = command.context.correlation_id,
        );
        let attempt = async move {
            let result = self.inner.dispatch(command).await;
            if let Err(DispatchError::Port(PortError::Conflict(error))) = &result {
                tracing::debug!(error = %error, "the command met another one");
            }
            result
        };
        Box::pin(attempt.instrument(span))
    }
}
