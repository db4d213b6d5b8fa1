//! What to do with what was found at a start: a pure function of the checkpoint, the slot and the server.
//!
//! It is asked before the slot is taken, to create it where that is right, and again once it is held, because a
//! standby may have waited for days and everything may be different.

use pg_replication::EndLsn;

use crate::checkpoint::{Checkpoint, History};
use crate::source::SlotState;
use crate::trouble::{Reason, Trouble};

/// What is known at a start.
#[derive(Clone, Debug)]
pub struct Findings<'a> {
    /// The server, as IDENTIFY_SYSTEM shows it.
    pub history: History,
    /// Database the relay is connected to.
    pub database: &'a str,
    /// Name of the configured slot.
    pub slot_name: &'a str,
    /// The relay's checkpoint.
    pub checkpoint: Option<&'a Checkpoint>,
    /// The slot.
    pub slot: Option<&'a SlotState>,
    /// Whether the relay may create the slot.
    pub may_create: bool,
}

/// What to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// There never was a slot: register and create it.
    CreateSlot,
    /// Stream. Everything before this LSN is in Kafka.
    Stream {
        /// Where delivery goes on.
        confirmed: EndLsn,
    },
}

/// Judges `found`.
pub fn judge(found: &Findings<'_>) -> Result<Verdict, Trouble> {
    let name = found.slot_name;
    if let Some(checkpoint) = found.checkpoint {
        same_history(found, checkpoint)?;
    }
    let confirmed = found.checkpoint.and_then(|checkpoint| checkpoint.confirmed);
    let Some(slot) = found.slot else {
        return match confirmed {
            Some(lsn) => Err(Trouble::new(
                Reason::SlotLost,
                format!("slot {name} is gone; the checkpoint is at {lsn}"),
            )),
            None if found.may_create => Ok(Verdict::CreateSlot),
            None => Err(Trouble::new(Reason::SlotMissing, format!("slot {name} does not exist"))),
        };
    };
    if slot.plugin.as_deref() != Some("pgoutput") || slot.database.as_deref() != Some(found.database) {
        let plugin = slot.plugin.as_deref().unwrap_or("none (a physical slot)");
        let database = slot.database.as_deref().unwrap_or("none");
        let what = format!("slot {name} has plugin {plugin} and database {database}");
        return Err(Trouble::new(Reason::SlotUnsuitable, what));
    }
    if slot.is_lost() {
        let cause = slot.invalidation_reason.as_deref().unwrap_or("its WAL was removed");
        return Err(Trouble::new(Reason::SlotLost, format!("slot {name} is invalidated: {cause}")));
    }
    let slot_confirmed = slot.confirmed.unwrap_or_default();
    match confirmed {
        Some(confirmed) if slot_confirmed > confirmed => {
            let what = format!("slot {name} is at {slot_confirmed}, ahead of the checkpoint at {confirmed}");
            Err(Trouble::new(Reason::SlotAhead, what))
        }
        Some(confirmed) => Ok(Verdict::Stream { confirmed }),
        // Nothing was delivered under this checkpoint yet: the slot, whoever made it, is where history starts.
        None => Ok(Verdict::Stream { confirmed: slot_confirmed }),
    }
}

fn same_history(found: &Findings<'_>, checkpoint: &Checkpoint) -> Result<(), Trouble> {
    let (now, then) = (found.history, checkpoint.history);
    let changed = |what| Err(Trouble::new(Reason::HistoryChanged, what));
    if now.system_identifier != then.system_identifier {
        return changed(format!(
            "the server has system identifier {}, the checkpoint {}",
            now.system_identifier, then.system_identifier
        ));
    }
    if now.timeline != then.timeline {
        return changed(format!(
            "the server is on timeline {}, the checkpoint on {}",
            now.timeline, then.timeline
        ));
    }
    if checkpoint.slot != found.slot_name {
        return changed(format!(
            "the checkpoint belongs to slot {}, not {}",
            checkpoint.slot, found.slot_name
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::partitions::Offsets;

    const HISTORY: History = History { system_identifier: 7, timeline: 1 };

    fn lsn(value: u64) -> EndLsn {
        EndLsn::new(pg_replication::Lsn::from(value))
    }
    fn checkpoint(confirmed: Option<u64>) -> Checkpoint {
        Checkpoint {
            slot: "s".into(),
            history: HISTORY,
            confirmed: confirmed.map(lsn),
            mappings: None,
            offsets: Offsets::new(),
        }
    }
    fn slot(confirmed: u64) -> SlotState {
        SlotState {
            plugin: Some("pgoutput".into()),
            database: Some("db".into()),
            confirmed: Some(lsn(confirmed)),
            ..SlotState::default()
        }
    }
    fn ask(
        checkpoint: Option<&Checkpoint>,
        slot: Option<&SlotState>,
        history: History,
    ) -> Result<Verdict, Reason> {
        let findings =
            Findings { history, database: "db", slot_name: "s", checkpoint, slot, may_create: true };
        judge(&findings).map_err(|trouble| trouble.reason)
    }

    #[test]
    fn a_first_start_creates_the_slot_or_takes_the_one_that_is_there() {
        assert_eq!(ask(None, None, HISTORY), Ok(Verdict::CreateSlot));
        assert_eq!(ask(Some(&checkpoint(None)), None, HISTORY), Ok(Verdict::CreateSlot));
        assert_eq!(ask(None, Some(&slot(5)), HISTORY), Ok(Verdict::Stream { confirmed: lsn(5) }));
    }

    #[test]
    fn a_slot_behind_the_checkpoint_is_normal_and_one_ahead_is_a_gap() {
        let at_10 = checkpoint(Some(10));
        assert_eq!(ask(Some(&at_10), Some(&slot(8)), HISTORY), Ok(Verdict::Stream { confirmed: lsn(10) }));
        assert_eq!(ask(Some(&at_10), Some(&slot(10)), HISTORY), Ok(Verdict::Stream { confirmed: lsn(10) }));
        assert_eq!(ask(Some(&at_10), Some(&slot(11)), HISTORY), Err(Reason::SlotAhead));
    }

    #[test]
    fn a_slot_that_is_gone_or_invalidated_is_never_recreated_in_silence() {
        let at_10 = checkpoint(Some(10));
        assert_eq!(ask(Some(&at_10), None, HISTORY), Err(Reason::SlotLost));
        let lost = SlotState { wal_status: Some("lost".into()), ..slot(8) };
        assert_eq!(ask(Some(&at_10), Some(&lost), HISTORY), Err(Reason::SlotLost));
        let foreign = SlotState { plugin: Some("wal2json".into()), ..slot(8) };
        assert_eq!(ask(Some(&at_10), Some(&foreign), HISTORY), Err(Reason::SlotUnsuitable));
    }

    #[test]
    fn another_cluster_or_timeline_stops_delivery() {
        let at_10 = checkpoint(Some(10));
        let elsewhere = History { system_identifier: 8, ..HISTORY };
        assert_eq!(ask(Some(&at_10), Some(&slot(8)), elsewhere), Err(Reason::HistoryChanged));
        let promoted = History { timeline: 2, ..HISTORY };
        assert_eq!(ask(Some(&at_10), Some(&slot(8)), promoted), Err(Reason::HistoryChanged));
    }
}
