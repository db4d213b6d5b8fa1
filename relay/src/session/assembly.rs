//! Builds the event loop of an open session.

use std::sync::Arc;

use super::Context;
use super::event_loop::EventLoop;
use super::open::OpenSession;
use super::slot_guard::{Now, SlotGuard};
use crate::delivery::{Delivery, InitialState, KafkaBroker, memory_limit};
use crate::error::{ErrorKind, RelayError};
use crate::kafka::own_records::OwnRecords;
use crate::kafka::producers::{AckQueue, Producers};
use crate::kafka::queries::KafkaQueries;
use crate::kafka::scanner::PartitionScanner;
use crate::postgres::backfill::Pages;
use crate::postgres::checkpoint::Writer;
use crate::status::Phase;

/// The event loop of an open session, ready to run.
pub(super) async fn event_loop(context: &Context, mut opened: OpenSession) -> Result<EventLoop, RelayError> {
    let config = &*context.config;
    let InitialState { table, mappings, form, .. } = &opened.start;
    opened.stream.limit_memory(memory_limit(table, mappings, *form));
    let slot_guard = SlotGuard::new(opened.stream.silence_limit(), opened.walsender_pid, Now::read());
    let refused = |error| {
        RelayError::new(
            ErrorKind::KafkaUnreachable,
            format!("the Kafka client could not be created: {error}"),
        )
    };
    let acks = Arc::new(AckQueue::new(&config.sink));
    let largest_batch = opened.start.mappings.smallest_limit();
    let producers = Producers::new(&config.sink, config.delivery.max_in_flight_events, largest_batch, &acks)
        .map_err(refused)?;
    let own = OwnRecords {
        source: config.source.event_source(),
        lineage: opened.start.lineage.clone(),
        server_started: opened.start.server_started,
    };
    let scanner = PartitionScanner::new(&config.sink, own);
    let (queries, query_results) = KafkaQueries::new(Arc::new(scanner.map_err(refused)?));
    let writer = Writer::start(opened.sql, config, opened.history, opened.committed, context.status.clone());
    let InitialState { confirmed, snapshot_cursor, lineage, mappings, .. } = &opened.start;
    let pages = match opened.snapshot {
        None => {
            tracing::info!(%confirmed, horizon = %lineage.end(), "streaming");
            context.status.enter(Phase::Streaming);
            None
        }
        Some(backfill) => {
            let pages =
                Pages::start(&config.source, &opened.server, opened.history, mappings, backfill).await?;
            tracing::info!(start = %confirmed, cursor = snapshot_cursor, "delivering the initial snapshot");
            context.status.enter(Phase::Copying);
            Some(pages)
        }
    };
    let delivery = Delivery::new(
        config,
        opened.start,
        KafkaBroker::new(producers, Arc::clone(&acks), queries),
        context.status.clone(),
        context.metrics.clone(),
    )?;
    let event_loop =
        EventLoop::new(opened.stream, delivery, acks, query_results, writer, slot_guard, context);
    Ok(match pages {
        Some(pages) => event_loop.with_snapshot(pages),
        None => event_loop,
    })
}
