//! The unit of work in two statements: a look-up, and one commit that writes everything. A statement is as atomic as a
//! transaction, and has two round trips in place of nine. `cargo xtask bench api` measures both.
//! [`PostgresUnitsOfWork`](super::PostgresUnitsOfWork) is the adapter to copy; it also takes over after a conflict.
//!
//! The look-up takes no lock. The commit changes nothing if another command was faster.

use basket::application::integration_events::IntegrationEvent;
use basket::application::ports::{Claim, PortError, UnitOfWork, UnitOfWorkFactory};
use basket::application::{BasketView, CommandEnvelope, Outcome};
use basket::domain::{Basket, BasketId, BasketSnapshot, Version};
use outbox::Event;
use sqlx::types::Json;
use sqlx::{Postgres, QueryBuilder, Row};
use uuid::Uuid;

use super::basket_row::{basket, payment_method, status};
use super::documents::{BasketDocument, OutcomeDocument, line_documents};
use super::unit_of_work::{completed_command, outbox_events};
use super::{Database, port_error};
use crate::metrics::Metrics;

/// Begins units of work.
#[derive(Clone)]
pub struct SingleStatementUnitsOfWork {
    database: Database,
    metrics: Metrics,
}

impl SingleStatementUnitsOfWork {
    /// Over `database`; `metrics` count what was committed.
    pub fn new(database: Database, metrics: Metrics) -> SingleStatementUnitsOfWork {
        SingleStatementUnitsOfWork { database, metrics }
    }
}

impl UnitOfWorkFactory for SingleStatementUnitsOfWork {
    type Unit = SingleStatementUnitOfWork;

    async fn begin(&self) -> Result<SingleStatementUnitOfWork, PortError> {
        let SingleStatementUnitsOfWork { database, metrics } = self.clone();
        Ok(SingleStatementUnitOfWork {
            database,
            metrics,
            loaded: None,
            saved: None,
            view: None,
            events: Vec::new(),
            rows: Vec::new(),
            completed: None,
        })
    }
}

/// Collects what a command writes until the commit.
pub struct SingleStatementUnitOfWork {
    database: Database,
    metrics: Metrics,
    loaded: Option<Basket>,
    saved: Option<(Option<Version>, BasketSnapshot)>,
    view: Option<BasketDocument>,
    events: Vec<IntegrationEvent>,
    rows: Vec<Event>,
    completed: Option<(CommandEnvelope, Outcome)>,
}

impl UnitOfWork for SingleStatementUnitOfWork {
    /// Finds the command that has the key, and loads the basket on the way.
    async fn claim(&mut self, command: &CommandEnvelope) -> Result<Claim, PortError> {
        let mut sql = self.database.connection().await.map_err(port_error)?;
        let row = sqlx::query(
            "SELECT k.command_id, k.fingerprint, k.result, b.id, b.owner, b.buyer_id, b.status, b.lines,
                    b.payment_method, b.version, b.created_at, b.updated_at
             FROM (VALUES (0)) AS always
             LEFT JOIN idempotency_key k ON k.principal = $1 AND k.command_type = $2 AND k.key = $3
             LEFT JOIN basket b ON b.id = $4",
        )
        .bind(command.context.principal.as_str())
        .bind(command.command.command_type().into_str())
        .bind(command.idempotency_key.as_ref().map(|key| key.key.as_str()))
        .bind(command.command.loads().map(|id| id.0))
        .fetch_one(&mut *sql)
        .await
        .map_err(port_error)?;
        if let Some(first) = completed_command(&row)? {
            return Ok(Claim::Completed(first));
        }
        let id: Option<Uuid> = row.try_get("id").map_err(port_error)?;
        self.loaded = id.map(|_| basket(&row)).transpose()?;
        Ok(Claim::New)
    }

    async fn load(&mut self, id: BasketId) -> Result<Option<Basket>, PortError> {
        Ok(self.loaded.take().filter(|basket| basket.snapshot().id == id))
    }

