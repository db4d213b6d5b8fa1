//! Writing events in the caller's transaction.

use serde_json::Value;
use sqlx::types::Json;
use sqlx::{Postgres, QueryBuilder, Transaction};
use uuid::Uuid;

use crate::Event;

/// The rows could not be inserted. The transaction is lost with them: PostgreSQL accepts only a rollback.
#[derive(Debug, thiserror::Error)]
#[error("could not append to the outbox table; roll the transaction back")]
pub struct AppendError(#[from] pub sqlx::Error);

/// Appends `events`, in their order, to the table `outbox` of the transaction's search path. One round trip for any
/// number of events. The relay sees nothing before the caller commits, and nothing of a transaction that is rolled back
/// is ever published.
pub async fn append(
    transaction: &mut Transaction<'_, Postgres>,
    events: &[Event],
) -> Result<(), AppendError> {
    if events.is_empty() {
        return Ok(());
    }
    let mut insert = QueryBuilder::new("");
    push_insert(&mut insert, events, "");
    insert.build().execute(&mut **transaction).await?;
    Ok(())
}

/// Adds the `INSERT` of `events` to a statement, for a writer that changes its state and appends its events in *one*
/// statement, as parts of a `WITH`: a statement is as atomic as a transaction. `condition`, such as
/// `WHERE EXISTS (SELECT FROM changed)`, ties the events to the change.
pub fn push_insert(query: &mut QueryBuilder<Postgres>, events: &[Event], condition: &'static str) {
    let ids: Vec<Uuid> = events.iter().map(Event::id).collect();
    let payloads: Vec<Json<&Value>> = events.iter().map(|event| Json(event.payload())).collect();
    let headers: Vec<Option<Json<_>>> =
        events.iter().map(|event| (!event.headers().is_empty()).then(|| Json(event.headers()))).collect();
    query
        .push("INSERT INTO outbox (")
        .push(COLUMNS)
        .push(") SELECT ")
        .push(COLUMNS)
        .push(" FROM unnest(")
        .push_bind(ids)
        .push("::uuid[], ")
        .push_bind(events.iter().map(Event::aggregate_type).collect::<Vec<_>>())
        .push("::text[], ")
        .push_bind(events.iter().map(Event::aggregate_id).collect::<Vec<_>>())
        .push("::text[], ")
        .push_bind(events.iter().map(Event::event_type).collect::<Vec<_>>())
        .push("::text[], ")
        .push_bind(payloads)
        .push("::jsonb[], ")
        .push_bind(headers)
        .push("::jsonb[], ")
        .push_bind(events.iter().map(|event| event.trace().traceparent.as_deref()).collect::<Vec<_>>())
        .push("::text[], ")
        .push_bind(events.iter().map(|event| event.trace().tracestate.as_deref()).collect::<Vec<_>>())
        .push("::text[]) WITH ORDINALITY AS event (")
        .push(COLUMNS)
        .push(", ordinality) ")
        .push(condition)
        // The identity column `seq` is assigned in the order of this sort, and a refill delivers rows in the order of
        // `seq`.
        .push(" ORDER BY ordinality");
}

const COLUMNS: &str = "id, aggregatetype, aggregateid, type, payload, headers, traceparent, tracestate";
