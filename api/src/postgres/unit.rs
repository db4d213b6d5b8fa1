//! One command, one transaction: its record, the basket, the read model, the outbox rows, the outcome.

use basket::application::integration::{AGGREGATE_TYPE, IntegrationEvent};
use basket::application::ports::{BoxFuture, Claim, CommandRecord, PortError, UnitOfWork, Units};
use basket::application::{BasketView, Cause, CommandId, Outcome};
use basket::domain::{Basket, BasketId, BuyerId, Line, PaymentMethod, Status, Stored, Version};
use chrono::{DateTime, Utc};
use outbox::{Event, TraceContext};
use serde::Serialize;
use serde::de::DeserializeOwned;
use sqlx::postgres::PgRow;
use sqlx::types::Json;
use sqlx::{PgPool, Postgres, Row, Transaction};
use uuid::Uuid;

use super::port_error;
use crate::metrics::Metrics;

/// Begins transactions.
pub struct PostgresUnits {
    pool: PgPool,
    metrics: Metrics,
}

impl PostgresUnits {
    /// Over `pool`; `metrics` count what was committed.
    pub fn new(pool: PgPool, metrics: Metrics) -> PostgresUnits {
        PostgresUnits { pool, metrics }
    }
}

impl Units for PostgresUnits {
    fn begin(&self) -> BoxFuture<'_, Result<Box<dyn UnitOfWork>, PortError>> {
        Box::pin(async move {
            let transaction = self.pool.begin().await.map_err(port_error)?;
            let metrics = self.metrics.clone();
            Ok(Box::new(PostgresUnit { transaction, events: Vec::new(), metrics }) as Box<dyn UnitOfWork>)
        })
    }
}

