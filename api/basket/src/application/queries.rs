//! Reading. Queries see the read model only: they load no aggregate, lock nothing, and never meet the bus.

use chrono::{DateTime, Utc};

use super::command::CommandId;
use super::ports::{BoxFuture, PortError};
use super::read_model::{BasketView, CommandView};
use crate::domain::{BasketId, BuyerId, Status};

/// Most entries of one page.
pub const MAX_PAGE: u32 = 100;
/// Entries of a page when the caller does not say.
pub const DEFAULT_PAGE: u32 = 20;

/// Which portion of a list: at most `limit` entries, newest first, after the one named. Ids are UUIDv7 and sort by
/// time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PageRequest<Id> {
    /// Begin behind this entry.
    pub after: Option<Id>,
    /// How many: 1 to [`MAX_PAGE`].
    pub limit: u32,
}

/// Which baskets.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BasketFilter {
    /// Only this buyer's.
    pub buyer_id: Option<BuyerId>,
    /// Only those in this status.
    pub status: Option<Status>,
}

/// Which commands.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CommandFilter {
    /// Only those of this type.
    pub command_type: Option<String>,
    /// Only those that ended like this.
    pub outcome: Option<String>,
    /// Only those received at this time or later.
    pub from: Option<DateTime<Utc>>,
    /// Only those received before this time.
    pub until: Option<DateTime<Utc>>,
}

/// A portion of a list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Page<T> {
    /// The entries, newest first.
    pub entries: Vec<T>,
    /// Whether there are more behind the last one.
    pub more: bool,
}

/// Baskets as their owner sees them. Somebody else's are as if they were not there.
pub trait BasketQueries: Send + Sync {
    /// One basket.
    fn get<'a>(
        &'a self,
        owner: &'a str,
        id: BasketId,
    ) -> BoxFuture<'a, Result<Option<BasketView>, PortError>>;

    /// Many baskets. MUST show each basket that exists during the whole walk exactly once.
    fn list<'a>(
        &'a self,
        owner: &'a str,
        filter: &'a BasketFilter,
        portion: PageRequest<BasketId>,
    ) -> BoxFuture<'a, Result<Page<BasketView>, PortError>>;
}

/// The log of commands: one principal's, or everybody's where none is named.
pub trait CommandQueries: Send + Sync {
    /// One command.
    fn get<'a>(
        &'a self,
        principal: Option<&'a str>,
        id: CommandId,
    ) -> BoxFuture<'a, Result<Option<CommandView>, PortError>>;

    /// Many commands. MUST show each command that is in the log during the whole walk exactly once.
    fn list<'a>(
        &'a self,
        principal: Option<&'a str>,
        filter: &'a CommandFilter,
        portion: PageRequest<CommandId>,
    ) -> BoxFuture<'a, Result<Page<CommandView>, PortError>>;
}
