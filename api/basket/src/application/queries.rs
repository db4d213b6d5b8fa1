//! Reading. Queries use the read model only: they load no aggregate, take no lock, and do not go through the bus.

use chrono::{DateTime, Utc};
use serde_json::Value;
use uuid::Uuid;

use super::basket_summary::BasketSummary;
use super::basket_view::{BasketStatus, BasketView};
use super::command::{CommandId, CommandType, OutcomeKind};
use super::ports::{BoxFuture, PortError};
use crate::domain::{BasketId, BuyerId, Version};

/// Most entries of one page.
pub const MAX_PAGE: u32 = 100;
/// Entries of a page if the caller does not say.
pub const DEFAULT_PAGE: u32 = 20;

/// A page of a list: at most `limit` entries, newest first, after the given one. Ids are UUIDv7 and sort by time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PageRequest<Id> {
    /// Begin after this entry.
    pub after: Option<Id>,
    /// Number of entries: 1 to [`MAX_PAGE`].
    pub limit: u32,
}

/// Which baskets.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BasketFilter {
    /// Only this buyer's.
    pub buyer_id: Option<BuyerId>,
    /// Only those with this status.
    pub status: Option<BasketStatus>,
}

/// Which commands.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CommandFilter {
    /// Only those of this type.
    pub command_type: Option<CommandType>,
    /// Only those with this outcome.
    pub outcome: Option<OutcomeKind>,
    /// Only those received at this time or later.
    pub from: Option<DateTime<Utc>>,
    /// Only those received before this time.
    pub until: Option<DateTime<Utc>>,
}

/// A page of a list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Page<T> {
    /// The entries, newest first.
    pub entries: Vec<T>,
    /// Whether there are more after the last one.
    pub more: bool,
}

/// A command in the log: who issued which command, when, with what outcome. Names are as they were written: a type that
/// no longer exists is shown too.
#[derive(Clone, Debug, PartialEq)]
pub struct LoggedCommand {
    /// Identity: the `causation-id` of its events.
    pub id: CommandId,
    /// Type.
    pub command_type: String,
    /// The sender.
    pub principal: String,
    /// The caller's key for it.
    pub idempotency_key: Option<String>,
    /// The conversation it belongs to.
    pub correlation_id: String,
    /// W3C trace context of the request.
    pub traceparent: Option<String>,
    /// Its content.
    pub payload: Value,
    /// When it arrived.
    pub received_at: DateTime<Utc>,
    /// When its work was done.
    pub completed_at: DateTime<Utc>,
    /// How it ended.
    pub outcome: String,
    /// Why it was refused.
    pub refusal: Option<String>,
    /// The basket it was about.
    pub basket_id: Option<BasketId>,
    /// The basket's version after it.
    pub basket_version: Option<Version>,
    /// The events it published.
    pub event_ids: Vec<Uuid>,
}

/// Baskets as their owner sees them. Those of other owners do not exist for it.
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
        page: PageRequest<BasketId>,
    ) -> BoxFuture<'a, Result<Page<BasketSummary>, PortError>>;
}

/// The command log: one principal's commands, or all if none is named.
pub trait CommandQueries: Send + Sync {
    /// One command.
    fn get<'a>(
        &'a self,
        principal: Option<&'a str>,
        id: CommandId,
    ) -> BoxFuture<'a, Result<Option<LoggedCommand>, PortError>>;

    /// Many commands. MUST show each command that is in the log during the whole walk exactly once.
    fn list<'a>(
        &'a self,
        principal: Option<&'a str>,
        filter: &'a CommandFilter,
        page: PageRequest<CommandId>,
    ) -> BoxFuture<'a, Result<Page<LoggedCommand>, PortError>>;
}
