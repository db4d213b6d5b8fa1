//! The inbox: an event id that is stored in the transaction of the event's effect.

use rdkafka::Message;
use sqlx::PgPool;
use sqlx::types::Json;

use crate::event::{Effect, Event, Poison, headers, storable};

/// What became of an event.
pub enum Outcome {
    /// It took effect. `missing` has the versions of the account that have not arrived, as PostgreSQL writes ranges.
    Applied { missing: String },
    /// It took effect earlier: Kafka delivered the record again, or it is in the topic twice.
    Duplicate,
}

pub enum ApplyError {
    Poison(Poison),
    /// Nothing is known about the event. Try again.
    Database(sqlx::Error),
}

impl From<sqlx::Error> for ApplyError {
    /// Values that a column or constraint refuses (SQLSTATE classes 22 and 23) will be refused again.
    fn from(error: sqlx::Error) -> Self {
        let code = error.as_database_error().and_then(|error| error.code());
        match code.as_deref().and_then(|code| code.get(..2)) {
            Some("22" | "23") => ApplyError::Poison(Poison::Refused(error)),
            _ => ApplyError::Database(error),
        }
    }
}

/// Inbox row and effect in one transaction: both are committed, or neither is.
pub async fn apply(pool: &PgPool, event: &Event) -> Result<Outcome, ApplyError> {
    let mut transaction = pool.begin().await?;
    // While another consumer applies the same event, as after a rebalance, this waits for its commit.
    let new = sqlx::query("INSERT INTO inbox (event_id, traceparent) VALUES ($1, $2) ON CONFLICT DO NOTHING")
        .bind(event.id)
        .bind(event.trace.traceparent())
        .execute(&mut *transaction)
        .await?;
    if new.rows_affected() == 0 {
        return Ok(Outcome::Duplicate);
    }
    let amount = match event.effect {
        Effect::Deposit(amount) => i64::from(amount),
        Effect::Nothing => 0,
    };
    let missing: Option<String> = sqlx::query_scalar("SELECT apply_deposit($1, $2, $3)::text")
        .bind(&event.account_id)
        .bind(amount)
        .bind(event.version)
        .fetch_one(&mut *transaction)
        .await?;
    let missing = missing.ok_or(ApplyError::Poison(Poison::VersionReused(event.version)))?;
    transaction.commit().await?;
    Ok(Outcome::Applied { missing })
}

/// Keeps a record that can never take effect, so that the records after it can.
pub async fn reject(pool: &PgPool, message: &impl Message, reason: &Poison) -> Result<(), sqlx::Error> {
    sqlx::query(
        "INSERT INTO rejected (topic, partition, \"offset\", reason, headers, key, value)
         VALUES ($1, $2, $3, $4, $5, $6, $7) ON CONFLICT DO NOTHING",
    )
    .bind(message.topic())
    .bind(message.partition())
    .bind(message.offset())
    .bind(storable(&reason.to_string()))
    .bind(Json(headers(message)))
    .bind(message.key())
    .bind(message.payload())
    .execute(pool)
    .await?;
    Ok(())
}
