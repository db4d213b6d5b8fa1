//! Takes the checkpoint over once the session holds the slot: no other relay writes it from then on.

use pg_replication::{EndLsn, Lsn, Stream};
use sqlx::postgres::PgConnection;

use super::decision::StartDecision;
use super::open::OpenSession;
use super::server::{Decided, ServerInfo, decide_now};
use super::slot_wait::Memory;
use crate::config::Config;
use crate::delivery::{InitialState, OutboxTable, StreamForm};
use crate::error::{ErrorKind, RelayError};
use crate::postgres::checkpoint::{self, CheckpointUpdate, ClusterTimeline};
use crate::postgres::{publication, slot, table};
use crate::progress::lineage::Lineage;
use crate::routing::mapping::RoutingHistory;
use crate::topics::partitions::Partitions;

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
    let decided = decide_now(&mut sql, config, &server).await?;
    let (confirmed, snapshot) = match (decided.decision, decided.snapshot()) {
        (StartDecision::Snapshot { from }, Some(backfill)) => (from, Some(backfill)),
        (StartDecision::Stream { confirmed, .. }, _) => (confirmed, None),
        _ => {
            let what = format!("slot {slot_name} disappeared while the relay was starting to stream from it");
            return Err(RelayError::new(ErrorKind::SlotLost, what));
        }
    };
    let history = server.history();
    for doubt in table::doubts(&mut sql, config).await? {
        tracing::warn!("{doubt}");
    }
    adopt_checkpoint(&mut sql, config, &decided, history, confirmed).await?;
    checkpoint::store_owner(&mut sql, config).await?;
    let server_started = slot::server_start_time(&mut sql).await?;
    let flush = slot::flush_lsn(&mut sql).await?;
    let snapshot_cursor = snapshot.as_ref().map(|backfill| backfill.after);
    // Snapshot rows get positions right before the slot's start, and an earlier session may have sent some of them.
    let end = if snapshot_cursor.is_some() { flush.max(just_behind(confirmed)) } else { flush };
    let (stored, mut offsets) = decided
        .checkpoint
        .map_or_else(Default::default, |checkpoint| (checkpoint.mappings, checkpoint.offsets));
    if let Some(lost) = &memory.lost {
        lost.apply(&mut offsets);
    }
    let refusal = memory.refusal.take();
    let mut mappings = mappings_of(config, stored, confirmed, end);
    if let Some(refusal) = refusal.as_ref().filter(|refusal| refusal.is_poison)
        && !mappings.refused.add(refusal.refused())
    {
        let what = "Kafka refuses row after row: the checkpoint already holds as many refused, unconfirmed rows as it can";
        return Err(RelayError::new(ErrorKind::DeliveryFailed, what));
    }
    let progress = CheckpointUpdate { confirmed, copied: snapshot_cursor, mappings, revision: 0, offsets };
    let committed = checkpoint::write_now(&mut sql, config, history, &progress).await?;
    memory.lost = None;
    let CheckpointUpdate { mappings, offsets, .. } = progress;
    let partitions = Partitions::from_checkpoint(&mappings, &offsets);
    let form = match binary {
        true => StreamForm::Binary,
        false => StreamForm::Text { largest_value: mappings.largest_value() },
    };
    let lineage = Lineage::new(server.timelines, end);
    let table = OutboxTable { name: config.source.table.clone(), oid: table };
    let start = InitialState {
        confirmed,
        snapshot_cursor,
        form,
        lineage,
        server_started,
        mappings,
        partitions,
        table,
        refusal,
    };
    Ok(OpenSession {
        stream,
        walsender_pid,
        sql,
        server: server.address,
        history,
        start,
        snapshot,
        committed,
    })
}

fn just_behind(lsn: EndLsn) -> EndLsn {
    EndLsn::new(Lsn::from(lsn.lsn().as_u64().saturating_add(1)))
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
    decided: &Decided,
    history: ClusterTimeline,
    confirmed: EndLsn,
) -> Result<(), RelayError> {
    let Some(checkpoint) = &decided.checkpoint else {
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
    let diverged = matches!(decided.decision, StartDecision::Stream { diverged: true, .. });
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
