use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;
use crate::postgres::checkpoint::SNAPSHOT_NOT_STARTED;
use crate::progress::offset::Offset;
use crate::routing::mapping::{RoutingHistory, TopicShape};
use crate::topics::partitions::{PartitionNumber, ScanStart, ScanStarts};

const SYSTEM: u64 = 7;
/// The end of the server's WAL, unless a test sets another.
const END: u64 = 1_000;

fn lsn(value: u64) -> EndLsn {
    EndLsn::new(pg_replication::Lsn::from(value))
}

fn source(start: StartAt) -> Source {
    let mut source: Source = serde_json::from_value(serde_json::json!({
        "host": "h", "database": "db", "user": "u", "publication": {"name": "p"}, "slot": {"name": "s"}
    }))
    .unwrap();
    source.start = start;
    source
}

fn checkpoint(progress: CheckpointPhase) -> Checkpoint {
    Checkpoint {
        slot: "s".into(),
        history: ClusterTimeline { system_identifier: SYSTEM, timeline: 1 },
        progress,
        mappings: None,
        offsets: ScanStarts::new(),
        delivered: "3:9:".parse().unwrap(),
        delivered_offsets: ScanStarts::new(),
        replacements: Some(0),
    }
}

fn delivered(confirmed: u64) -> Checkpoint {
    checkpoint(CheckpointPhase::Delivered { confirmed: lsn(confirmed) })
}

fn snapshotting(from: u64) -> Checkpoint {
    checkpoint(CheckpointPhase::Snapshotting { from: lsn(from), rest: rest() })
}

fn rest() -> RemainingSnapshot {
    RemainingSnapshot { snapshot: "3:3:".into(), cursor: SNAPSHOT_NOT_STARTED, refill: None }
}

/// A refill of the gap behind 10; `from` is the start of the new slot.
fn refilling(from: Option<u64>) -> Checkpoint {
    let row = delivered(10);
    let scope = RefillScope {
        cause: RefillCause::SlotLost,
        delivered: row.delivered.clone(),
        starts: ScanStarts::new(),
    };
    let slot = from.map(|from| (lsn(from), RemainingSnapshot { refill: Some(scope), ..rest() }));
    let progress = CheckpointPhase::Refilling { cause: RefillCause::SlotLost, confirmed: lsn(10), slot };
    Checkpoint { progress, ..row }
}

fn refill() -> Source {
    Source { on_gap: OnGap::Refill, ..source(StartAt::Table) }
}

fn lost(confirmed: u64) -> SlotState {
    SlotState { wal_status: Some("lost".into()), ..slot(confirmed) }
}

fn slot(confirmed: u64) -> SlotState {
    SlotState {
        plugin: Some("pgoutput".into()),
        database: Some("db".into()),
        confirmed: Some(lsn(confirmed)),
        ..SlotState::default()
    }
}

/// A server on `timeline` whose history file is `history`.
struct Server {
    timeline: u32,
    history: &'static str,
    end: u64,
}

const PRIMARY: Server = Server { timeline: 1, history: "", end: END };

impl Server {
    fn decide(
        &self,
        checkpoint: Option<&Checkpoint>,
        slot: Option<&SlotState>,
        source: &Source,
    ) -> Result<StartDecision, ErrorKind> {
        let timelines = TimelineHistory::parse(self.timeline, self.history).unwrap();
        let inputs = StartInputs {
            system_identifier: SYSTEM,
            timelines: &timelines,
            flush: lsn(self.end),
            reached: None,
            source,
            checkpoint,
            slot,
        };
        decide(&inputs).map_err(|error| error.kind)
    }
}

fn decide_on(checkpoint: Option<&Checkpoint>, slot: Option<&SlotState>) -> Result<StartDecision, ErrorKind> {
    PRIMARY.decide(checkpoint, slot, &source(StartAt::Table))
}

fn continues_from(confirmed: u64) -> Result<StartDecision, ErrorKind> {
    streams(confirmed, false)
}

fn streams(confirmed: u64, diverged: bool) -> Result<StartDecision, ErrorKind> {
    Ok(StartDecision::Deliver(DeliveryPhase::Stream { confirmed: lsn(confirmed), diverged }))
}

#[test]
fn a_first_start_creates_the_slot_if_the_creation_policy_allows_it() {
    assert_eq!(decide_on(None, None), Ok(StartDecision::CreateSlot));
    assert_eq!(
        decide_on(Some(&checkpoint(CheckpointPhase::Registered)), None),
        Ok(StartDecision::CreateSlot)
    );
    let mut never = source(StartAt::Now);
    never.slot.creation_policy = CreationPolicy::Never;
    assert_eq!(PRIMARY.decide(None, None, &never), Err(ErrorKind::SlotMissing));
}

