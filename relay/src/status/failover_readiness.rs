//! Whether delivery would continue if a standby were promoted now. Only a standby can say whether its copy of the slot is
//! usable, so the standbys that `source.host` leads to are queried. A standby that cannot be queried is unknown, and no
//! reason to report that the copy is missing.

use pg_replication::{EndLsn, Host};

/// What the primary shows.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PrimaryState {
    /// Identifies the cluster that primary and standbys belong to.
    pub system_identifier: String,
    /// Whether standbys may synchronise the slot (PostgreSQL 17 and newer).
    pub is_failover_slot: bool,
    /// The LSN the primary regards as confirmed.
    pub confirmed: Option<EndLsn>,
    /// The slots in `synchronized_standby_slots` that no standby reads, each with its fault.
    pub unread_standby_slots: Vec<String>,
    /// The physical slots that are in use: each is a standby's.
    pub standby_slots: Vec<String>,
}

/// The result of a query of a host that is, or may be, a standby.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Standby {
    pub host: Host,
    /// What it shows, or why it could not be queried.
    pub state: Result<StandbyState, String>,
}

/// What a standby shows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StandbyState {
    /// Identifies its cluster.
    pub system_identifier: String,
    /// The physical slot that it reads on the primary: `primary_slot_name`.
    pub primary_slot: Option<String>,
    /// Its copy of the relay's slot.
    pub copy: SlotCopy,
    /// The settings that keep it from synchronising slots.
    pub obstacles: Vec<&'static str>,
}

/// A standby's copy of the slot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SlotCopy {
    Missing,
    /// A slot of this name that PostgreSQL does not synchronise: a former primary keeps its own, and other software may
    /// copy slots.
    NotSynchronized,
    /// The first synchronisation is not completed: a promotion drops the slot.
    Temporary,
    /// The standby has removed what the slot needs.
    Invalidated(String),
    /// A promotion keeps it.
    Usable {
        confirmed: Option<EndLsn>,
    },
}

impl SlotCopy {
    /// Its name in `/status`.
    pub fn name(&self) -> &'static str {
        match self {
            SlotCopy::Missing => "missing",
            SlotCopy::NotSynchronized => "notSynchronized",
            SlotCopy::Temporary => "temporary",
            SlotCopy::Invalidated(_) => "invalidated",
            SlotCopy::Usable { .. } => "usable",
        }
    }
}

named! {
    /// Why delivery would continue after a failover, or not. The names are API: `/status`, and the reason of a condition.
    pub enum FailoverReason {
        /// Every known standby has a usable copy of the slot.
        SlotSynchronized = "SlotSynchronized",
        /// A standby has no complete copy.
        SlotNotSynchronized = "SlotNotSynchronized",
        /// The slot is not a failover slot, and a standby has none of its name.
        NoFailoverSlot = "NoFailoverSlot",
        /// A standby has a slot of the same name that prevents the synchronisation.
        SlotSyncBlocked = "SlotSyncBlocked",
        /// A standby's copy is invalidated.
        SlotCopyInvalidated = "SlotCopyInvalidated",
        /// `synchronized_standby_slots` names a slot that no standby reads.
        StandbySlotUnread = "StandbySlotUnread",
        /// A standby could not be queried, or its copy cannot be judged.
        StandbyUnknown = "StandbyUnknown",
        NoStandbyKnown = "NoStandbyKnown",
        /// The slot was not observed on the primary.
        SlotUnknown = "SlotUnknown",
    }
}

impl FailoverReason {
    pub fn from_name(name: &str) -> Option<FailoverReason> {
        FailoverReason::ALL.into_iter().find(|reason| reason.name() == name)
    }

    /// Whether delivery would continue after a failover; `None` if that is not known.
    pub fn is_ready(self) -> Option<bool> {
        match self {
            FailoverReason::SlotSynchronized => Some(true),
            FailoverReason::SlotNotSynchronized
            | FailoverReason::NoFailoverSlot
            | FailoverReason::SlotSyncBlocked
            | FailoverReason::SlotCopyInvalidated
            | FailoverReason::StandbySlotUnread => Some(false),
            FailoverReason::StandbyUnknown | FailoverReason::NoStandbyKnown | FailoverReason::SlotUnknown => {
                None
            }
        }
    }

