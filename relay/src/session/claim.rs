//! Takes the checkpoint over once the session holds the slot: no other relay writes it from then on.

use pg_replication::{CommitLsn, EndLsn, Host, Stream};
use sqlx::postgres::PgConnection;

use super::decision::{DeliveryPhase, StartDecision};
use super::memory::Memory;
use super::server::{Decided, ServerInfo, decide_now};
use crate::config::Config;
use crate::delivery::{InitialState, LostRecords, OutboxTable, Refusal, StreamForm};
use crate::error::{ErrorKind, RelayError};
use crate::postgres::checkpoint::{self, Checkpoint, CheckpointUpdate, ClusterTimeline, CommittedCheckpoint};
use crate::postgres::{publication, slot, table};
use crate::progress::lineage::Lineage;
use crate::routing::mapping::{Revision, RoutingHistory};
use crate::topics::registry::TopicRegistry;

/// An open stream and everything that runs on it.
pub(super) struct OpenSession {
    pub(super) stream: Stream,
    /// Process id of the walsender that serves the stream.
    pub(super) walsender_pid: Option<i64>,
    pub(super) sql: PgConnection,
    /// The host both connections use.
    pub(super) server: Host,
    pub(super) history: ClusterTimeline,
    pub(super) phase: DeliveryPhase,
    pub(super) start: InitialState,
    pub(super) committed: CommittedCheckpoint,
}

/// Takes the checkpoint over. This session holds the slot, so no other relay writes the checkpoint now.
pub(super) async fn claim_checkpoint(
    config: &Config,
    server: ServerInfo,
    stream: Stream,
    binary: bool,
    mut sql: PgConnection,
    table: Option<u32>,
    memory: &mut Memory,
) -> Result<OpenSession, RelayError> {
    let slot_name = &config.source.slot.name;
    let walsender_pid = slot::state(&mut sql, slot_name).await?.and_then(|slot| slot.active_pid);
    let Decided { decision, checkpoint } = decide_now(&mut sql, config, &server).await?;
    let StartDecision::Deliver(phase) = decision else {
        let what = format!("slot {slot_name} was lost while the relay was starting to stream from it");
        return Err(RelayError::new(ErrorKind::SlotLost, what));
    };
    let history = server.history();
    for doubt in table::doubts(&mut sql, config).await? {
        tracing::warn!("{doubt}");
    }
    adopt_checkpoint(&mut sql, config, checkpoint.as_ref(), history, &phase).await?;
    checkpoint::store_owner(&mut sql, config).await?;
    let server_started = slot::server_start_time(&mut sql).await?;
    let horizon = horizon(&phase, slot::flush_lsn(&mut sql).await?);
    let refusal = memory.refusal.take();
    let refill_cause = phase.refill().map(|refill| refill.cause);
    let update =
        first_checkpoint(config, checkpoint, &phase, horizon, refusal.as_ref(), memory.lost.as_ref())?;
    let committed = checkpoint::write_now(&mut sql, config, history, &update, refill_cause).await?;
    memory.lost = None;
    let CheckpointUpdate { mappings, offsets, .. } = update;
    let form = match binary {
        true => StreamForm::Binary,
        false => StreamForm::Text { largest_value: mappings.largest_value() },
    };
    let start = InitialState {
        confirmed: phase.stream_start(),
        snapshot_cursor: phase.snapshot_cursor(),
        refill: phase.refill().cloned(),
        form,
        lineage: Lineage::new(server.timelines, horizon),
        server_started,
        topics: TopicRegistry::new(mappings.topics(), &offsets),
        mappings,
        table: OutboxTable { name: config.source.table.clone(), oid: table },
        refusal,
    };
    let server = server.address;
    Ok(OpenSession { stream, walsender_pid, sql, server, history, phase, start, committed })
}