    async fn save(&mut self, basket: &Basket) -> Result<(), PortError> {
        self.saved = Some((basket.stored_version(), basket.snapshot().clone()));
        Ok(())
    }

    async fn project(&mut self, basket: &Basket) -> Result<(), PortError> {
        self.view = Some(BasketView::from(basket).into());
        Ok(())
    }

    async fn append(
        &mut self,
        events: &[IntegrationEvent],
        cause: &CommandEnvelope,
    ) -> Result<(), PortError> {
        self.rows.extend(outbox_events(events, cause)?);
        self.events.extend_from_slice(events);
        Ok(())
    }

    async fn complete(&mut self, command: &CommandEnvelope, outcome: &Outcome) -> Result<(), PortError> {
        self.completed = Some((command.clone(), outcome.clone()));
        Ok(())
    }

    async fn commit(self) -> Result<(), PortError> {
        let Some((command, outcome)) = &self.completed else { return Ok(()) };
        let mut statement = QueryBuilder::new("WITH ");
        push_command(&mut statement, command, outcome, &self.events);
        push_claim(&mut statement);
        match &self.saved {
            None => push_nothing(&mut statement),
            Some((None, basket)) => push_insert(&mut statement, basket),
            Some((Some(stored), basket)) => push_update(&mut statement, basket, *stored),
        }
        if let Some(view) = self.view {
            push_projection(&mut statement, view);
        }
        if !self.rows.is_empty() {
            statement.push(", appended AS (");
            outbox::push_insert(&mut statement, &self.rows, "WHERE EXISTS (SELECT FROM changed)");
            statement.push(")");
        }
        statement.push(COMPLETE);
        let mut sql = self.database.connection().await.map_err(port_error)?;
        let row = statement.build().fetch_one(&mut *sql).await.map_err(port_error)?;
        let done: bool = row.try_get("done").map_err(port_error)?;
        if !done {
            // The retry finds out which of the two, and says so.
            return Err(PortError::Conflict("the basket was changed, or the key was claimed".into()));
        }
        self.events.iter().for_each(|event| self.metrics.outbox_row(event.event_type));
        Ok(())
    }
}

/// The log entry as one row, so that the other parts can name its columns.
fn push_command(
    statement: &mut QueryBuilder<Postgres>,
    command: &CommandEnvelope,
    outcome: &Outcome,
    events: &[IntegrationEvent],
) {
    let (basket_id, basket_version) = match outcome {
        Outcome::Accepted(basket) => (Some(basket.id), Some(basket.version)),
        Outcome::Refused(_) => (command.command.loads(), None),
    };
    let key = command.idempotency_key.as_ref();
    statement
        .push(
            "command (id, received_at, command_type, principal, correlation_id, traceparent, payload,
                      idempotency_key, fingerprint, outcome, refusal, result, basket_id, basket_version, event_ids)
             AS (VALUES (",
        )
        .push_bind(command.id.0)
        .push(", ")
        .push_bind(command.received_at)
        .push(", ")
        .push_bind(command.command.command_type().into_str())
        .push(", ")
        .push_bind(command.context.principal.as_str())
        .push(", ")
        .push_bind(&command.context.correlation_id)
        .push(", ")
        .push_bind(&command.context.traceparent)
        .push(", ")
        .push_bind(Json(command.command.payload()))
        .push(", ")
        .push_bind(key.map(|key| key.key.as_str()))
        .push(", ")
        .push_bind(key.map_or("", |key| key.fingerprint.as_str()))
        .push(", ")
        .push_bind(outcome.kind().into_str())
        .push(", ")
        .push_bind(outcome.refusal().map(|refusal| refusal.into_str()))
        .push(", ")
        .push_bind(Json(OutcomeDocument::from(outcome)))
        .push(", ")
        .push_bind(basket_id.map(|id| id.0))
        .push(", ")
        .push_bind(basket_version.map(|version| version.0))
        .push(", ")
        .push_bind(events.iter().map(|event| event.id).collect::<Vec<Uuid>>())
        .push("))");
}

/// Whether the command may be executed. The advisory lock is held until the statement ends and is only tried: a
/// concurrent duplicate learns of it without waiting.
fn push_claim(statement: &mut QueryBuilder<Postgres>) {
    statement.push(
        ", claim AS MATERIALIZED (
             SELECT command.idempotency_key IS NULL
                    OR (pg_try_advisory_xact_lock(hashtextextended(
                            concat_ws(chr(31), principal, command_type, command.idempotency_key), 0))
                        AND NOT EXISTS (SELECT FROM idempotency_key k
                                        WHERE k.principal = command.principal
                                          AND k.command_type = command.command_type
                                          AND k.key = command.idempotency_key)) AS granted
             FROM command)",
    );
}