#[test]
fn a_relay_that_has_delivered_before_does_not_send_the_whole_table_again() {
    let known = BTreeMap::from([("topic".to_owned(), BTreeMap::new())]);
    let emptied = Checkpoint { offsets: known, ..checkpoint(CheckpointPhase::Registered) };
    assert_eq!(decide_on(Some(&emptied), None), Err(ErrorKind::StartRefused));
    assert_eq!(PRIMARY.decide(Some(&emptied), None, &source(StartAt::Now)), Ok(StartDecision::CreateSlot));
}

#[test]
fn start_now_begins_at_an_existing_slot_and_start_table_is_refused() {
    let registered = checkpoint(CheckpointPhase::Registered);
    for checkpoint in [None, Some(&registered)] {
        assert_eq!(PRIMARY.decide(checkpoint, Some(&slot(5)), &source(StartAt::Now)), continues_from(5));
        assert_eq!(decide_on(checkpoint, Some(&slot(5))), Err(ErrorKind::StartRefused));
    }
}

#[test]
fn a_slot_without_its_snapshot_is_recreated_unless_a_process_holds_it() {
    let creating = checkpoint(CheckpointPhase::Creating);
    assert_eq!(decide_on(Some(&creating), None), Ok(StartDecision::CreateSlot));
    assert_eq!(decide_on(Some(&creating), Some(&slot(5))), Ok(StartDecision::RecreateSlot));
    let held = SlotState { active_pid: Some(1), ..slot(5) };
    assert_eq!(decide_on(Some(&creating), Some(&held)), Err(ErrorKind::SlotActive));
    let lost = SlotState { wal_status: Some("lost".into()), ..slot(5) };
    assert_eq!(decide_on(Some(&creating), Some(&lost)), Ok(StartDecision::RecreateSlot));
    let foreign = SlotState { plugin: Some("wal2json".into()), ..slot(5) };
    assert_eq!(
        decide_on(Some(&creating), Some(&foreign)),
        Err(ErrorKind::SlotUnsuitable),
        "the relay must not drop a slot of another plugin"
    );
}

#[test]
fn a_snapshot_continues_while_its_slot_has_not_moved() {
    let snapshotting = snapshotting(5);
    let snapshot = DeliveryPhase::Snapshot { from: lsn(5), rest: rest() };
    assert_eq!(decide_on(Some(&snapshotting), Some(&slot(5))), Ok(StartDecision::Deliver(snapshot)));
    assert_eq!(decide_on(Some(&snapshotting), Some(&slot(6))), Err(ErrorKind::SlotAhead));
    assert_eq!(decide_on(Some(&snapshotting), None), Err(ErrorKind::SlotLost));
}

#[test]
fn a_slot_behind_the_checkpoint_is_normal_and_one_ahead_is_a_gap() {
    let at_10 = delivered(10);
    assert_eq!(decide_on(Some(&at_10), Some(&slot(8))), continues_from(10));
    assert_eq!(decide_on(Some(&at_10), Some(&slot(10))), continues_from(10));
    assert_eq!(decide_on(Some(&at_10), Some(&slot(11))), Err(ErrorKind::SlotAhead));
}

#[test]
fn a_slot_that_is_gone_or_invalidated_is_never_silently_recreated() {
    for checkpoint in [delivered(10), snapshotting(10)] {
        assert_eq!(decide_on(Some(&checkpoint), None), Err(ErrorKind::SlotLost));
        let lost = SlotState { wal_status: Some("lost".into()), ..slot(8) };
        assert_eq!(decide_on(Some(&checkpoint), Some(&lost)), Err(ErrorKind::SlotLost));
        let invalid = SlotState { invalidation_reason: Some("idle_timeout".into()), ..slot(8) };
        assert_eq!(decide_on(Some(&checkpoint), Some(&invalid)), Err(ErrorKind::SlotLost));
    }
}

#[test]
fn a_slot_that_the_relay_cannot_use_is_a_wrong_setting() {
    let others = [
        SlotState { plugin: Some("wal2json".into()), ..slot(8) },
        SlotState { plugin: None, database: None, ..slot(8) },
        SlotState { database: Some("other".into()), ..slot(8) },
        SlotState { temporary: true, ..slot(8) },
        SlotState { two_phase: true, ..slot(8) },
    ];
    for other in others {
        assert_eq!(
            decide_on(Some(&delivered(10)), Some(&other)),
            Err(ErrorKind::SlotUnsuitable),
            "{other:?}"
        );
        assert_eq!(decide_on(None, Some(&other)), Err(ErrorKind::SlotUnsuitable), "{other:?}");
    }
}

