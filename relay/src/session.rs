//! One session: from connecting to the first error. Starting, reconnecting and rebuilding the producers after a failed
//! delivery all run this code, so delivery can begin in one way only.

mod assembly;
pub mod bootstrap;
mod claim;
pub mod decision;
pub mod end;
pub mod event_loop;
pub mod memory;
mod open;
pub mod plan;
mod replace_slot;
mod server;
pub mod slot_guard;
pub mod slot_wait;

use std::sync::Arc;

use tokio::sync::watch;

use self::claim::OpenSession;
use self::end::SessionEnd;
use self::memory::Memory;
use crate::config::Config;
use crate::error::{ErrorKind, RelayError};
use crate::kafka::credentials;
use crate::kafka::producers::Purge;
use crate::postgres::publication;
use crate::replay::ReplayHandle;
use crate::status::Status;
use crate::status::metrics::Metrics;

/// Shared by all sessions of the process.
#[derive(Clone)]
pub struct Context {
    /// The configuration. Each session reads the credentials in it again.
    pub config: Arc<Config>,
    /// The state that `/status` and `/readyz` show.
    pub status: Status,
    pub metrics: Metrics,
    /// Requests to replay dead letters.
    pub replays: ReplayHandle,
}

/// Runs one session. `Ok` means that `shutdown` was requested. An error goes to `report` as soon as it is known,
/// because the cleanup after it, such as waiting for the last acknowledgements, may take a while.
pub async fn run(
    context: &Context,
    memory: &mut Memory,
    shutdown: &mut watch::Receiver<bool>,
    report: &mut impl FnMut(&RelayError),
) -> Result<SessionEnd, RelayError> {
    let context = &Context {
        config: Arc::new(credentials::current(&context.config).inspect_err(|error| report(error))?),
        ..context.clone()
    };
    let mut requested = shutdown.clone();
    let opened = tokio::select! {
        opened = open::open(context, memory) => opened.inspect_err(|error| report(error))?,
        // This session sent nothing, so there is nothing to drain. What earlier sessions left unconfirmed is unknown.
        _ = requested.wait_for(|stop| *stop) => return Ok(SessionEnd::NotStreaming),
    };
    let ended = stream(context, opened, memory, shutdown, report).await;
    memory.text_form |= ended.as_ref().is_err_and(|error| error.kind == ErrorKind::StreamFormChanged);
    ended
}

async fn stream(
    context: &Context,
    opened: OpenSession,
    memory: &mut Memory,
    shutdown: &mut watch::Receiver<bool>,
    report: &mut impl FnMut(&RelayError),
) -> Result<SessionEnd, RelayError> {
    let history = opened.history;
    // Opened before the status shows "Streaming", so that a replay is accepted from then on.
    let mut replays = context.replays.open();
    let mut event_loop = assembly::event_loop(context, opened).await.inspect_err(|error| report(error))?;
    context.metrics.streaming.set(1);
    let stop = shutdown.clone();
    let ended = tokio::select! {
        ended = event_loop.run(shutdown, &mut replays) => ended,
        error = credentials::rotated(&context.config.sink, stop) => Err(error),
    };
    memory.reached = Some((history, event_loop.confirmed()));
    context.metrics.streaming.set(0);
    context.metrics.in_flight_events.set(0);
    context.metrics.in_flight_bytes.set(0);
    context.metrics.connected.with_label_values(&["kafka"]).set(0);
    let ended = if let Err(error) = ended {
        // First of all, because the rest takes time: once the slot is free another relay may send, so this one must not
        // send anything new. If another relay may be sending already, records in flight are not retried either.
        event_loop.purge(match error.kind {
            ErrorKind::ProcessPaused | ErrorKind::SlotActive | ErrorKind::SlotLost => Purge::All,
            _ => Purge::Queued,
        });
        Err(event_loop.explain(error).await)
    } else {
        ended
    };
    memory.refusal = event_loop.take_refusal();
    memory.lost = event_loop.take_lost_records();
    // The SQL session must outlive the stream: other relays treat a stream without its session as orphaned.
    let (stream, delivery, writer) = event_loop.into_parts();
    let producers = delivery.into_producers();
    let ended = match ended {
        Ok(ended) => Ok(end::finish(stream, ended).await),
        Err(error) => {
            end::send_final_status(stream, &error).await;
            let server = context.status.server();
            let error = publication::refine_slot_error(error, &context.config, server.as_ref()).await;
            report(&error);
            Err(error)
        }
    };
    drop(writer);
    drop(tokio::task::spawn_blocking(move || producers.close()).await);
    ended
}
