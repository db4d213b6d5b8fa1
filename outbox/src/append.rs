//! Writing events in the caller's transaction.

use serde_json::Value;
use sqlx::postgres::PgArguments;
use sqlx::query::Query;
use sqlx::types::Json;
use sqlx::{AssertSqlSafe, Postgres, Transaction};
use uuid::Uuid;

use crate::Event;

/// A statement that is being given its parameters.
pub type Statement<'q> = Query<'q, Postgres, PgArguments>;

/// The row could not be inserted. The transaction is lost with it: Postgres accepts nothing more but a rollback.
#[derive(Debug, thiserror::Error)]
#[error("could not append to the outbox table; roll the transaction back")]
pub struct AppendError(#[from] pub sqlx::Error);

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
    let statement = append_statement(1, "");
    bind(sqlx::query(AssertSqlSafe(statement)), events).execute(&mut **transaction).await?;
    Ok(())
}

/// The `INSERT` by itself, for a writer that changes its state and appends its events in *one* statement, as parts of a
/// `WITH`: one round trip, and a statement is as atomic as a transaction. Its eight parameters begin at `first` and
/// are bound by [`bind`]; `condition`, such as `WHERE EXISTS (SELECT FROM changed)`, ties the events to the change.
///
/// `condition` becomes part of the statement: it must never hold anything that came from outside.
pub fn append_statement(first: usize, condition: &str) -> String {
    let types = ["uuid", "text", "text", "text", "jsonb", "jsonb", "text", "text"];
    let parameters: Vec<String> =
        types.iter().enumerate().map(|(n, array_of)| format!("${}::{array_of}[]", first + n)).collect();
    // `ORDER BY ordinality`: the identity column `seq` is handed out in the order of this sort, and a refill
    // delivers rows in the order of `seq`.
    format!(
        "INSERT INTO outbox ({COLUMNS})
         SELECT {COLUMNS} FROM unnest({}) WITH ORDINALITY AS event ({COLUMNS}, ordinality)
         {condition} ORDER BY ordinality",
        parameters.join(", ")
    )
}

const COLUMNS: &str = "id, aggregatetype, aggregateid, type, payload, headers, traceparent, tracestate";

/// Binds the parameters of [`append_statement`], behind those that are bound already.
pub fn bind<'q>(query: Statement<'q>, events: &[Event]) -> Statement<'q> {
    let ids: Vec<Uuid> = events.iter().map(Event::id).collect();
    let payloads: Vec<Json<&Value>> = events.iter().map(|event| Json(event.payload())).collect();
    let headers: Vec<Option<Json<_>>> =
        events.iter().map(|event| (!event.headers().is_empty()).then(|| Json(event.headers()))).collect();
    query
        .bind(ids)
        .bind(events.iter().map(|event| event.aggregate_type()).collect::<Vec<_>>())
        .bind(events.iter().map(|event| event.aggregate_id()).collect::<Vec<_>>())
        .bind(events.iter().map(|event| event.event_type()).collect::<Vec<_>>())
        .bind(payloads)
        .bind(headers)
        .bind(events.iter().map(|event| event.trace().traceparent.as_deref()).collect::<Vec<_>>())
        .bind(events.iter().map(|event| event.trace().tracestate.as_deref()).collect::<Vec<_>>())
}