#[test]
fn another_cluster_another_slot_and_a_timeline_the_server_was_never_on_stop_delivery() {
    let at_10 = delivered(10);
    let elsewhere =
        Checkpoint { history: ClusterTimeline { system_identifier: 8, ..at_10.history }, ..at_10.clone() };
    assert_eq!(decide_on(Some(&elsewhere), Some(&slot(8))), Err(ErrorKind::HistoryChanged));
    let renamed = Checkpoint { slot: "t".into(), ..at_10.clone() };
    assert_eq!(decide_on(Some(&renamed), Some(&slot(8))), Err(ErrorKind::HistoryChanged));
    // An old primary, and a server that was restored to a position before the promotion.
    let promoted = Checkpoint { history: ClusterTimeline { timeline: 2, ..at_10.history }, ..at_10 };
    assert_eq!(decide_on(Some(&promoted), Some(&slot(8))), Err(ErrorKind::HistoryChanged));
    let sibling = Server { timeline: 3, history: "1\t0/5\n", end: END };
    let table = source(StartAt::Table);
    assert_eq!(sibling.decide(Some(&promoted), Some(&slot(4)), &table), Err(ErrorKind::HistoryChanged));
}

#[test]
fn a_promotion_beyond_the_checkpoint_is_normal_and_one_before_it_leaves_phantoms() {
    let (at_16, table) = (delivered(16), source(StartAt::Table));
    let promoted = |history| Server { timeline: 2, history, end: END };
    for beyond in ["1\t0/11\n", "1\t0/10\n"] {
        assert_eq!(promoted(beyond).decide(Some(&at_16), Some(&slot(8)), &table), continues_from(16));
    }
    let before = promoted("1\t0/F\n").decide(Some(&at_16), Some(&slot(8)), &table);
    assert_eq!(before, streams(15, true));
    assert_eq!(promoted("1\t0/F\n").decide(Some(&at_16), Some(&slot(16)), &table), Err(ErrorKind::SlotAhead));
    assert_eq!(
        promoted("1\t0/F\n").decide(Some(&snapshotting(16)), Some(&slot(15)), &table),
        Err(ErrorKind::HistoryChanged)
    );
}

#[test]
fn a_wal_that_ends_before_the_checkpoint_leaves_phantoms() {
    let restored = Server { end: 12, ..PRIMARY };
    let decision = restored.decide(Some(&delivered(16)), Some(&slot(8)), &source(StartAt::Table));
    assert_eq!(decision, streams(12, true));
}

#[test]
fn a_checkpoint_that_went_back_on_its_timeline_stops_delivery() {
    let (source, timelines) = (source(StartAt::Table), TimelineHistory::parse(1, "").unwrap());
    let promoted = TimelineHistory::parse(2, "1\t0/64\n").unwrap();
    let at_10 = Checkpoint { offsets: BTreeMap::from([("t".into(), BTreeMap::new())]), ..delivered(10) };
    let slot = slot(8);
    let decide_on = |timelines, checkpoint: &Checkpoint, reached| {
        let reached = Some((at_10.history, lsn(reached)));
        let (checkpoint, slot) = (Some(checkpoint), Some(&slot));
        let inputs = StartInputs {
            system_identifier: SYSTEM,
            timelines,
            flush: lsn(END),
            reached,
            source: &source,
            checkpoint,
            slot,
        };
        decide(&inputs).map_err(|error| error.kind)
    };
    assert_eq!(decide_on(&timelines, &at_10, 10), continues_from(10));
    assert_eq!(decide_on(&timelines, &at_10, 11), Err(ErrorKind::HistoryChanged));
    assert_eq!(decide_on(&promoted, &at_10, 11), continues_from(10), "a lagging standby was promoted");
    assert_eq!(
        decide_on(&timelines, &delivered(10), 11),
        continues_from(10),
        "without offsets, records in Kafka are ignored"
    );
}

#[test]
fn a_gap_is_refilled_if_the_settings_say_so() {
    let at_10 = delivered(10);
    let replace = |cause| Ok(StartDecision::ReplaceSlot(cause));
    let decide = |slot: Option<&SlotState>| PRIMARY.decide(Some(&at_10), slot, &refill());
    assert_eq!(decide(None), replace(RefillCause::SlotLost));
    assert_eq!(decide(Some(&lost(8))), replace(RefillCause::SlotLost));
    assert_eq!(decide(Some(&slot(11))), replace(RefillCause::SlotAhead));
    assert_eq!(decide(Some(&slot(10))), continues_from(10));
    let foreign = SlotState { plugin: Some("wal2json".into()), ..slot(11) };
    assert_eq!(decide(Some(&foreign)), Err(ErrorKind::SlotUnsuitable), "it is not the relay's");
    let promoted = Server { timeline: 2, history: "1\t0/11\n", end: END };
    assert_eq!(promoted.decide(Some(&at_10), None, &refill()), replace(RefillCause::SlotLost));
}

