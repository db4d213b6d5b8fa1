//! Appends integration events to the outbox.

use basket::application::CommandEnvelope;
use basket::application::integration_events::IntegrationEvent;
use basket::application::ports::PortError;
use outbox::{Event, InvalidEvent, TraceContext};
use sqlx::{Postgres, Transaction};

use crate::postgres::port_error;

/// The aggregate's row is locked, so the events of one basket are inserted in the order of its versions.
pub async fn append_events(
    transaction: &mut Transaction<'static, Postgres>,
    events: &[IntegrationEvent],
    cause: &CommandEnvelope,
) -> Result<(), PortError> {
    let events = outbox_events(events, cause)?;
    outbox::append(transaction, &events).await.map_err(|error| port_error(error.0))
}

/// The rows: each event with the trace, the conversation and the command that it belongs to.
pub fn outbox_events(events: &[IntegrationEvent], cause: &CommandEnvelope) -> Result<Vec<Event>, PortError> {
    let row = |event: &IntegrationEvent| {
        let trace = TraceContext {
            traceparent: cause.context.traceparent.clone(),
            tracestate: cause.context.tracestate.clone(),
        };
        Event::new(event.aggregate_type, &event.aggregate_id, event.event_type, event.payload.clone())?
            .with_id(event.id)
            .with_trace(trace)
            .with_header("correlation-id", &cause.context.correlation_id)?
            .with_header("causation-id", cause.id.to_string())
    };
    let rows: Result<Vec<Event>, InvalidEvent> = events.iter().map(row).collect();
    rows.map_err(|error| PortError::Failed(error.into()))
}
