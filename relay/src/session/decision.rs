//! How a session starts: a pure function of the checkpoint, the slot and the server.
//!
//! It runs before the relay holds the slot, to create a missing one, and again once it holds the slot, because a
//! standby relay may have waited for days and everything may have changed.
//!
//! | state | decision |
//! |---|---|
//! | the slot is at the checkpoint or behind it | continue from the checkpoint |
//! | a promotion since then, at the checkpoint or after it | the same |
//! | the server's WAL ends, or left the checkpoint's timeline, before the checkpoint | continue from there; records in Kafka beyond that position are phantoms |
//! | neither slot nor progress | create the slot |
//! | a slot whose snapshot was never stored | drop and recreate the slot |
//! | the slot is gone, invalidated, or ahead of the checkpoint | stop: rows may be missing; with `source.onGap: Refill` replace the slot |
//! | a refill that is not complete | continue it |
//! | another cluster, a timeline the server was never on, a checkpoint that went back | stop |
//! | a slot that the relay cannot use, or of another database | stop: a setting is wrong |

use pg_replication::{EndLsn, TimelineHistory};

use crate::config::{CreationPolicy, OnGap, Source, StartAt};
use crate::error::{ErrorKind, RefillCause, RelayError};
use crate::postgres::checkpoint::{
    Checkpoint, CheckpointPhase, ClusterTimeline, RefillScope, RemainingSnapshot,
};
use crate::progress::lineage::left_at;
use crate::progress::snapshot_cursor::Seq;
use crate::status::SlotState;

/// A slot that is lost more often than this within an hour is not replaced: a setting is wrong, and each refill reads the
/// table and Kafka.
const MAX_REPLACEMENTS: i32 = 3;

/// What a session knows when it starts.
#[derive(Clone, Debug)]
pub struct StartInputs<'a> {
    /// The server's system identifier.
    pub system_identifier: u64,
    /// The server's timelines.
    pub timelines: &'a TimelineHistory,
    /// The end of the server's WAL.
    pub flush: EndLsn,
    /// The position this process had confirmed when it last streamed, and on which timeline.
    pub reached: Option<(ClusterTimeline, EndLsn)>,
    /// The relay's settings.
    pub source: &'a Source,
    /// The relay's checkpoint.
    pub checkpoint: Option<&'a Checkpoint>,
    pub slot: Option<&'a SlotState>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StartDecision {
    /// There was never a slot: register and create it.
    CreateSlot,
    /// The slot was created, but its snapshot was lost: drop and recreate the slot.
    RecreateSlot,
    /// The slot was lost: record the gap, and replace the slot. The rows in between are delivered from the table.
    ReplaceSlot(RefillCause),
    /// Continue from the checkpoint, or from the slot.
    Deliver(DeliveryPhase),
}

impl StartDecision {
    /// Whether the slot has to be created first.
    pub fn creates_slot(&self) -> bool {
        matches!(
            self,
            StartDecision::CreateSlot | StartDecision::RecreateSlot | StartDecision::ReplaceSlot(_)
        )
    }
}

/// What a session delivers, and from where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DeliveryPhase {
    /// The rest of the initial snapshot, or of a refill, then the stream.
    Snapshot {
        /// Where the stream begins.
        from: EndLsn,
        /// The rows to deliver before the stream.
        rest: RemainingSnapshot,
    },
    Stream {
        /// Everything before this LSN is in Kafka.
        confirmed: EndLsn,
        /// The checkpoint was ahead of this server: records delivered beyond `confirmed` are phantoms.
        diverged: bool,
    },
}

impl DeliveryPhase {
    /// Every row before this LSN is in Kafka, or belongs to the rows that are delivered first.
    pub fn stream_start(&self) -> EndLsn {
        match self {
            DeliveryPhase::Snapshot { from: start, .. } | DeliveryPhase::Stream { confirmed: start, .. } => {
                *start
            }
        }
    }

    /// The refill, while one is in progress.
    pub fn refill(&self) -> Option<&RefillScope> {
        match self {
            DeliveryPhase::Snapshot { rest, .. } => rest.refill.as_ref(),
            DeliveryPhase::Stream { .. } => None,
        }
    }

