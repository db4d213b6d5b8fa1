//! What to do with what was found at a start: a pure function of the checkpoint, the slot and the server.
//!
//! It is asked before the slot is taken, to create it where that is right, and again once it is held, because a
//! standby may have waited for days and everything may be different.
//!
//! | found | verdict |
//! |---|---|
//! | the slot is behind the checkpoint or at it | go on from the checkpoint |
//! | a promotion since, at the checkpoint or beyond it | the same |
//! | the server's log ends, or left the checkpoint's timeline, before the checkpoint | go on from there; what is in Kafka beyond it are phantoms |
//! | neither slot nor progress | create the slot |
//! | a slot, but its snapshot was never stored | create it anew |
//! | the slot is gone, invalidated, or ahead of the checkpoint | stop: rows may be missing |
//! | another cluster, a timeline that is none of the server's, a checkpoint that went back | stop |
//! | a slot of another kind, or of somebody else | stop: a setting is wrong |

use pg_replication::{EndLsn, TimelineHistory};

use crate::config::{CreationPolicy, Source, StartAt};
use crate::error::{ErrorKind, RelayError};
use crate::postgres::checkpoint::{Checkpoint, CheckpointPhase, ClusterTimeline};
use crate::progress::lineage::left_at;
use crate::status::SlotState;

/// What is known at a start.
#[derive(Clone, Debug)]
pub struct StartInputs<'a> {
    /// System identifier of the server.
    pub system_identifier: u64,
    /// Its timelines.
    pub timelines: &'a TimelineHistory,
    /// The end of its log.
    pub flush: EndLsn,
    /// What this process had confirmed when it last streamed, and on which history.
    pub reached: Option<(ClusterTimeline, EndLsn)>,
    /// The relay's settings.
    pub source: &'a Source,
    /// The relay's checkpoint.
    pub checkpoint: Option<&'a Checkpoint>,
    /// The slot.
    pub slot: Option<&'a SlotState>,
}

/// What to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StartDecision {
    /// There never was a slot: register and create it.
    CreateSlot,
    /// The slot was created and the snapshot that goes with it was lost: drop it and create it again.
    RecreateSlot,
    /// Go on with the rows that were there before the slot.
    Copy {
        /// Where the stream begins after them.
        from: EndLsn,
    },
    /// Stream.
    Stream {
        /// Everything before this LSN is in Kafka.
        confirmed: EndLsn,
        /// The checkpoint was ahead of this server: what was delivered beyond `confirmed` are phantoms.
        diverged: bool,
    },
}

/// What the checkpoint says that still holds on this server.
enum CheckpointState {
    Nothing,
    Creating,
    Copying { from: EndLsn },
    Delivered { confirmed: EndLsn, diverged: bool },
}

/// Judges `found`.
pub fn decide(found: &StartInputs<'_>) -> Result<StartDecision, RelayError> {
    let known = found
        .checkpoint
        .map_or(Ok(CheckpointState::Nothing), |checkpoint| checkpoint_state(found, checkpoint))?;
    let Some(slot) = found.slot else { return without_slot(found, &known) };
    check_suitable(found.source, slot)?;
    let name = &found.source.slot.name;
    match known {
        // It may be lost by now, too: nothing was taken from it.
        CheckpointState::Creating => match slot.active_pid {
            None => Ok(StartDecision::RecreateSlot),
            Some(pid) => Err(RelayError::new(
                ErrorKind::SlotActive,
                format!("slot {name} is being created, or held, by the process with pid {pid}"),
            )),
        },
        CheckpointState::Nothing if found.source.start == StartAt::Table => Err(RelayError::new(
            ErrorKind::StartRefused,
            format!(
                "slot {name} exists already and this relay has no checkpoint, so which rows of {} it will stream is not known; \
                 source.start: Now takes it as it is, and without the slot the relay makes one and delivers the whole table",
                found.source.table
            ),
        )),
        CheckpointState::Nothing => {
            alive(name, slot)?;
            Ok(StartDecision::Stream { confirmed: slot.confirmed.unwrap_or_default(), diverged: false })
        }
        CheckpointState::Copying { from } => {
            alive(name, slot)?;
            not_ahead(name, slot, from)?;
            Ok(StartDecision::Copy { from })
        }
        CheckpointState::Delivered { confirmed, diverged } => {
            alive(name, slot)?;
            not_ahead(name, slot, confirmed)?;
            Ok(StartDecision::Stream { confirmed, diverged })
        }
    }
}

