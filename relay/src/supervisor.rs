//! The relay process: runs one session after another until shutdown is requested.

use std::sync::Arc;
use std::time::Instant;

use tokio::sync::watch;

use crate::config::Config;
use crate::error::{Action, Backoff, ErrorKind, RelayError};
use crate::replay::ReplayHandle;
use crate::session::end::SessionEnd;
use crate::session::memory::Memory;
use crate::session::{self, Context};
use crate::status::metrics::Metrics;
use crate::status::{Phase, Status};

/// Runs sessions until `shutdown` turns true.
pub async fn run(
    config: Arc<Config>,
    status: Status,
    metrics: Metrics,
    replays: ReplayHandle,
    mut shutdown: watch::Receiver<bool>,
) -> SessionEnd {
    let context = Context { config, status, metrics, replays };
    let mut memory = Memory::default();
    let ended = sessions(&context, &mut memory, &mut shutdown).await;
    memory.slot.end_creation(&context.config).await;
    ended
}

async fn sessions(
    context: &Context,
    memory: &mut Memory,
    shutdown: &mut watch::Receiver<bool>,
) -> SessionEnd {
    let mut backoff = Backoff::default();
    let mut last_logged = None;
    loop {
        let started = Instant::now();
        let mut report = |error: &RelayError| report_error(context, error, &mut last_logged);
        let error = match session::run(context, memory, shutdown, &mut report).await {
            Ok(SessionEnd::NotStreaming) => return between_sessions(last_logged.as_ref()),
            Ok(ended) => return ended,
            Err(error) => error,
        };
        // Shutdown was requested, but an error ended the session first: what was in flight is unfinished.
        if *shutdown.borrow() {
            return SessionEnd::Interrupted;
        }
        // The next session knows the refused record and gets past it, so it does not have to wait.
        if memory.refusal.as_ref().is_some_and(|refusal| refusal.is_poison) {
            backoff = Backoff::default();
        }
        memory.ended_by = Some(error.kind);
        let action = error.kind.action();
        let pause = backoff.next_pause(action, started.elapsed());
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = context.status.slot_released(), if action == Action::StandBy => {}
            _ = shutdown.wait_for(|stop| *stop) => return between_sessions(last_logged.as_ref()),
        }
    }
}

/// How a relay ends that is stopped while no stream is open. `last` is the error that ended the previous session.
fn between_sessions(last: Option<&(ErrorKind, String)>) -> SessionEnd {
    match last {
        Some((reason, _)) if reason.action() == Action::StandBy => SessionEnd::Standby,
        _ => SessionEnd::NotStreaming,
    }
}

/// Shows an error in `/status`. Log and counters record it once, not at every retry.
fn report_error(context: &Context, error: &RelayError, last_logged: &mut Option<(ErrorKind, String)>) {
    let action = error.kind.action();
    let phase = match action {
        Action::Retry => Phase::Waiting,
        Action::StandBy => Phase::Standby,
        Action::Stop => Phase::Stopped,
    };
    let is_new = context.status.on_error(phase, error);
    let reason = error.kind.name();
    let side = error.kind.side();
    if is_new {
        context.metrics.reconnects_total.with_label_values(&[side, reason]).inc();
    }
    if side == "kafka" {
        context.metrics.producer_rebuilds_total.with_label_values(&[reason]).inc();
    }
    let current = (error.kind, error.detail.clone());
    if last_logged.as_ref() == Some(&current) {
        return;
    }
    match action {
        Action::StandBy => tracing::info!(reason, "standing by: {}", error.detail),
        Action::Retry => tracing::warn!(reason, "{error}"),
        Action::Stop => tracing::error!(reason, "delivery stopped: {error}"),
    }
    // One gap counts once, not at every retry.
    if error.kind.is_gap() {
        context.metrics.gap_total.with_label_values(&[reason]).inc();
    }
    *last_logged = Some(current);
}
