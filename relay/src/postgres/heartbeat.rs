//! Writes heartbeats into the WAL. When one is due, and when it has come back: [`crate::status::heartbeat`].

use sqlx::postgres::PgConnection;

use crate::status::Status;

/// Sends a heartbeat if one is due. Delivery does not depend on it: a missing privilege is logged once.
pub async fn send_if_due(sql: &mut PgConnection, status: &Status) -> Result<(), sqlx::Error> {
    let Some((prefix, content)) = status.take_due_heartbeat() else { return Ok(()) };
    let message = sqlx::query("SELECT pg_logical_emit_message(false, $1, $2)").bind(prefix).bind(content);
    match message.execute(sql).await {
        Ok(_) => Ok(()),
        Err(sqlx::Error::Database(error)) => {
            if status.on_heartbeat_refused() {
                tracing::warn!("cannot send heartbeats; delivery continues without them: {error}");
            }
            Ok(())
        }
        Err(error) => {
            status.on_heartbeat_not_sent();
            Err(error)
        }
    }
}