    /// What to do about it.
    pub fn remedy(self) -> &'static str {
        match self {
            FailoverReason::SlotSynchronized => "nothing",
            FailoverReason::SlotNotSynchronized => {
                "wait, if the slot is new: rows of the outbox complete its copy; otherwise set sync_replication_slots, \
                 hot_standby_feedback and primary_slot_name on the standby, with a dbname in primary_conninfo, and see its \
                 server log"
            }
            FailoverReason::NoFailoverSlot => {
                "on PostgreSQL 17 and newer stop the relay and run ALTER_REPLICATION_SLOT with FAILOVER true; before, only other \
                 software copies slots"
            }
            FailoverReason::SlotSyncBlocked => {
                "drop the slot on that standby, never on the primary: SELECT pg_drop_replication_slot(...); PostgreSQL then \
                 synchronises a new copy"
            }
            FailoverReason::SlotCopyInvalidated => {
                "nothing, if PostgreSQL replaces the copy within minutes; otherwise check max_slot_wal_keep_size and \
                 hot_standby_feedback of the standby"
            }
            FailoverReason::StandbySlotUnread => {
                "start the standby, or remove its slot from synchronized_standby_slots on the primary"
            }
            FailoverReason::StandbyUnknown => {
                "name every standby in source.host, let the relay's role connect to it, and look at pg_replication_slots there"
            }
            FailoverReason::NoStandbyKnown => {
                "nothing, if there is no standby; otherwise name the standbys in source.host, after the primary"
            }
            FailoverReason::SlotUnknown => {
                "nothing: it shows once this relay is active and the primary responds"
            }
        }
    }
}

/// The answer, with the sentence for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FailoverReadiness {
    pub reason: FailoverReason,
    pub message: String,
}

/// What was observed last.
#[derive(Clone, Debug, Default)]
pub struct FailoverState {
    /// `None` while the primary or the slot is not known.
    pub primary: Option<PrimaryState>,
    pub standbys: Vec<Standby>,
}

impl FailoverState {
    /// Whether delivery would continue after a failover. One standby without the slot is enough to be not ready, because
    /// the relay does not decide which one is promoted.
    pub fn readiness(&self) -> FailoverReadiness {
        let Some(primary) = &self.primary else {
            let message =
                "the relay does not see the slot on the primary, or another relay is active".to_owned();
            return FailoverReadiness { reason: FailoverReason::SlotUnknown, message };
        };
        let findings: Vec<_> = self.findings(primary);
        let worst = |ready: Option<bool>| findings.iter().find(|(reason, _)| reason.is_ready() == ready);
        let Some((reason, _)) = worst(Some(false)).or_else(|| worst(None)).or_else(|| worst(Some(true)))
        else {
            let message =
                "source.host leads to the primary only, and no standby reads a slot of it".to_owned();
            return FailoverReadiness { reason: FailoverReason::NoStandbyKnown, message };
        };
        let same = findings.iter().filter(|(other, _)| other.is_ready() == reason.is_ready());
        let message = same.map(|(_, sentence)| sentence.as_str()).collect::<Vec<_>>().join("; ");
        FailoverReadiness { reason: *reason, message }
    }

    fn findings(&self, primary: &PrimaryState) -> Vec<(FailoverReason, String)> {
        let unread = primary.unread_standby_slots.iter().map(|fault| {
            let sentence = format!("synchronized_standby_slots lists {fault}, so delivery waits");
            (FailoverReason::StandbySlotUnread, sentence)
        });
        let standbys = self.standbys.iter().map(|standby| standby.finding(primary));
        let others = primary.standby_slots.iter().filter(|slot| !self.has_standby_of(slot)).map(|slot| {
            let sentence = format!(
                "the standby that reads slot {slot} of the primary is not one of the servers of source.host"
            );
            (FailoverReason::StandbyUnknown, sentence)
        });
        unread.chain(standbys).chain(others).collect()
    }

    fn has_standby_of(&self, slot: &str) -> bool {
        let states = self.standbys.iter().filter_map(|standby| standby.state.as_ref().ok());
        states.into_iter().any(|state| state.primary_slot.as_deref() == Some(slot))
    }
}

impl Standby {
    fn finding(&self, primary: &PrimaryState) -> (FailoverReason, String) {
        let host = &self.host;
        let state = match &self.state {
            Ok(state) if state.system_identifier == primary.system_identifier => state,
            Ok(_) => {
                let sentence = format!("{host} is a standby of another cluster");
                return (FailoverReason::StandbyUnknown, sentence);
            }
            Err(why) => return (FailoverReason::StandbyUnknown, format!("{host} cannot be queried: {why}")),
        };
        match (&state.copy, primary.is_failover_slot) {
            (SlotCopy::Missing, false) => (
                FailoverReason::NoFailoverSlot,
                format!("{host} has no copy of the slot, which is not a failover slot"),
            ),
            (SlotCopy::Missing, true) => {
                let cause = match state.obstacles.as_slice() {
                    [] => String::new(),
                    obstacles => format!(": {}", obstacles.join(", ")),
                };
                (FailoverReason::SlotNotSynchronized, format!("{host} has no copy of the slot{cause}"))
            }
            (SlotCopy::Temporary, _) => (
                FailoverReason::SlotNotSynchronized,
                format!("the copy on {host} is temporary: it is completed when the slot has advanced"),
            ),
            (SlotCopy::NotSynchronized, true) => (
                FailoverReason::SlotSyncBlocked,
                format!("{host} has a slot of this name that is not a copy, as after it was the primary"),
            ),
            (SlotCopy::NotSynchronized, false) => (
                FailoverReason::StandbyUnknown,
                format!("{host} has a slot of this name that PostgreSQL does not synchronise"),
            ),
            (SlotCopy::Invalidated(why), _) => {
                (FailoverReason::SlotCopyInvalidated, format!("the copy on {host} is invalidated: {why}"))
            }
            (SlotCopy::Usable { .. }, _) => {
                (FailoverReason::SlotSynchronized, format!("{host} has a usable copy of the slot"))
            }
        }
    }

