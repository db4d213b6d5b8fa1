//! Claims the idempotency key of a command.

use basket::application::ports::{Claim, CompletedCommand, PortError};
use basket::application::{CommandEnvelope, CommandId};
use sqlx::postgres::PgRow;
use sqlx::types::Json;
use sqlx::{PgConnection, Row};
use uuid::Uuid;

use crate::postgres::documents::OutcomeDocument;
use crate::postgres::port_error;

/// The advisory lock is held until the transaction ends and is only tried: a concurrent duplicate learns of it without
/// waiting. A duplicate that commits between this statement's snapshot and its lock is not seen here; the primary key of
/// `idempotency_key` stops the command when it completes.
pub async fn claim_key(
    transaction: &mut PgConnection,
    command: &CommandEnvelope,
) -> Result<Claim, PortError> {
    let Some(key) = &command.idempotency_key else { return Ok(Claim::New) };
    let row = sqlx::query(
        "SELECT pg_try_advisory_xact_lock(hashtextextended(concat_ws(chr(31), $1, $2, $3), 0)) AS lock_acquired,
                k.command_id, k.fingerprint, k.result
         FROM (VALUES (0)) AS always
         LEFT JOIN idempotency_key k ON k.principal = $1 AND k.command_type = $2 AND k.key = $3",
    )
    .bind(command.context.principal.as_str())
    .bind(command.command.command_type().into_str())
    .bind(&key.key)
    .fetch_one(transaction)
    .await
    .map_err(port_error)?;
    if let Some(first) = completed_command(&row)? {
        return Ok(Claim::Completed(first));
    }
    let acquired: bool = row.try_get("lock_acquired").map_err(port_error)?;
    Ok(if acquired { Claim::New } else { Claim::InProgress })
}

/// The command that has the key, if there is one: columns `command_id`, `fingerprint` and `result`.
pub fn completed_command(row: &PgRow) -> Result<Option<CompletedCommand>, PortError> {
    let id: Option<Uuid> = row.try_get("command_id").map_err(port_error)?;
    let Some(id) = id else { return Ok(None) };
    let fingerprint = row.try_get("fingerprint").map_err(port_error)?;
    let Json(document): Json<OutcomeDocument> = row.try_get("result").map_err(port_error)?;
    Ok(Some(CompletedCommand { id: CommandId(id), fingerprint, outcome: document.try_into()? }))
}