    /// During the initial snapshot or a refill: all its rows up to this `seq` are in Kafka.
    pub fn snapshot_cursor(&self) -> Option<Seq> {
        match self {
            DeliveryPhase::Snapshot { rest, .. } => Some(rest.cursor),
            DeliveryPhase::Stream { .. } => None,
        }
    }
}

/// The part of the checkpoint that is valid on this server.
enum CheckpointState {
    Nothing,
    Creating,
    Delivering(DeliveryPhase),
    /// The slot is being replaced.
    Replacing(RefillCause),
}

/// Decides how the session starts, or why it must not.
pub fn decide(inputs: &StartInputs<'_>) -> Result<StartDecision, RelayError> {
    let checkpoint = inputs
        .checkpoint
        .map_or(Ok(CheckpointState::Nothing), |checkpoint| checkpoint_state(inputs, checkpoint))?;
    let Some(slot) = inputs.slot else { return without_slot(inputs, &checkpoint) };
    check_suitable(inputs.source, slot)?;
    let name = &inputs.source.slot.name;
    match checkpoint {
        // An invalidated slot is recreated, too: nothing was delivered from it.
        CheckpointState::Creating => {
            check_not_held(name, slot)?;
            Ok(StartDecision::RecreateSlot)
        }
        CheckpointState::Replacing(cause) => {
            check_not_held(name, slot)?;
            continue_refill(inputs, cause)
        }
        CheckpointState::Nothing if inputs.source.start == StartAt::Table => Err(RelayError::new(
            ErrorKind::StartRefused,
            format!(
                "slot {name} already exists and this relay has no checkpoint, so it is unknown which rows of {} the \
                 slot will stream; set source.start: Now to stream from the slot as it is, or drop the slot so that \
                 the relay creates one and delivers the whole table",
                inputs.source.table
            ),
        )),
        CheckpointState::Nothing => {
            check_not_lost(name, slot)?;
            let confirmed = slot.confirmed.unwrap_or_default();
            Ok(StartDecision::Deliver(DeliveryPhase::Stream { confirmed, diverged: false }))
        }
        CheckpointState::Delivering(phase) => {
            let checked = check_not_lost(name, slot);
            match checked.and_then(|()| check_not_ahead(name, slot, phase.stream_start())) {
                Ok(()) => deliver(inputs, phase),
                Err(gap) => close_gap(inputs, &phase, gap),
            }
        }
    }
}

fn without_slot(inputs: &StartInputs<'_>, checkpoint: &CheckpointState) -> Result<StartDecision, RelayError> {
    let name = &inputs.source.slot.name;
    let delivered_before = inputs.checkpoint.is_some_and(|checkpoint| !checkpoint.offsets.is_empty());
    match checkpoint {
        // The LSN was removed from the checkpoint by hand, to start again after a gap.
        CheckpointState::Nothing if delivered_before && inputs.source.start == StartAt::Table => {
            Err(RelayError::new(
                ErrorKind::StartRefused,
                format!(
                    "slot {name} does not exist, and this relay has delivered before: source.start: Table would send \
                     the whole table again; set source.start: Now, or delete the relay's row of outbox_checkpoint if \
                     you want the whole table again"
                ),
            ))
        }
        CheckpointState::Delivering(phase) => {
            let what = format!("slot {name} is gone; the checkpoint is at {}", phase.stream_start());
            close_gap(inputs, phase, RelayError::new(ErrorKind::SlotLost, what))
        }
        CheckpointState::Replacing(cause) => continue_refill(inputs, *cause),
        CheckpointState::Nothing | CheckpointState::Creating
            if inputs.source.slot.creation_policy == CreationPolicy::IfMissing =>
        {
            Ok(StartDecision::CreateSlot)
        }
        CheckpointState::Nothing | CheckpointState::Creating => {
            Err(RelayError::new(ErrorKind::SlotMissing, format!("slot {name} does not exist")))
        }
    }
}

/// Delivers, unless that would continue a refill that the settings do not allow any more.
fn deliver(inputs: &StartInputs<'_>, phase: DeliveryPhase) -> Result<StartDecision, RelayError> {
    if let Some(refill) = phase.refill() {
        check_refill_allowed(inputs, refill.cause)?;
    }
    Ok(StartDecision::Deliver(phase))
}

