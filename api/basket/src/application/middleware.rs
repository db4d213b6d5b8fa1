//! What surrounds the work of every command. A new concern is a new file and a line where the bus is made.

mod retry;

pub use retry::Retry;

use super::bus::{Bus, BusError, CommandResult};
use super::command::CommandRecord;
use super::ports::{BoxFuture, Isolation};
use crate::domain::{Basket, Refusal};

/// The decision of a command about the basket it sees.
pub type Decision<'a> = dyn Fn(Option<Basket>) -> Result<Basket, Refusal> + Send + Sync + 'a;

/// A command on its way through the bus.
#[derive(Clone, Copy)]
pub struct Wish<'a> {
    /// What the log will keep of it.
    pub record: &'a CommandRecord<'a>,
    /// How this attempt sees to it that its basket does not change under it.
    pub isolation: Isolation,
    pub(super) decide: &'a Decision<'a>,
}

/// Surrounds the work.
pub trait Middleware: Send + Sync {
    /// Lets `next` do the work: once, several times, or not at all.
    fn call<'a>(&'a self, wish: Wish<'a>, next: Next<'a>) -> BoxFuture<'a, Result<CommandResult, BusError>>;
}

/// The rest of the way.
#[derive(Clone, Copy)]
pub struct Next<'a> {
    bus: &'a Bus,
    rest: &'a [Box<dyn Middleware>],
}

impl<'a> Next<'a> {
    pub(super) fn new(bus: &'a Bus, rest: &'a [Box<dyn Middleware>]) -> Next<'a> {
        Next { bus, rest }
    }

    /// Goes it.
    pub fn run(self, wish: Wish<'a>) -> BoxFuture<'a, Result<CommandResult, BusError>> {
        match self.rest.split_first() {
            Some((first, rest)) => first.call(wish, Next { bus: self.bus, rest }),
            None => Box::pin(self.bus.execute(wish)),
        }
    }
}