#[test]
fn a_gap_is_not_refilled_if_the_delivered_rows_are_not_known() {
    let refused = |checkpoint: &Checkpoint| {
        let timelines = TimelineHistory::parse(1, "").unwrap();
        let (source, checkpoint) = (refill(), Some(checkpoint));
        let inputs = StartInputs {
            system_identifier: SYSTEM,
            timelines: &timelines,
            flush: lsn(END),
            reached: None,
            source: &source,
            checkpoint,
            slot: None,
        };
        let error = decide(&inputs).unwrap_err();
        assert_eq!(error.kind, ErrorKind::SlotLost);
        error.detail
    };
    assert!(refused(&snapshotting(10)).contains("initial snapshot"));
    let nothing_stored = Checkpoint { delivered: "1:1:".parse().unwrap(), ..delivered(10) };
    assert!(refused(&nothing_stored).contains("had not stored"));
    assert!(refused(&delivered(END + 1)).contains("ahead of this server"));
    let unmigrated = Checkpoint { replacements: None, ..delivered(10) };
    assert!(refused(&unmigrated).contains("0007_refill.sql"));
    for replaced in [delivered(10), refilling(Some(20))] {
        let replaced = Checkpoint { replacements: Some(MAX_REPLACEMENTS), ..replaced };
        assert!(refused(&replaced).contains("3 times"));
    }
}

#[test]
fn a_refill_continues_where_it_was_interrupted() {
    let decide = |checkpoint: &Checkpoint, slot: Option<&SlotState>, source| {
        PRIMARY.decide(Some(checkpoint), slot, &source)
    };
    let replace = |cause| Ok(StartDecision::ReplaceSlot(cause));
    let (creating, delivering) = (refilling(None), refilling(Some(20)));
    for left in [None, Some(lost(8)), Some(slot(20))] {
        assert_eq!(decide(&creating, left.as_ref(), refill()), replace(RefillCause::SlotLost));
    }
    let held = SlotState { active_pid: Some(1), ..slot(20) };
    assert_eq!(decide(&creating, Some(&held), refill()), Err(ErrorKind::SlotActive));
    match decide(&delivering, Some(&slot(20)), refill()) {
        Ok(StartDecision::Deliver(phase)) => {
            assert_eq!((phase.stream_start(), phase.refill().is_some()), (lsn(20), true));
        }
        decision => panic!("{decision:?}"),
    }
    assert_eq!(decide(&delivering, None, refill()), replace(RefillCause::SlotLost), "lost again");
    assert_eq!(decide(&delivering, Some(&slot(21)), refill()), replace(RefillCause::SlotAhead));
    let interrupted = Checkpoint { replacements: Some(MAX_REPLACEMENTS), ..creating.clone() };
    assert_eq!(decide(&interrupted, None, refill()), replace(RefillCause::SlotLost), "counted already");
    let stop = || source(StartAt::Table);
    for checkpoint in [&creating, &delivering] {
        for slot in [None, Some(slot(20))] {
            assert_eq!(decide(checkpoint, slot.as_ref(), stop()), Err(ErrorKind::SlotLost), "switched off");
        }
    }
    let restored = Server { end: 15, ..PRIMARY };
    assert_eq!(
        restored.decide(Some(&delivering), Some(&slot(20)), &refill()),
        Err(ErrorKind::HistoryChanged)
    );
}

#[test]
fn evidence_is_searched_in_every_partition_that_may_have_it() {
    let start = |offset| ScanStart { offset: Offset(offset), last: None };
    let mut rule = RoutingHistory::first(crate::routing::rule::Rule {
        routing: crate::config::Routing::default(),
        max_message_bytes: 1_000,
        dead_letter_topic: None,
    });
    let shape = TopicShape { partitions: 2, max_message_bytes: None, compacted: false };
    rule.current.topics.insert("routed".into(), shape);
    let row = Checkpoint {
        mappings: Some(rule),
        delivered_offsets: BTreeMap::from([(
            "routed".into(),
            BTreeMap::from([(PartitionNumber(0), start(7))]),
        )]),
        offsets: BTreeMap::from([("earlier".into(), BTreeMap::from([(PartitionNumber(3), start(9))]))]),
        ..delivered(10)
    };
    let expected = BTreeMap::from([
        (
            "routed".to_owned(),
            BTreeMap::from([(PartitionNumber(0), start(7)), (PartitionNumber(1), start(0))]),
        ),
        ("earlier".to_owned(), BTreeMap::from([(PartitionNumber(3), start(0))])),
    ]);
    assert_eq!(row.evidence_starts(), expected);
}