fn continue_refill(inputs: &StartInputs<'_>, cause: RefillCause) -> Result<StartDecision, RelayError> {
    check_refill_allowed(inputs, cause)?;
    Ok(StartDecision::ReplaceSlot(cause))
}

fn check_refill_allowed(inputs: &StartInputs<'_>, cause: RefillCause) -> Result<(), RelayError> {
    if inputs.source.on_gap == OnGap::Refill {
        return Ok(());
    }
    let what = format!(
        "slot {} was lost and its refill is not complete, and source.onGap is not Refill any more: what is known of the \
         delivered rows stays as it is; set source.onGap: Refill to continue, or end the refill as docs/OPERATIONS.md says, \
         'A refill is blocked'",
        inputs.source.slot.name
    );
    Err(RelayError::new(cause.kind(), what))
}

/// Replaces the slot if the missing rows can be told from the delivered ones. Otherwise delivery stops at the gap.
fn close_gap(
    inputs: &StartInputs<'_>,
    phase: &DeliveryPhase,
    gap: RelayError,
) -> Result<StartDecision, RelayError> {
    if inputs.source.on_gap == OnGap::Stop {
        return Err(gap);
    }
    let (Some(cause), Some(checkpoint)) = (RefillCause::of(gap.kind), inputs.checkpoint) else {
        return Err(gap);
    };
    let hindrance = match (phase, checkpoint.replacements) {
        (DeliveryPhase::Snapshot { rest, .. }, _) if rest.refill.is_none() => {
            "the initial snapshot was not complete".to_owned()
        }
        (DeliveryPhase::Stream { diverged: true, .. }, _) => {
            "the checkpoint is ahead of this server's history".to_owned()
        }
        _ if checkpoint.delivered.is_empty() => {
            "the relay had not stored yet which rows it has delivered".to_owned()
        }
        (_, None) => "outbox_checkpoint lacks columns: apply migrations/outbox/0007_refill.sql".to_owned(),
        (_, Some(replacements)) if replacements >= MAX_REPLACEMENTS => {
            format!(
                "the slot was replaced {replacements} times within the last hour: find out why it is lost"
            )
        }
        _ => return Ok(StartDecision::ReplaceSlot(cause)),
    };
    Err(RelayError { detail: format!("{}; it is not refilled, because {hindrance}", gap.detail), ..gap })
}

/// Which part of the checkpoint is valid on this server.
fn checkpoint_state(
    inputs: &StartInputs<'_>,
    checkpoint: &Checkpoint,
) -> Result<CheckpointState, RelayError> {
    let changed = |what| Err(RelayError::new(ErrorKind::HistoryChanged, what));
    let ClusterTimeline { system_identifier, timeline } = checkpoint.history;
    if inputs.system_identifier != system_identifier {
        return changed(format!(
            "the server has system identifier {}, the checkpoint {system_identifier}",
            inputs.system_identifier
        ));
    }
    if checkpoint.slot != inputs.source.slot.name {
        return changed(format!(
            "the checkpoint belongs to slot {}, not {}",
            checkpoint.slot, inputs.source.slot.name
        ));
    }
    let Ok(left) = left_at(inputs.timelines, timeline) else {
        return changed(format!(
            "the server is on timeline {} and was never on timeline {timeline} of the checkpoint",
            inputs.timelines.timeline()
        ));
    };
    // Up to here the server's WAL and the checkpoint's are the same.
    let common = left.map_or(inputs.flush, EndLsn::new);
    match &checkpoint.progress {
        CheckpointPhase::Registered => Ok(CheckpointState::Nothing),
        CheckpointPhase::Creating => Ok(CheckpointState::Creating),
        CheckpointPhase::Snapshotting { from, .. } if *from > common => changed(format!(
            "the slot was created at {from}, but the server's WAL differs from the checkpoint's after {common}"
        )),
        CheckpointPhase::Snapshotting { from, rest } => {
            Ok(CheckpointState::Delivering(DeliveryPhase::Snapshot { from: *from, rest: rest.clone() }))
        }
        CheckpointPhase::Refilling { confirmed, slot, .. }
            if slot.as_ref().map_or(*confirmed, |(from, _)| *from) > common =>
        {
            changed(format!(
                "a refill had begun at {confirmed}, but the server's WAL differs from the checkpoint's after {common}"
            ))
        }
        CheckpointPhase::Refilling { cause, slot: None, .. } => Ok(CheckpointState::Replacing(*cause)),
        CheckpointPhase::Refilling { slot: Some((from, rest)), .. } => {
            Ok(CheckpointState::Delivering(DeliveryPhase::Snapshot { from: *from, rest: rest.clone() }))
        }
        CheckpointPhase::Delivered { confirmed } if went_back(inputs, checkpoint, *confirmed) => {
            changed(format!(
                "the checkpoint is back at {confirmed}, behind what this relay has confirmed: the database was \
                 restored to an earlier state without a new timeline, so the same positions will be used for other \
                 events"
            ))
        }
        CheckpointPhase::Delivered { confirmed } => {
            let (confirmed, diverged) = ((*confirmed).min(common), *confirmed > common);
            Ok(CheckpointState::Delivering(DeliveryPhase::Stream { confirmed, diverged }))
        }
    }
}

