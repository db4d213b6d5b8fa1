//! One command, one transaction: its record, the basket, the read model, the outbox rows.

use basket::application::integration_events::{AGGREGATE_TYPE, IntegrationEvent};
use basket::application::ports::{
    BoxFuture, Changes, Committed, First, Found, Isolation, PortError, UnitOfWork, UnitOfWorkFactory,
};
use basket::application::{CommandId, CommandMetadata, CommandRecord, Outcome};
use basket::domain::Basket;
use outbox::{Event, Statement, TraceContext};
use sqlx::postgres::PgRow;
use sqlx::types::Json;
use sqlx::{PgPool, Postgres, Row, Transaction};
use uuid::Uuid;

use super::basket_row::{restore, word};
use super::port_error;
use super::statements::{COMMIT_INSERT, COMMIT_NOTHING, COMMIT_UPDATE, LOCK, LOOK_UP};
use crate::metrics::Metrics;

/// Begins units of work.
pub struct PostgresUnitsOfWork {
    pool: PgPool,
    metrics: Metrics,
}

impl PostgresUnitsOfWork {
    /// Over `pool`; `metrics` count what was committed.
    pub fn new(pool: PgPool, metrics: Metrics) -> PostgresUnitsOfWork {
        PostgresUnitsOfWork { pool, metrics }
    }
}

impl UnitOfWorkFactory for PostgresUnitsOfWork {
    fn begin(&self, isolation: Isolation) -> BoxFuture<'_, Result<Box<dyn UnitOfWork>, PortError>> {
        Box::pin(async move {
            let metrics = self.metrics.clone();
            let way = match isolation {
                Isolation::Optimistic => Way::Statements(self.pool.clone()),
                Isolation::Locking => Way::Transaction(self.pool.begin().await.map_err(port_error)?),
            };
            Ok(Box::new(PostgresUnit { way, metrics }) as Box<dyn UnitOfWork>)
        })
    }
}

/// How the statements reach the database.
enum Way {
    /// Each by itself: the commit is atomic, being one statement, and finds out whether the look-up still holds.
    Statements(PgPool),
    /// In a transaction that holds the basket's lock; rolled back when dropped.
    Transaction(Transaction<'static, Postgres>),
}

struct PostgresUnit {
    way: Way,
    metrics: Metrics,
}

impl UnitOfWork for PostgresUnit {
    fn look_up<'a>(&'a mut self, record: &'a CommandRecord<'a>) -> BoxFuture<'a, Result<Found, PortError>> {
        Box::pin(async move {
            let basket_id = record.basket_id.map(|id| id.0);
            let query = sqlx::query(LOOK_UP)
                .bind(record.cause.principal.to_string())
                .bind(record.command_type)
                .bind(record.idempotency_key)
                .bind(basket_id);
            let row = match &mut self.way {
                Way::Statements(pool) => query.fetch_one(&*pool).await,
                Way::Transaction(transaction) => {
                    let lock = sqlx::query(LOCK).bind(basket_id);
                    lock.execute(&mut **transaction).await.map_err(port_error)?;
                    query.fetch_one(&mut **transaction).await
                }
            };
            let row = row.map_err(port_error)?;
            Ok(Found { first: first(&row)?, basket: restore(&row)? })
        })
    }

    fn commit<'a>(
        self: Box<Self>,
        record: &'a CommandRecord<'a>,
        changes: &'a Changes,
    ) -> BoxFuture<'a, Result<Committed, PortError>> {
        Box::pin(async move {
            let events = outbox_rows(&changes.events, record.cause)?;
            let statement = statement(record, changes, &events)?;
            let row = match self.way {
                Way::Statements(pool) => statement.fetch_one(&pool).await.map_err(port_error)?,
                Way::Transaction(mut transaction) => {
                    let row = statement.fetch_one(&mut *transaction).await.map_err(port_error)?;
                    transaction.commit().await.map_err(port_error)?;
                    row
                }
            };
            let committed = committed(&row)?;
            if committed == Committed::Done {
                changes.events.iter().for_each(|event| self.metrics.outbox_row(event.event_type));
            }
            Ok(committed)
        })
    }
}