/// A transaction; rolled back when dropped.
struct PostgresUnit {
    transaction: Transaction<'static, Postgres>,
    /// Events put into the outbox: id and type.
    events: Vec<(Uuid, &'static str)>,
    metrics: Metrics,
}

impl UnitOfWork for PostgresUnit {
    fn claim<'a>(&'a mut self, record: &'a CommandRecord<'a>) -> BoxFuture<'a, Result<Claim, PortError>> {
        Box::pin(async move {
            if let Some(key) = record.idempotency_key
                && let Some(claimed) = self.look_up(record, key).await?
            {
                return Ok(claimed);
            }
            self.record(record).await?;
            Ok(Claim::New)
        })
    }

    fn load(&mut self, id: BasketId) -> BoxFuture<'_, Result<Option<Basket>, PortError>> {
        Box::pin(async move {
            let row = sqlx::query(
                "SELECT id, buyer_id, status, lines, payment_method, version, created_at, updated_at
                 FROM basket WHERE id = $1 FOR UPDATE",
            )
            .bind(id.0)
            .fetch_optional(&mut *self.transaction)
            .await
            .map_err(port_error)?;
            row.map(|row| restore(&row)).transpose()
        })
    }

    fn save<'a>(&'a mut self, basket: &'a Basket) -> BoxFuture<'a, Result<(), PortError>> {
        Box::pin(async move {
            // Every event is one version: the stored one is as many behind. None is stored of a new basket.
            let events = i64::try_from(basket.events().len()).unwrap_or(i64::MAX);
            let stored = basket.version().0.saturating_sub(events);
            let statement = if stored == 0 {
                "INSERT INTO basket (id, buyer_id, status, lines, payment_method, version, created_at, updated_at)
                 VALUES ($1, $2, $3, $4, $5, $6, $7, $8) ON CONFLICT (id) DO NOTHING"
            } else {
                "UPDATE basket SET buyer_id = $2, status = $3, lines = $4, payment_method = $5, version = $6,
                        created_at = $7, updated_at = $8
                 WHERE id = $1 AND version = $9"
            };
            let mut query = sqlx::query(statement)
                .bind(basket.id().0)
                .bind(basket.buyer().as_str())
                .bind(word(&basket.status())?)
                .bind(Json(basket.lines()))
                .bind(basket.payment_method().map(|method| word(&method)).transpose()?)
                .bind(basket.version().0)
                .bind(basket.created_at())
                .bind(basket.updated_at());
            if stored > 0 {
                query = query.bind(stored);
            }
            let written = query.execute(&mut *self.transaction).await.map_err(port_error)?;
            if written.rows_affected() == 1 {
                return Ok(());
            }
            Err(PortError::Failed(format!("basket {} is not at version {stored}", basket.id()).into()))
        })
    }

    fn project<'a>(&'a mut self, view: &'a BasketView) -> BoxFuture<'a, Result<(), PortError>> {
        Box::pin(async move {
            sqlx::query(
                "INSERT INTO basket_view (id, buyer_id, view) VALUES ($1, $2, $3)
                 ON CONFLICT (id) DO UPDATE SET buyer_id = excluded.buyer_id, view = excluded.view",
            )
            .bind(view.id.0)
            .bind(view.buyer_id.as_str())
            .bind(Json(view))
            .execute(&mut *self.transaction)
            .await
            .map_err(port_error)?;
            Ok(())
        })
    }

    fn publish<'a>(
        &'a mut self,
        event: &'a IntegrationEvent,
        cause: &'a Cause,
    ) -> BoxFuture<'a, Result<(), PortError>> {
        Box::pin(async move {
            let row = outbox_event(event, cause).map_err(|error| PortError::Failed(error.into()))?;
            outbox::append(&mut self.transaction, &[row]).await.map_err(|error| port_error(error.0))?;
            self.events.push((event.id, event.event_type));
            Ok(())
        })
    }

    fn complete<'a>(
        &'a mut self,
        command: CommandId,
        outcome: &'a Outcome,
    ) -> BoxFuture<'a, Result<(), PortError>> {
        Box::pin(async move {
            let completed = sqlx::query(
                "UPDATE command_log SET completed_at = clock_timestamp(), outcome = $2, result = $3, event_ids = $4
                 WHERE id = $1 AND completed_at IS NULL",
            )
            .bind(command.0)
            .bind(outcome.name())
            .bind(Json(outcome))
            .bind(self.events.iter().map(|(id, _)| *id).collect::<Vec<Uuid>>())
            .execute(&mut *self.transaction)
            .await
            .map_err(port_error)?;
            if completed.rows_affected() == 1 {
                return Ok(());
            }
            Err(PortError::Failed(format!("command {command} has no open record").into()))
        })
    }

    fn commit(self: Box<Self>) -> BoxFuture<'static, Result<(), PortError>> {
        Box::pin(async move {
            self.transaction.commit().await.map_err(port_error)?;
            self.events.iter().for_each(|(_, event_type)| self.metrics.outbox_row(event_type));
            Ok(())
        })
    }
}

impl PostgresUnit {
    /// What is known of the key. The advisory lock lasts as long as the transaction: a twin that is under way is
    /// answered at once instead of queueing, and the key cannot be claimed twice between look-up and record.
    async fn look_up(&mut self, record: &CommandRecord<'_>, key: &str) -> Result<Option<Claim>, PortError> {
        let locked: bool = sqlx::query_scalar(
            "SELECT pg_try_advisory_xact_lock(hashtextextended(concat_ws(chr(31), $1, $2, $3), 0))",
        )
        .bind(&record.cause.principal)
        .bind(record.command_type)
        .bind(key)
        .fetch_one(&mut *self.transaction)
        .await
        .map_err(port_error)?;
        if !locked {
            return Ok(Some(Claim::InProgress));
        }
        let row = sqlx::query(
            "SELECT k.fingerprint, k.command_id, c.result
             FROM idempotency_key k
             JOIN command_log c ON c.id = k.command_id AND c.received_at = k.received_at
             WHERE k.principal = $1 AND k.command_type = $2 AND k.key = $3",
        )
        .bind(&record.cause.principal)
        .bind(record.command_type)
        .bind(key)
        .fetch_optional(&mut *self.transaction)
        .await
        .map_err(port_error)?;
        let Some(row) = row else { return Ok(None) };
        let fingerprint: String = row.try_get("fingerprint").map_err(port_error)?;
        if fingerprint != record.fingerprint {
            return Ok(Some(Claim::KeyReused));
        }
        let command = CommandId(row.try_get("command_id").map_err(port_error)?);
        let Json(outcome) = row.try_get("result").map_err(port_error)?;
        Ok(Some(Claim::Repeated { command, outcome }))
    }

