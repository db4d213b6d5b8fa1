//! Reading the log of commands.

use basket::application::ports::{BoxFuture, PortError};
use basket::application::queries::{CommandFilter, CommandQueries, Page, PageRequest};
use basket::application::{CommandId, CommandView};
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
    ) -> BoxFuture<'a, Result<Option<CommandView>, PortError>> {
        Box::pin(async move {
            let row = sqlx::query(
                "SELECT *, result -> 'refused' ->> 'refusal' AS refusal FROM command_log
                 WHERE id = $1 AND ($2::text IS NULL OR principal = $2)",
            )
            .bind(id.0)
            .bind(principal)
            .fetch_optional(&self.pool)
            .await
            .map_err(port_error)?;
            row.map(|row| view(&row).map_err(port_error)).transpose()
        })
    }

    fn list<'a>(
        &'a self,
        principal: Option<&'a str>,
        filter: &'a CommandFilter,
        portion: PageRequest<CommandId>,
    ) -> BoxFuture<'a, Result<Page<CommandView>, PortError>> {
        Box::pin(async move {
            let rows = sqlx::query(
                "SELECT *, result -> 'refused' ->> 'refusal' AS refusal FROM command_log
                 WHERE ($1::text IS NULL OR principal = $1) AND ($2::text IS NULL OR command_type = $2)
                   AND ($3::text IS NULL OR outcome = $3)
                   AND ($4::timestamptz IS NULL OR received_at >= $4)
                   AND ($5::timestamptz IS NULL OR received_at < $5)
                   AND ($6::uuid IS NULL OR id < $6)
                 ORDER BY id DESC LIMIT $7",
            )
            .bind(principal)
            .bind(&filter.command_type)
            .bind(&filter.outcome)
            .bind(filter.from)
            .bind(filter.until)
            .bind(portion.after.map(|id| id.0))
            .bind(i64::from(portion.limit) + 1)
            .fetch_all(&self.pool)
            .await
            .map_err(port_error)?;
            let entries: Result<Vec<CommandView>, sqlx::Error> = rows.iter().map(view).collect();
            Ok(page(entries.map_err(port_error)?, portion.limit))
        })
    }
}

fn view(row: &PgRow) -> Result<CommandView, sqlx::Error> {
    let Json(payload) = row.try_get("payload")?;
    let basket_id: Option<uuid::Uuid> = row.try_get("basket_id")?;
    let basket_version: Option<i64> = row.try_get("basket_version")?;
    Ok(CommandView {
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