fn first(row: &PgRow) -> Result<Option<First>, PortError> {
    let command: Option<Uuid> = row.try_get("command_id").map_err(port_error)?;
    let Some(command) = command else { return Ok(None) };
    let Json(outcome) = row.try_get("result").map_err(port_error)?;
    let fingerprint = row.try_get("fingerprint").map_err(port_error)?;
    Ok(Some(First { fingerprint, command: CommandId(command), outcome }))
}

fn committed(row: &PgRow) -> Result<Committed, PortError> {
    let done: bool = row.try_get("done").map_err(port_error)?;
    let free: bool = row.try_get("free").map_err(port_error)?;
    Ok(match (done, free) {
        (true, _) => Committed::Done,
        (false, true) => Committed::Conflict,
        (false, false) => Committed::InProgress,
    })
}

fn statement<'q>(
    record: &'q CommandRecord<'q>,
    changes: &'q Changes,
    events: &[Event],
) -> Result<Statement<'q>, PortError> {
    let Some(basket) = &changes.basket else { return Ok(recorded(&COMMIT_NOTHING, record, changes)) };
    // Every event is one version: the stored one is as many behind. None is stored of a new basket.
    let behind = i64::try_from(basket.events().len()).unwrap_or(i64::MAX);
    let before = basket.version().0.saturating_sub(behind);
    let statement = if before == 0 {
        changed(&COMMIT_INSERT, record, changes, basket)?.bind(basket.buyer().as_str())
    } else {
        changed(&COMMIT_UPDATE, record, changes, basket)?.bind(before)
    };
    Ok(outbox::bind(statement.bind(changes.view.as_ref().map(Json)), events))
}

/// $1 to $14.
fn recorded<'q>(sql: &'static str, record: &'q CommandRecord<'q>, changes: &'q Changes) -> Statement<'q> {
    let (basket_id, version) = match &changes.outcome {
        Outcome::Accepted(view) => (Some(view.id.0), Some(view.version.0)),
        Outcome::Refused(_) => (record.basket_id.map(|id| id.0), None),
    };
    sqlx::query(sql)
        .bind(record.cause.command.0)
        .bind(record.received_at)
        .bind(record.command_type)
        .bind(record.cause.principal.to_string())
        .bind(&record.cause.correlation_id)
        .bind(&record.cause.traceparent)
        .bind(Json(&record.payload))
        .bind(record.fingerprint)
        .bind(record.idempotency_key)
        .bind(changes.outcome.name())
        .bind(Json(&changes.outcome))
        .bind(basket_id)
        .bind(version)
        .bind(changes.events.iter().map(|event| event.id).collect::<Vec<Uuid>>())
}

/// $1 to $18.
fn changed<'q>(
    sql: &'static str,
    record: &'q CommandRecord<'q>,
    changes: &'q Changes,
    basket: &'q Basket,
) -> Result<Statement<'q>, PortError> {
    Ok(recorded(sql, record, changes)
        .bind(word(&basket.status())?)
        .bind(Json(basket.lines()))
        .bind(basket.payment_method().map(|method| word(&method)).transpose()?)
        .bind(basket.updated_at()))
}

fn outbox_rows(events: &[IntegrationEvent], cause: &CommandMetadata) -> Result<Vec<Event>, PortError> {
    let row = |event: &IntegrationEvent| {
        let trace =
            TraceContext { traceparent: cause.traceparent.clone(), tracestate: cause.tracestate.clone() };
        let basket = event.basket_id.to_string();
        Event::new(AGGREGATE_TYPE, basket, event.event_type, event.payload.clone())?
            .with_id(event.id)
            .with_trace(trace)
            .with_header("correlation-id", &cause.correlation_id)?
            .with_header("causation-id", cause.command.to_string())
    };
    let rows: Result<Vec<Event>, outbox::InvalidEvent> = events.iter().map(row).collect();
    rows.map_err(|error| PortError::Failed(error.into()))
}
