//! Reads the command log.

use basket::application::CommandId;
use basket::application::ports::{BoxFuture, PortError};
use basket::application::queries::{CommandFilter, CommandQueries, LoggedCommand, Page, PageRequest};
use basket::domain::{BasketId, Version};
use sqlx::postgres::PgRow;
use sqlx::types::Json;
use sqlx::{PgPool, Row};

use super::baskets::page;
use super::port_error;

/// Queries over a pool.
pub struct PostgresCommandLog {
    pool: PgPool,
}

impl PostgresCommandLog {
    /// Over `pool`.
    pub fn new(pool: PgPool) -> PostgresCommandLog {
        PostgresCommandLog { pool }
    }
}

impl CommandQueries for PostgresCommandLog {
    fn get<'a>(
        &'a self,
        principal: Option<&'a str>,
        id: CommandId,
    ) -> BoxFuture<'a, Result<Option<LoggedCommand>, PortError>> {
        Box::pin(async move {
            let row = sqlx::query(
                "SELECT id, command_type, principal, idempotency_key, correlation_id, traceparent, payload,
                        received_at, completed_at, outcome, result -> 'refused' ->> 'refusal' AS refusal,
                        basket_id, basket_version, event_ids
                 FROM command_log WHERE id = $1 AND ($2::text IS NULL OR principal = $2)",
            )
            .bind(id.0)
            .bind(principal)
            .fetch_optional(&self.pool)
            .await
            .map_err(port_error)?;
            row.map(|row| logged_command(&row).map_err(port_error)).transpose()
        })
    }

    fn list<'a>(
        &'a self,
        principal: Option<&'a str>,
        filter: &'a CommandFilter,
        request: PageRequest<CommandId>,
    ) -> BoxFuture<'a, Result<Page<LoggedCommand>, PortError>> {
        Box::pin(async move {
            let rows = sqlx::query(
                "SELECT id, command_type, principal, idempotency_key, correlation_id, traceparent, payload,
                        received_at, completed_at, outcome, result -> 'refused' ->> 'refusal' AS refusal,
                        basket_id, basket_version, event_ids
                 FROM command_log
                 WHERE ($1::text IS NULL OR principal = $1) AND ($2::text IS NULL OR command_type = $2)
                   AND ($3::text IS NULL OR outcome = $3)
                   AND ($4::timestamptz IS NULL OR received_at >= $4)
                   AND ($5::timestamptz IS NULL OR received_at < $5)
                   AND ($6::uuid IS NULL OR id < $6)
                 ORDER BY id DESC LIMIT $7",
            )
            .bind(principal)
            .bind(filter.command_type.map(|command_type| command_type.into_str()))
            .bind(filter.outcome.map(|outcome| outcome.into_str()))
            .bind(filter.from)
            .bind(filter.until)
            .bind(request.after.map(|id| id.0))
            .bind(i64::from(request.limit) + 1)
            .fetch_all(&self.pool)
            .await
            .map_err(port_error)?;
            let entries: Result<Vec<LoggedCommand>, sqlx::Error> = rows.iter().map(logged_command).collect();
            Ok(page(entries.map_err(port_error)?, request.limit))
        })
    }
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