    /// By how many bytes of WAL its copy is behind the slot of the primary.
    pub fn behind(&self, primary: Option<&PrimaryState>) -> Option<u64> {
        match &self.state.as_ref().ok()?.copy {
            SlotCopy::Usable { confirmed } => Some(primary?.confirmed?.bytes_since((*confirmed)?)),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::end;

    fn primary() -> PrimaryState {
        PrimaryState {
            system_identifier: "1".into(),
            is_failover_slot: true,
            confirmed: Some(end(100)),
            ..PrimaryState::default()
        }
    }

    fn standby(name: &str, copy: SlotCopy) -> Standby {
        let state = StandbyState {
            system_identifier: "1".into(),
            primary_slot: Some(name.into()),
            copy,
            obstacles: Vec::new(),
        };
        Standby { host: Host::Tcp { host: name.into(), port: 5432 }, state: Ok(state) }
    }

    fn usable() -> SlotCopy {
        SlotCopy::Usable { confirmed: Some(end(60)) }
    }

    fn judged(primary: PrimaryState, standbys: &[Standby]) -> FailoverReason {
        FailoverState { primary: Some(primary), standbys: standbys.to_vec() }.readiness().reason
    }

    #[test]
    fn every_standby_needs_a_usable_copy() {
        let [a, b] = ["a", "b"].map(|name| standby(name, usable()));
        assert_eq!(judged(primary(), &[a.clone(), b]), FailoverReason::SlotSynchronized);
        for (copy, reason) in [
            (SlotCopy::Missing, FailoverReason::SlotNotSynchronized),
            (SlotCopy::Temporary, FailoverReason::SlotNotSynchronized),
            (SlotCopy::NotSynchronized, FailoverReason::SlotSyncBlocked),
            (SlotCopy::Invalidated("wal_removed".into()), FailoverReason::SlotCopyInvalidated),
        ] {
            assert_eq!(judged(primary(), &[a.clone(), standby("b", copy)]), reason);
        }
    }

    #[test]
    fn what_was_not_observed_is_unknown_and_hides_no_missing_copy() {
        let away = Standby { state: Err("no answer".into()), ..standby("b", usable()) };
        let known = standby("a", usable());
        assert_eq!(judged(primary(), &[]), FailoverReason::NoStandbyKnown);
        assert_eq!(judged(primary(), &[known.clone(), away.clone()]), FailoverReason::StandbyUnknown);
        assert_eq!(
            judged(primary(), &[away, standby("a", SlotCopy::Missing)]),
            FailoverReason::SlotNotSynchronized
        );
        let read = PrimaryState { standby_slots: vec!["a".into(), "b".into()], ..primary() };
        assert_eq!(judged(read, &[known]), FailoverReason::StandbyUnknown, "b is not in source.host");
        let nothing = FailoverState::default().readiness();
        assert_eq!(nothing.reason, FailoverReason::SlotUnknown);
    }

    #[test]
    fn a_standby_of_another_cluster_says_nothing() {
        let elsewhere = PrimaryState { system_identifier: "2".into(), ..primary() };
        assert_eq!(judged(elsewhere, &[standby("a", usable())]), FailoverReason::StandbyUnknown);
    }

    #[test]
    fn without_a_failover_slot_only_a_missing_slot_is_known() {
        let plain = PrimaryState { is_failover_slot: false, ..primary() };
        assert_eq!(judged(plain.clone(), &[standby("a", SlotCopy::Missing)]), FailoverReason::NoFailoverSlot);
        assert_eq!(
            judged(plain.clone(), &[standby("a", SlotCopy::NotSynchronized)]),
            FailoverReason::StandbyUnknown,
            "other software may keep it"
        );
        assert_eq!(judged(plain, &[]), FailoverReason::NoStandbyKnown, "storage may keep it");
    }

    #[test]
    fn a_listed_slot_that_no_standby_reads_is_named() {
        let waits = PrimaryState {
            unread_standby_slots: vec!["slot gone, which does not exist".into()],
            ..primary()
        };
        let state = FailoverState { primary: Some(waits), standbys: vec![standby("a", usable())] };
        let readiness = state.readiness();
        assert_eq!(readiness.reason, FailoverReason::StandbySlotUnread);
        assert!(readiness.message.contains("slot gone"), "{readiness:?}");
    }

    #[test]
    fn a_usable_copy_is_behind_by_what_is_confirmed_since() {
        assert_eq!(standby("a", usable()).behind(Some(&primary())), Some(40));
        assert_eq!(standby("a", SlotCopy::Missing).behind(Some(&primary())), None);
        assert_eq!(standby("a", usable()).behind(None), None);
    }

    #[test]
    fn a_reason_is_found_by_its_name() {
        for reason in FailoverReason::ALL {
            assert_eq!(FailoverReason::from_name(reason.name()), Some(reason));
        }
    }
}