/// Nothing committed at or beyond this LSN can be in Kafka yet. Rows from before the slot get positions right before the slot's
/// start, and an earlier session may have sent some of them.
fn horizon(phase: &DeliveryPhase, flush: EndLsn) -> EndLsn {
    match phase {
        DeliveryPhase::Snapshot { from, .. } => flush.max(EndLsn::just_after(CommitLsn::new(from.lsn()))),
        DeliveryPhase::Stream { .. } => flush,
    }
}

/// The checkpoint that a session writes before it delivers: the stored one with the present routing, and with what the
/// last session learned, the record that Kafka refused or the records that it lost.
fn first_checkpoint(
    config: &Config,
    stored: Option<Checkpoint>,
    phase: &DeliveryPhase,
    horizon: EndLsn,
    refusal: Option<&Refusal>,
    lost: Option<&LostRecords>,
) -> Result<CheckpointUpdate, RelayError> {
    let (confirmed, snapshot_cursor) = (phase.stream_start(), phase.snapshot_cursor());
    let (stored, mut offsets) =
        stored.map_or_else(Default::default, |checkpoint| (checkpoint.mappings, checkpoint.offsets));
    if let Some(lost) = lost {
        lost.apply(&mut offsets);
    }
    let mut mappings = mappings_of(config, stored, confirmed, horizon);
    if let Some(refusal) = refusal.filter(|refusal| refusal.is_poison)
        && !mappings.refused.add(refusal.refused())
    {
        let what = "Kafka refuses row after row: the checkpoint already holds as many refused, unconfirmed rows as it can";
        return Err(RelayError::new(ErrorKind::DeliveryFailed, what));
    }
    Ok(CheckpointUpdate { confirmed, snapshot_cursor, mappings, revision: Revision::default(), offsets })
}

/// The routing to deliver with: the configured one, plus the earlier ones from the checkpoint for rows that an earlier
/// session may have sent already.
fn mappings_of(
    config: &Config,
    stored: Option<RoutingHistory>,
    confirmed: EndLsn,
    horizon: EndLsn,
) -> RoutingHistory {
    let stored_version = stored.as_ref().map(|stored| stored.version);
    let mappings = RoutingHistory::at_start(stored, config.routing_rule(), confirmed, horizon);
    if stored_version.is_some_and(|stored| stored != mappings.version) {
        tracing::info!(
            version = mappings.version,
            until = %horizon,
            "the routing or a limit has changed; rows committed before that LSN are still routed by the earlier version"
        );
    }
    mappings
}

/// Moves the checkpoint to the server's current timeline: registers a new checkpoint, or carries one over a promotion
/// or a restore. This session holds the slot.
async fn adopt_checkpoint(
    sql: &mut PgConnection,
    config: &Config,
    checkpoint: Option<&Checkpoint>,
    history: ClusterTimeline,
    phase: &DeliveryPhase,
) -> Result<(), RelayError> {
    let Some(checkpoint) = checkpoint else {
        if publication::may_be_newer_than_slot(sql, config).await? {
            let (slot, publication) = (&config.source.slot.name, &config.source.publication.name);
            tracing::warn!(
                %slot, %publication,
                "the slot may be older than the publication: the stream does not contain rows that were written \
                 before the table was published"
            );
        }
        return checkpoint::register(sql, config, history).await;
    };
    let confirmed = phase.stream_start();
    let diverged = matches!(phase, DeliveryPhase::Stream { diverged: true, .. });
    if diverged {
        tracing::warn!(
            %confirmed,
            "the checkpoint is ahead of this server's history; continuing from the last common position. Events that \
             were delivered beyond it are in Kafka, but not in this database"
        );
    }
    if checkpoint.history == history && !diverged {
        return Ok(());
    }
    let was = checkpoint.history;
    tracing::info!(
        from = was.timeline,
        to = history.timeline,
        "moving the checkpoint to the server's timeline"
    );
    checkpoint::move_to_timeline(sql, config, was, history, confirmed).await
}
