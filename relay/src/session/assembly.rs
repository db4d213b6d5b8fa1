//! Builds the event loop of an open session.

use std::sync::Arc;

use rdkafka::error::KafkaError;
use tokio::sync::mpsc;

use super::Context;
use super::claim::OpenSession;
use super::decision::DeliveryPhase;
use super::event_loop::EventLoop;
use super::slot_guard::{Now, SlotGuard};
use crate::config::Config;
use crate::delivery::{Delivery, InitialState, KafkaBroker, memory_limit};
use crate::error::{ErrorKind, RelayError};
use crate::kafka::own_records::OwnRecords;
use crate::kafka::producers::{AckQueue, Producers};
use crate::kafka::queries::KafkaQueries;
use crate::kafka::query::QueryResult;
use crate::kafka::scanner::PartitionScanner;
use crate::postgres::backfill::Pages;
use crate::postgres::checkpoint::Writer;
use crate::status::Phase;

/// The event loop of an open session, ready to run.
pub(super) async fn event_loop(context: &Context, opened: OpenSession) -> Result<EventLoop, RelayError> {
    let config = &*context.config;
    let OpenSession { mut stream, walsender_pid, sql, server, history, phase, start, committed } = opened;
    stream.limit_memory(memory_limit(&start.table, &start.mappings, start.form));
    let slot_guard = SlotGuard::new(stream.silence_limit(), walsender_pid, Now::read());
    let acks = Arc::new(AckQueue::new(&config.sink));
    let (broker, query_results) = broker(config, &start, &acks).map_err(|error| {
        let what = format!("the Kafka client could not be created: {error}");
        RelayError::new(ErrorKind::KafkaUnreachable, what)
    })?;
    let refill = phase.refill().map(|refill| refill.cause);
    let writer = Writer::start(sql, config, history, refill, committed, context.status.clone());
    let pages = match phase {
        DeliveryPhase::Stream { confirmed, .. } => {
            tracing::info!(%confirmed, horizon = %start.lineage.horizon(), "streaming");
            context.status.enter(Phase::Streaming);
            None
        }
        DeliveryPhase::Snapshot { from, rest } => {
            let cursor = rest.cursor.0;
            let pages = Pages::start(&config.source, &server, history, &start.mappings, rest).await?;
            match refill {
                None => tracing::info!(start = %from, cursor, "delivering the initial snapshot"),
                Some(cause) => {
                    tracing::info!(start = %from, cursor, cause = cause.name(), "delivering the rows that are missing in Kafka");
                }
            }
            context.status.enter(if refill.is_some() { Phase::Refilling } else { Phase::Snapshot });
            Some(pages)
        }
    };
    let delivery = Delivery::new(config, start, broker, context.status.clone(), context.metrics.clone())?;
    let event_loop = EventLoop::new(stream, delivery, acks, query_results, writer, slot_guard, context);
    Ok(match pages {
        Some(pages) => event_loop.with_snapshot(pages),
        None => event_loop,
    })
}

/// The clients for Kafka, and where the results of queries arrive.
fn broker(
    config: &Config,
    start: &InitialState,
    acks: &Arc<AckQueue>,
) -> Result<(KafkaBroker, mpsc::UnboundedReceiver<QueryResult>), KafkaError> {
    let largest_batch = start.mappings.smallest_limit();
    let producers = Producers::new(&config.sink, config.delivery.max_in_flight_events, largest_batch, acks)?;
    let own = OwnRecords {
        source: config.source.event_source(),
        lineage: start.lineage.clone(),
        server_started: start.server_started,
    };
    let scanner = PartitionScanner::new(&config.sink, own)?;
    let (queries, query_results) = KafkaQueries::new(Arc::new(scanner));
    Ok((KafkaBroker::new(producers, Arc::clone(acks), queries), query_results))
}
