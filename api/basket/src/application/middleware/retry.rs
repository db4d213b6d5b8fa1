//! Tries again when another command was faster, within bounds.

use super::{Middleware, Next, Wish};
use crate::application::bus::{BusError, CommandResult};
use crate::application::ports::{BoxFuture, Isolation, PortError};

/// Attempts in all. The second holds the basket's lock, so that it can only be overtaken by something else, such as
/// a deadlock that Postgres resolved; a third failure in a row means trouble that the caller should know of.
const ATTEMPTS: u32 = 4;

/// Retries commands that met another one. The first attempt takes the short way; later ones lock what they read, so
/// that commands on one busy basket queue up instead of overtaking each other for ever.
#[derive(Clone, Copy, Debug, Default)]
pub struct Retry;

impl Middleware for Retry {
    fn call<'a>(&'a self, wish: Wish<'a>, next: Next<'a>) -> BoxFuture<'a, Result<CommandResult, BusError>> {
        Box::pin(async move {
            let mut attempt = next.run(wish).await;
            let wish = Wish { isolation: Isolation::Locking, ..wish };
            for _ in 1..ATTEMPTS {
                if !matches!(attempt, Err(BusError::Conflict | BusError::Port(PortError::Conflict(_)))) {
                    break;
                }
                attempt = next.run(wish).await;
            }
            attempt
        })
    }
}