fn any_progress() -> impl Strategy<Value = Option<Checkpoint>> {
    let progress = prop_oneof![
        Just(CheckpointPhase::Registered),
        Just(CheckpointPhase::Creating),
        (0u64..40).prop_map(|from| snapshotting(from).progress),
        prop::option::of(10u64..40).prop_map(|from| refilling(from).progress),
        (0u64..40).prop_map(|confirmed| CheckpointPhase::Delivered { confirmed: lsn(confirmed) }),
    ];
    prop::option::of((progress, 1u32..4).prop_map(|(progress, timeline)| {
        let row = checkpoint(progress);
        Checkpoint { history: ClusterTimeline { timeline, ..row.history }, ..row }
    }))
}

proptest! {
    /// In any state, delivery never continues after the checkpoint, after the end of the server's WAL, or before the
    /// slot's confirmed position, and a slot with progress is never recreated.
    #[test]
    fn no_decision_skips_rows(
        checkpoint in any_progress(),
        at in prop::option::of(0u64..40),
        now in any::<bool>(),
        refills in any::<bool>(),
        server in prop::sample::select(vec![(1, ""), (2, "1\t0/10\n"), (3, "1\t0/8\n2\t0/10\n"), (3, "1\t0/8\n")]),
        end in 0x10u64..40,
    ) {
        let on_gap = if refills { OnGap::Refill } else { OnGap::Stop };
        let source = Source { on_gap, ..source(if now { StartAt::Now } else { StartAt::Table }) };
        let slot = at.map(slot);
        let server = Server { timeline: server.0, history: server.1, end };
        let decision = server.decide(checkpoint.as_ref(), slot.as_ref(), &source);
        let progress = checkpoint.map(|row| row.progress);
        match (decision, &progress) {
            (Ok(StartDecision::Deliver(DeliveryPhase::Stream { confirmed, diverged })), Some(CheckpointPhase::Delivered { confirmed: known })) => {
                prop_assert!(confirmed <= *known && confirmed <= lsn(end) && Some(confirmed) >= at.map(lsn));
                prop_assert_eq!(diverged, confirmed < *known);
            }
            (Ok(StartDecision::Deliver(DeliveryPhase::Stream { confirmed, .. })), _) => {
                prop_assert!(now && Some(confirmed) == at.map(lsn));
                prop_assert!(matches!(progress, None | Some(CheckpointPhase::Registered)));
            }
            (Ok(StartDecision::Deliver(DeliveryPhase::Snapshot { from, rest })), Some(CheckpointPhase::Snapshotting { from: known, rest: stored })) => {
                prop_assert!(from == *known && from <= lsn(end) && Some(from) >= at.map(lsn));
                prop_assert_eq!(&rest, stored);
            }
            (Ok(StartDecision::CreateSlot), _) => {
                prop_assert!(at.is_none());
                prop_assert!(matches!(progress, None | Some(CheckpointPhase::Registered | CheckpointPhase::Creating)));
            }
            (Ok(StartDecision::Deliver(DeliveryPhase::Snapshot { from, rest })), Some(CheckpointPhase::Refilling { slot: Some((known, stored)), .. })) => {
                prop_assert!(refills && from == *known && from <= lsn(end) && Some(from) >= at.map(lsn));
                prop_assert_eq!(&rest, stored);
            }
            (Ok(StartDecision::ReplaceSlot(_)), Some(CheckpointPhase::Delivered { confirmed })) => {
                prop_assert!(refills && *confirmed <= lsn(end) && at.is_none_or(|at| lsn(at) > *confirmed));
            }
            (Ok(StartDecision::ReplaceSlot(_)), _) => {
                let continues = matches!(progress, Some(CheckpointPhase::Refilling { .. }));
                prop_assert!(refills && continues);
            }
            (Ok(StartDecision::RecreateSlot), _) => prop_assert_eq!(&progress, &Some(CheckpointPhase::Creating)),
            (Ok(StartDecision::Deliver(DeliveryPhase::Snapshot { .. })), _) => {
                prop_assert!(false, "there is no snapshot to continue");
            }
            (Err(_), _) => {}
        }
    }
}