    /// Key and record in one statement, so that there is never one without the other.
    async fn record(&mut self, record: &CommandRecord<'_>) -> Result<(), PortError> {
        sqlx::query(
            "WITH claimed AS (
                 INSERT INTO idempotency_key (principal, command_type, key, fingerprint, command_id, received_at)
                 SELECT $4, $3, $9, $8, $1, $2 WHERE $9::text IS NOT NULL)
             INSERT INTO command_log (id, received_at, command_type, principal, correlation_id, traceparent, payload,
                                      fingerprint)
             VALUES ($1, $2, $3, $4, $5, $6, $7, $8)",
        )
        .bind(record.cause.command.0)
        .bind(record.received_at)
        .bind(record.command_type)
        .bind(&record.cause.principal)
        .bind(&record.cause.correlation_id)
        .bind(&record.cause.traceparent)
        .bind(Json(&record.payload))
        .bind(record.fingerprint)
        .bind(record.idempotency_key)
        .execute(&mut *self.transaction)
        .await
        .map_err(port_error)?;
        Ok(())
    }
}

fn outbox_event(event: &IntegrationEvent, cause: &Cause) -> Result<Event, outbox::InvalidEvent> {
    let basket = event.basket_id.to_string();
    let trace = TraceContext { traceparent: cause.traceparent.clone(), tracestate: cause.tracestate.clone() };
    Event::new(AGGREGATE_TYPE, basket, event.event_type, event.payload.clone())?
        .with_id(event.id)
        .with_trace(trace)
        .with_header("correlation-id", &cause.correlation_id)?
        .with_header("causation-id", cause.command.to_string())
}

fn restore(row: &PgRow) -> Result<Basket, PortError> {
    let read = || -> Result<Stored, PortError> {
        let buyer: String = row.try_get("buyer_id").map_err(port_error)?;
        let payment: Option<String> = row.try_get("payment_method").map_err(port_error)?;
        let Json(lines): Json<Vec<Line>> = row.try_get("lines").map_err(port_error)?;
        let created_at: DateTime<Utc> = row.try_get("created_at").map_err(port_error)?;
        Ok(Stored {
            id: BasketId(row.try_get("id").map_err(port_error)?),
            buyer: BuyerId::try_from(buyer).map_err(|error| PortError::Failed(error.into()))?,
            status: unword::<Status>(row.try_get("status").map_err(port_error)?)?,
            lines,
            payment_method: payment.map(unword::<PaymentMethod>).transpose()?,
            version: Version(row.try_get("version").map_err(port_error)?),
            created_at,
            updated_at: row.try_get("updated_at").map_err(port_error)?,
        })
    };
    read().map(Basket::restore)
}

/// The word a unit variant is stored as: the one it has in JSON.
fn word(value: &impl Serialize) -> Result<String, PortError> {
    match serde_json::to_value(value) {
        Ok(serde_json::Value::String(word)) => Ok(word),
        _ => Err(PortError::Failed("a value that should be one word".into())),
    }
}

fn unword<T: DeserializeOwned>(word: String) -> Result<T, PortError> {
    serde_json::from_value(serde_json::Value::String(word)).map_err(|error| PortError::Failed(error.into()))
}
