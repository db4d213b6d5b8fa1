//! Reads the command log.

use basket::application::CommandId;
use basket::application::ports::{BoxFuture, PortError};
use basket::application::queries::{CommandFilter, CommandQueries, LoggedCommand, Page, PageRequest};
use basket::domain::{BasketId, Version};
use chrono::TimeDelta;
use sqlx::postgres::PgRow;
use sqlx::types::Json;
use sqlx::{Postgres, QueryBuilder, Row};

use super::baskets::page;
use super::ids::first_id_at;
use super::keyset::Keyset;
use super::{Database, port_error};

/// Queries over a database.
pub struct PostgresCommandLog {
    database: Database,
}

impl PostgresCommandLog {
    /// Over `database`.
    pub fn new(database: Database) -> PostgresCommandLog {
        PostgresCommandLog { database }
    }
}

impl CommandQueries for PostgresCommandLog {
    fn get<'a>(
        &'a self,
        principal: Option<&'a str>,
        id: CommandId,
    ) -> BoxFuture<'a, Result<Option<LoggedCommand>, PortError>> {
        Box::pin(self.database.unless_lost(async move {
            let mut get = QueryBuilder::<Postgres>::new(SELECT);
            get.push(" AND id = ").push_bind(id.0);
            if let Some(principal) = principal {
                get.push(" AND principal = ").push_bind(principal);
            }
            let mut sql = self.database.connection().await.map_err(port_error)?;
            let row = get.build().fetch_optional(&mut *sql).await.map_err(port_error)?;
            row.map(|row| logged_command(&row).map_err(port_error)).transpose()
        }))
    }

    fn list<'a>(
        &'a self,
        principal: Option<&'a str>,
        filter: &'a CommandFilter,
        request: PageRequest<CommandId>,
    ) -> BoxFuture<'a, Result<Page<LoggedCommand>, PortError>> {
        Box::pin(self.database.unless_lost(async move {
            let mut list = QueryBuilder::<Postgres>::new(SELECT);
            push_times(&mut list, filter);
            let mut keyset = keyset(principal, filter);
            if let Some(after) = request.after {
                keyset.before(after.0);
            }
            keyset.push(&mut list, i64::from(request.limit) + 1);
            let mut sql = self.database.list_connection().await.map_err(port_error)?;
            let rows = list.build().fetch_all(&mut *sql).await.map_err(port_error)?;
            drop(sql);
            let entries: Result<Vec<LoggedCommand>, sqlx::Error> = rows.iter().map(logged_command).collect();
            Ok(page(entries.map_err(port_error)?, request.limit))
        }))
    }
}

/// The members of an entry. They are named, because a statement that was prepared before a migration adds a column must still
/// work after it.
const SELECT: &str = "
    SELECT id, command_type, principal, idempotency_key, correlation_id, traceparent, payload, received_at, completed_at,
           outcome, refusal, basket_id, basket_version, event_ids
    FROM command_log WHERE true";

/// A command's id is made when it is received; the two clocks are one, but may be set in between.
const CLOCK_CHANGE: TimeDelta = TimeDelta::seconds(1);

/// Times select partitions.
fn push_times(list: &mut QueryBuilder<Postgres>, filter: &CommandFilter) {
    if let Some(from) = filter.from {
        list.push(" AND received_at >= ").push_bind(from);
    }
    if let Some(until) = filter.until {
        list.push(" AND received_at < ").push_bind(until);
    }
}

/// Times are bounds on the id, too.
fn keyset<'a>(principal: Option<&'a str>, filter: &CommandFilter) -> Keyset<'a> {
    let mut keyset = Keyset::new([
        ("principal", principal),
        ("command_type", filter.command_type.map(|command_type| command_type.into_str())),
        ("outcome", filter.outcome.map(|outcome| outcome.into_str())),
    ]);
    if let Some(from) = filter.from {
        keyset.not_before(first_id_at(from - CLOCK_CHANGE));
    }
    if let Some(until) = filter.until {
        keyset.before(first_id_at(until + CLOCK_CHANGE));
    }
    keyset
}

fn logged_command(row: &PgRow) -> Result<LoggedCommand, sqlx::Error> {
    let Json(payload) = row.try_get("payload")?;
    let basket_id: Option<uuid::Uuid> = row.try_get("basket_id")?;
    let basket_version: Option<i64> = row.try_get("basket_version")?;
    Ok(LoggedCommand {
        id: CommandId(row.try_get("id")?),
        command_type: row.try_get("command_type")?,
        principal: row.try_get("principal")?,
        idempotency_key: row.try_get("idempotency_key")?,
        correlation_id: row.try_get("correlation_id")?,
        traceparent: row.try_get("traceparent")?,
        payload,
        received_at: row.try_get("received_at")?,
        completed_at: row.try_get("completed_at")?,
        outcome: row.try_get("outcome")?,
        refusal: row.try_get("refusal")?,
        basket_id: basket_id.map(BasketId),
        basket_version: basket_version.map(Version),
        event_ids: row.try_get("event_ids")?,
    })
}