fn without_slot(found: &StartInputs<'_>, known: &CheckpointState) -> Result<StartDecision, RelayError> {
    let name = &found.source.slot.name;
    let delivered_before = found.checkpoint.is_some_and(|checkpoint| !checkpoint.offsets.is_empty());
    match known {
        // Somebody took the LSN away, so that it begins anew after a gap.
        CheckpointState::Nothing if delivered_before && found.source.start == StartAt::Table => {
            Err(RelayError::new(
                ErrorKind::StartRefused,
                format!(
                    "slot {name} does not exist, and this relay has delivered before: source.start: Table would send the whole \
                 table again; set Now, or delete the relay's row of outbox_checkpoint if that is meant"
                ),
            ))
        }
        CheckpointState::Copying { from: lsn } | CheckpointState::Delivered { confirmed: lsn, .. } => Err(
            RelayError::new(ErrorKind::SlotLost, format!("slot {name} is gone; the checkpoint is at {lsn}")),
        ),
        CheckpointState::Nothing | CheckpointState::Creating
            if found.source.slot.creation_policy == CreationPolicy::IfMissing =>
        {
            Ok(StartDecision::CreateSlot)
        }
        CheckpointState::Nothing | CheckpointState::Creating => {
            Err(RelayError::new(ErrorKind::SlotMissing, format!("slot {name} does not exist")))
        }
    }
}

/// What of the checkpoint holds on this server.
fn checkpoint_state(found: &StartInputs<'_>, checkpoint: &Checkpoint) -> Result<CheckpointState, RelayError> {
    let changed = |what| Err(RelayError::new(ErrorKind::HistoryChanged, what));
    let ClusterTimeline { system_identifier, timeline } = checkpoint.history;
    if found.system_identifier != system_identifier {
        return changed(format!(
            "the server has system identifier {}, the checkpoint {system_identifier}",
            found.system_identifier
        ));
    }
    if checkpoint.slot != found.source.slot.name {
        return changed(format!(
            "the checkpoint belongs to slot {}, not {}",
            checkpoint.slot, found.source.slot.name
        ));
    }
    let Ok(left) = left_at(found.timelines, timeline) else {
        return changed(format!(
            "the server is on timeline {} and was never on timeline {timeline} of the checkpoint",
            found.timelines.timeline()
        ));
    };
    // How far the server's log and the checkpoint's are one.
    let common = left.map_or(found.flush, EndLsn::new);
    match checkpoint.progress {
        CheckpointPhase::Registered => Ok(CheckpointState::Nothing),
        CheckpointPhase::Creating => Ok(CheckpointState::Creating),
        CheckpointPhase::Snapshotting { from, .. } if from > common => changed(format!(
            "the slot was created at {from}, but the server's log and the checkpoint's part at {common}"
        )),
        CheckpointPhase::Snapshotting { from, .. } => Ok(CheckpointState::Copying { from }),
        CheckpointPhase::Delivered { confirmed } if went_back(found, checkpoint, confirmed) => {
            changed(format!(
                "the checkpoint is at {confirmed}, where it was before: the database was put back to an earlier state without a new \
             timeline, so the same positions will stand for other events"
            ))
        }
        CheckpointPhase::Delivered { confirmed } => {
            Ok(CheckpointState::Delivered { confirmed: confirmed.min(common), diverged: confirmed > common })
        }
    }
}

/// Whether the checkpoint was further once. It never goes back by itself; a promotion may take it back, and begins a new
/// timeline. Without offsets it is a person who wants it so: nothing in Kafka counts then.
fn went_back(found: &StartInputs<'_>, checkpoint: &Checkpoint, confirmed: EndLsn) -> bool {
    let here = checkpoint.history;
    let same_line = here.timeline == found.timelines.timeline();
    let further = found.reached.is_some_and(|(history, reached)| history == here && confirmed < reached);
    further && same_line && !checkpoint.offsets.is_empty()
}

/// Checks that it is a slot that a relay can use at all.
pub fn check_suitable(source: &Source, slot: &SlotState) -> Result<(), RelayError> {
    let Source { slot: config, database, .. } = source;
    let name = &config.name;
    let unsuitable = |what| Err(RelayError::new(ErrorKind::SlotUnsuitable, what));
    let plugin = slot.plugin.as_deref().unwrap_or("none (a physical slot)");
    let of = slot.database.as_deref().unwrap_or("none");
    if plugin != "pgoutput" || of != database {
        return unsuitable(format!("slot {name} has plugin {plugin} and database {of}"));
    }
    if slot.temporary {
        return unsuitable(format!("slot {name} is temporary and ends with the connection that made it"));
    }
    if slot.two_phase {
        return unsuitable(format!(
            "slot {name} sends a prepared transaction before it is known whether it commits (two_phase)"
        ));
    }
    Ok(())
}

fn alive(name: &str, slot: &SlotState) -> Result<(), RelayError> {
    if !slot.is_lost() {
        return Ok(());
    }
    let cause = slot.invalidation_reason.as_deref().unwrap_or("its WAL was removed");
    Err(RelayError::new(ErrorKind::SlotLost, format!("slot {name} is invalidated: {cause}")))
}

fn not_ahead(name: &str, slot: &SlotState, known: EndLsn) -> Result<(), RelayError> {
    let at = slot.confirmed.unwrap_or_default();
    if at <= known {
        return Ok(());
    }
    let what = format!(
        "slot {name} is at {at}, ahead of the checkpoint at {known}: somebody advanced it, or dropped it and made it anew"
    );
    Err(RelayError::new(ErrorKind::SlotAhead, what))
}

#[cfg(test)]
mod tests;