/// Whether the checkpoint was further ahead before. The relay never moves it back. A promotion may, but begins a new
/// timeline. A checkpoint without offsets was moved back on purpose: records in Kafka are to be ignored.
fn went_back(inputs: &StartInputs<'_>, checkpoint: &Checkpoint, confirmed: EndLsn) -> bool {
    let history = checkpoint.history;
    let same_timeline = history.timeline == inputs.timelines.timeline();
    let was_ahead = inputs.reached.is_some_and(|(then, reached)| then == history && confirmed < reached);
    was_ahead && same_timeline && !checkpoint.offsets.is_empty()
}

/// Checks that the relay can use the slot at all.
pub fn check_suitable(source: &Source, slot: &SlotState) -> Result<(), RelayError> {
    let Source { slot: config, database, .. } = source;
    let name = &config.name;
    let unsuitable = |what| Err(RelayError::new(ErrorKind::SlotUnsuitable, what));
    let plugin = slot.plugin.as_deref().unwrap_or("none (a physical slot)");
    let slot_database = slot.database.as_deref().unwrap_or("none");
    if plugin != "pgoutput" || slot_database != database {
        return unsuitable(format!(
            "slot {name} has plugin {plugin} and database {slot_database}; the relay needs pgoutput and {database}"
        ));
    }
    if slot.temporary {
        return unsuitable(format!(
            "slot {name} is temporary: PostgreSQL drops it with the connection that created it"
        ));
    }
    if slot.two_phase {
        return unsuitable(format!(
            "slot {name} has two_phase enabled, so it sends a prepared transaction before it is known whether it \
             commits"
        ));
    }
    Ok(())
}

fn check_not_held(name: &str, slot: &SlotState) -> Result<(), RelayError> {
    let Some(pid) = slot.active_pid else { return Ok(()) };
    let what = format!("the server process with pid {pid} is creating or holding slot {name}");
    Err(RelayError::new(ErrorKind::SlotActive, what))
}

fn check_not_lost(name: &str, slot: &SlotState) -> Result<(), RelayError> {
    if !slot.is_lost() {
        return Ok(());
    }
    let cause = slot.invalidation_reason.as_deref().unwrap_or("its WAL was removed");
    Err(RelayError::new(ErrorKind::SlotLost, format!("slot {name} is invalidated: {cause}")))
}

fn check_not_ahead(name: &str, slot: &SlotState, checkpoint: EndLsn) -> Result<(), RelayError> {
    let at = slot.confirmed.unwrap_or_default();
    if at <= checkpoint {
        return Ok(());
    }
    let what = format!(
        "slot {name} is at {at}, ahead of the checkpoint at {checkpoint}: another client advanced it, or dropped and \
         recreated it"
    );
    Err(RelayError::new(ErrorKind::SlotAhead, what))
}

#[cfg(test)]
mod tests;
