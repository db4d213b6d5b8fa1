//! The start of a refill: replaces a lost slot, and stores which rows lie between it and the new one. docs/REFILL.md
//! explains the steps; a relay that dies at one of them leaves a checkpoint from which the next one continues.

use pg_replication::Client;
use sqlx::postgres::PgConnection;

use super::bootstrap;
use crate::error::{ErrorKind, RefillCause, RelayError};
use crate::failpoint::{self, Boundary};
use crate::postgres::checkpoint::{self, Checkpoint, CheckpointPhase, ClusterTimeline};
use crate::postgres::initial_rows::{self, RowsFor};
use crate::postgres::missing_rows::TransactionSnapshot;
use crate::postgres::slot;
use crate::session::Context;

pub(super) struct Gap<'a> {
    /// What is known to be delivered.
    pub(super) checkpoint: &'a Checkpoint,
    pub(super) cause: RefillCause,
    /// The last session has reported it.
    pub(super) is_counted: bool,
}

/// Replaces the slot. No other relay does the same, because this one holds the lock on the slot's creation. Nothing is
/// dropped before the missing rows can be told from the delivered ones.
pub(super) async fn replace_slot(
    sql: &mut PgConnection,
    client: &mut Client,
    context: &Context,
    history: ClusterTimeline,
    Gap { checkpoint, cause, is_counted }: Gap<'_>,
) -> Result<(), RelayError> {
    let config = &*context.config;
    let name = &config.source.slot.name;
    let blocked = |error: RelayError| blocked_by_rows(name, cause, error);
    initial_rows::check_table(sql, &config.source, RowsFor::Refill).await.map_err(blocked)?;
    check_rows_known(&checkpoint.delivered, &initial_rows::current_snapshot(sql).await?)?;
    if !matches!(checkpoint.progress, CheckpointPhase::Refilling { slot: None, .. }) {
        checkpoint::begin_refill(sql, config, history, cause, &checkpoint.evidence_starts()).await?;
        if !is_counted {
            context.metrics.gap_total.with_label_values(&[cause.name()]).inc();
        }
        context.metrics.refills_total.with_label_values(&[cause.name()]).inc();
        tracing::warn!(
            slot = %name, cause = cause.name(),
            "rows may be missing in Kafka: replacing the slot, and delivering from the table what the lost one would have streamed"
        );
    }
    failpoint::pass(Boundary::GapRecorded);
    slot::drop_own(sql, name).await?;
    failpoint::pass(Boundary::LostSlotDropped);
    let (from, exported) = bootstrap::create_exporting(sql, client, context).await?;
    let (snapshot, order) = initial_rows::describe(sql, &config.source, &exported).await?;
    order.check(&config.source, RowsFor::Refill).map_err(blocked)?;
    checkpoint::begin_snapshot(sql, config, from, &snapshot).await?;
    tracing::info!(slot = %name, lsn = %from, "created the slot; the missing rows from before it are delivered first");
    failpoint::pass(Boundary::RefillBegun);
    Ok(())
}

/// A checkpoint that knows transactions of the future belongs to another history of the database.
fn check_rows_known(delivered: &TransactionSnapshot, now: &TransactionSnapshot) -> Result<(), RelayError> {
    if delivered.is_ahead_of(now) {
        let what = "the delivered snapshot in the checkpoint shows transactions that this server has not assigned yet";
        return Err(RelayError::new(ErrorKind::HistoryChanged, what));
    }
    Ok(())
}

/// Rows that cannot be read, identified or ordered would be left out.
fn blocked_by_rows(slot: &str, cause: RefillCause, error: RelayError) -> RelayError {
    match error.kind {
        ErrorKind::StartRefused | ErrorKind::PermissionDenied => {
            let what = format!("slot {slot} was lost, and its gap is not refilled: {}", error.detail);
            RelayError::new(cause.kind(), what)
        }
        _ => error,
    }
}
