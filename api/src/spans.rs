//! Lets every log line of a command say which command it belongs to.

use basket::application::middleware::{Middleware, Next, Wish};
use basket::application::ports::{BoxFuture, PortError};
use basket::application::{BusError, CommandResult};
use tracing::Instrument;

/// Puts a span around each attempt, and says why one had to be repeated.
#[derive(Clone, Copy, Debug, Default)]
pub struct Spans;

impl Middleware for Spans {
    fn call<'a>(&'a self, wish: Wish<'a>, next: Next<'a>) -> BoxFuture<'a, Result<CommandResult, BusError>> {
        let record = wish.record;
        let span = tracing::info_span!(
            "command",
            command.id = %record.cause.command,
            command.r#type = record.command_type,
            correlation.id = record.cause.correlation_id,
        );
        let attempt = async move {
            let answer = next.run(wish).await;
            match &answer {
                Err(BusError::Conflict) => tracing::debug!("another command was faster"),
                Err(BusError::Port(PortError::Conflict(error))) => {
                    tracing::debug!(error = %error, "Postgres gave way to another command");
                }
                _ => {}
            }
            answer
        };
        Box::pin(attempt.instrument(span))
    }
}