/// A refusal, or a command that asks for what already is.
fn push_nothing(statement: &mut QueryBuilder<Postgres>) {
    statement.push(", changed AS (SELECT FROM claim WHERE granted)");
}

fn push_insert(statement: &mut QueryBuilder<Postgres>, basket: &BasketSnapshot) {
    statement
        .push(
            ", changed AS (
                 INSERT INTO basket
                     (id, owner, buyer_id, status, lines, payment_method, version, created_at, updated_at)
                 SELECT ",
        )
        .push_bind(basket.id.0)
        .push(", ")
        .push_bind(basket.owner.as_str())
        .push(", ")
        .push_bind(basket.buyer.as_str())
        .push(", ")
        .push_bind(status(basket))
        .push(", ")
        .push_bind(Json(line_documents(&basket.lines)))
        .push(", ")
        .push_bind(payment_method(basket))
        .push(", ")
        .push_bind(basket.version.0)
        .push(", ")
        .push_bind(basket.created_at)
        .push(", ")
        .push_bind(basket.updated_at)
        .push(" FROM claim WHERE granted RETURNING id, owner, buyer_id, status)");
}

fn push_update(statement: &mut QueryBuilder<Postgres>, basket: &BasketSnapshot, stored: Version) {
    statement
        .push(", changed AS (UPDATE basket SET status = ")
        .push_bind(status(basket))
        .push(", lines = ")
        .push_bind(Json(line_documents(&basket.lines)))
        .push(", payment_method = ")
        .push_bind(payment_method(basket))
        .push(", version = ")
        .push_bind(basket.version.0)
        .push(", updated_at = ")
        .push_bind(basket.updated_at)
        .push(" FROM claim WHERE granted AND id = ")
        .push_bind(basket.id.0)
        .push(" AND version = ")
        .push_bind(stored.0)
        .push(" RETURNING id, owner, buyer_id, status)");
}

fn push_projection(statement: &mut QueryBuilder<Postgres>, view: BasketDocument) {
    statement
        .push(
            ", projected AS (
                 INSERT INTO basket_view (id, owner, buyer_id, status, view)
                 SELECT id, owner, buyer_id, status, ",
        )
        .push_bind(Json(view))
        .push(
            " FROM changed
                 ON CONFLICT (id) DO UPDATE SET status = excluded.status, view = excluded.view)",
        );
}

/// Every part takes its rows from `changed`: without a change nothing is written. A duplicate that has stored the key
/// since the look-up violates the primary key, which undoes the whole statement.
const COMPLETE: &str = "
    , logged AS (
        INSERT INTO command_log
            (id, received_at, completed_at, command_type, principal, correlation_id, traceparent, payload,
             idempotency_key, outcome, refusal, basket_id, basket_version, event_ids)
        SELECT id, received_at, clock_timestamp(), command_type, principal, correlation_id, traceparent, payload,
               idempotency_key, outcome, refusal, basket_id, basket_version, event_ids
        FROM command WHERE EXISTS (SELECT FROM changed)),
    claimed AS (
        INSERT INTO idempotency_key (principal, command_type, key, command_id, received_at, fingerprint, result)
        SELECT principal, command_type, idempotency_key, id, received_at, fingerprint, result
        FROM command WHERE idempotency_key IS NOT NULL AND EXISTS (SELECT FROM changed))
    SELECT EXISTS (SELECT FROM changed) AS done";
