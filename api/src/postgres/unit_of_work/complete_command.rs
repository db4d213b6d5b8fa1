//! Records a command with its outcome.

use basket::application::integration_events::IntegrationEvent;
use basket::application::ports::PortError;
use basket::application::{CommandEnvelope, IdempotencyKey, Outcome};
use sqlx::PgConnection;
use sqlx::types::Json;
use uuid::Uuid;

use crate::postgres::documents::OutcomeDocument;
use crate::postgres::port_error;

/// The log entry, and the key with what a repetition is answered. A concurrent duplicate that has stored the key
/// meanwhile makes this fail as a conflict.
pub async fn complete_command(
    transaction: &mut PgConnection,
    command: &CommandEnvelope,
    outcome: &Outcome,
    events: &[IntegrationEvent],
) -> Result<(), PortError> {
    log_command(transaction, command, outcome, events).await?;
    match &command.idempotency_key {
        Some(key) => store_key(transaction, command, key, outcome).await,
        None => Ok(()),
    }
}

async fn log_command(
    transaction: &mut PgConnection,
    command: &CommandEnvelope,
    outcome: &Outcome,
    events: &[IntegrationEvent],
) -> Result<(), PortError> {
    let (basket_id, basket_version) = match outcome {
        Outcome::Accepted(basket) => (Some(basket.id), Some(basket.version)),
        Outcome::Refused(_) => (command.command.loads(), None),
    };
    sqlx::query(
        "INSERT INTO command_log
             (id, received_at, completed_at, command_type, principal, correlation_id, traceparent, payload,
              idempotency_key, outcome, refusal, basket_id, basket_version, event_ids)
         VALUES ($1, $2, clock_timestamp(), $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13)",
    )
    .bind(command.id.0)
    .bind(command.received_at)
    .bind(command.command.command_type().into_str())
    .bind(command.context.principal.as_str())
    .bind(&command.context.correlation_id)
    .bind(&command.context.traceparent)
    .bind(Json(command.command.payload()))
    .bind(command.idempotency_key.as_ref().map(|key| key.key.as_str()))
    .bind(outcome.kind().into_str())
    .bind(outcome.refusal().map(|refusal| refusal.into_str()))
    .bind(basket_id.map(|id| id.0))
    .bind(basket_version.map(|version| version.0))
    .bind(events.iter().map(|event| event.id).collect::<Vec<Uuid>>())
    .execute(transaction)
    .await
    .map_err(port_error)?;
    Ok(())
}

async fn store_key(
    transaction: &mut PgConnection,
    command: &CommandEnvelope,
    key: &IdempotencyKey,
    outcome: &Outcome,
) -> Result<(), PortError> {
    sqlx::query(
        "INSERT INTO idempotency_key
             (principal, command_type, key, command_id, received_at, fingerprint, result)
         VALUES ($1, $2, $3, $4, $5, $6, $7)",
    )
    .bind(command.context.principal.as_str())
    .bind(command.command.command_type().into_str())
    .bind(&key.key)
    .bind(command.id.0)
    .bind(command.received_at)
    .bind(&key.fingerprint)
    .bind(Json(OutcomeDocument::from(outcome)))
    .execute(transaction)
    .await
    .map_err(port_error)?;
    Ok(())
}
