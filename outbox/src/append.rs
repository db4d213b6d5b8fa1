//! Writing events in the caller's transaction.

use serde_json::Value;
use sqlx::types::Json;
use sqlx::{Postgres, Transaction};
use uuid::Uuid;

use crate::Event;

/// The row could not be inserted. The transaction is lost with it: Postgres accepts nothing more but a rollback.
#[derive(Debug, thiserror::Error)]
#[error("could not append to the outbox table; roll the transaction back")]
pub struct AppendError(#[from] pub sqlx::Error);

// `ORDER BY ordinality`: the identity column `seq` is handed out in the order of this sort, and a refill
// delivers rows in the order of `seq`.
const APPEND: &str = "
    INSERT INTO outbox (id, aggregatetype, aggregateid, type, payload, headers, traceparent, tracestate)
    SELECT id, aggregatetype, aggregateid, type, payload, headers, traceparent, tracestate
    FROM unnest($1::uuid[], $2::text[], $3::text[], $4::text[], $5::jsonb[], $6::jsonb[], $7::text[], $8::text[])
         WITH ORDINALITY
         AS event (id, aggregatetype, aggregateid, type, payload, headers, traceparent, tracestate, ordinality)
    ORDER BY ordinality";

/// Appends `events`, in their order, to the table `outbox` of the transaction's search path. One round trip
/// for any number of events. Nothing is visible to the relay before the caller commits, and nothing is ever
/// published of a transaction that is rolled back.
pub async fn append(
    transaction: &mut Transaction<'_, Postgres>,
    events: &[Event],
) -> Result<(), AppendError> {
    if events.is_empty() {
        return Ok(());
    }
    let ids: Vec<Uuid> = events.iter().map(Event::id).collect();
    let payloads: Vec<Json<&Value>> = events.iter().map(|event| Json(event.payload())).collect();
    let headers: Vec<Option<Json<_>>> =
        events.iter().map(|event| (!event.headers().is_empty()).then(|| Json(event.headers()))).collect();
    sqlx::query(APPEND)
        .bind(ids)
        .bind(events.iter().map(|event| event.aggregate_type()).collect::<Vec<_>>())
        .bind(events.iter().map(|event| event.aggregate_id()).collect::<Vec<_>>())
        .bind(events.iter().map(|event| event.event_type()).collect::<Vec<_>>())
        .bind(payloads)
        .bind(headers)
        .bind(events.iter().map(|event| event.trace().traceparent.as_deref()).collect::<Vec<_>>())
        .bind(events.iter().map(|event| event.trace().tracestate.as_deref()).collect::<Vec<_>>())
        .execute(&mut **transaction)
        .await?;
    Ok(())
}
