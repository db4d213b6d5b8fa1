use pg_replication::PgTime;

use super::*;
use crate::testing::{self, end};

const LONG: Duration = Duration::from_secs(6);

fn slot_at(current: u64) -> SlotState {
    SlotState { current: Some(end(current)), active_pid: Some(7), ..SlotState::default() }
}

fn starting() -> Status {
    Status::new(&testing::config())
}

/// A relay that has been streaming without a fault.
fn streaming() -> Status {
    let status = starting();
    status.enter(Phase::Streaming);
    status.set_session_stats(SessionStats { received: end(100), ..SessionStats::default() });
    status
}

/// Moves the recorded times back by `age`.
fn grow_old(status: &Status, age: Duration) {
    let mut state = status.state();
    let then = Instant::now().checked_sub(age).unwrap();
    (state.kafka.progress_at, state.session.received_at) = (then, then);
}

fn reason(status: &Status) -> Option<String> {
    let json = status.json();
    let ready = matches!(status.readiness(), Readiness::Ready(_));
    assert_eq!(json["ready"], ready, "/readyz and /status disagree: {json}");
    json["problem"]["reason"].as_str().map(str::to_owned)
}

#[test]
fn an_error_makes_it_not_ready_and_streaming_clears_it() {
    let status = starting();
    assert!(status.on_error(Phase::Stopped, &RelayError::new(ErrorKind::SlotLost, "slot s is gone")));
    assert!(
        !status.on_error(Phase::Stopped, &RelayError::new(ErrorKind::SlotLost, "slot s is gone")),
        "already shown"
    );
    let Readiness::NotReady(text) = status.readiness() else { panic!("ready despite an error") };
    assert!(text.starts_with("SlotLost: slot s is gone; rows committed since"), "{text}");
    assert_eq!(reason(&status).as_deref(), Some("SlotLost"));
    status.record_problem();
    status.enter(Phase::Streaming);
    assert_eq!(status.readiness(), Readiness::Ready("streaming".into()));
    assert_eq!(reason(&status), None);
    status.record_problem();
    let last = &status.json()["lastProblem"];
    assert_eq!(last["reason"], "SlotLost");
    assert!(last["until"].is_string(), "{last}");
    assert!(status.on_error(Phase::Stopped, &RelayError::new(ErrorKind::SlotLost, "again")), "a new error");
}

#[test]
fn an_error_that_ended_a_stream_is_resolved_only_when_delivery_has_passed_it() {
    let at = |commit_lsn| outbox::Position { timeline: 1, commit_lsn, index: 0 };
    let refused = |commit| RelayError::new(ErrorKind::DeliveryFailed, "refused").at(at(commit));
    let status = streaming();
    assert!(status.on_error(Phase::Waiting, &refused(200)));
    status.record_problem();
    for _ in 0..3 {
        status.enter(Phase::Streaming);
        assert_eq!(reason(&status).as_deref(), Some("DeliveryFailed"));
        status.record_problem();
        assert!(status.on_error(Phase::Waiting, &refused(100)), "counted each time");
    }
    assert!(status.json()["lastProblem"]["until"].is_null());
    // Another error interrupts delivery for a while.
    assert!(status.on_error(Phase::Waiting, &RelayError::new(ErrorKind::DatabaseUnreachable, "away")));
    assert_eq!(reason(&status).as_deref(), Some("DatabaseUnreachable"));
    status.enter(Phase::Streaming);
    assert_eq!(reason(&status).as_deref(), Some("DeliveryFailed"));
    assert_eq!(status.unresolved_error(), Some(Some(at(200))), "the furthest position of all");
    status.on_error_resolved();
    assert_eq!((reason(&status), status.unresolved_error()), (None, None));
}

#[test]
fn a_poison_row_that_is_sent_after_all_is_resolved_when_it_is_acknowledged() {
    let at = outbox::Position { timeline: 1, commit_lsn: 100, index: 0 };
    let status = streaming();
    status.set_poison(Some(RelayError::new(ErrorKind::PoisonRow, "row 1").at(at)));
    status.set_poison(None);
    assert_eq!(reason(&status).as_deref(), Some("PoisonRow"));
    assert_eq!(status.unresolved_error(), Some(Some(at)));
    status.on_error_resolved();
    assert_eq!(reason(&status), None);
}

#[test]
fn rebuilding_producers_on_purpose_leaves_no_error() {
    let status = streaming();
    status.on_error(Phase::Waiting, &RelayError::new(ErrorKind::CredentialsRotated, "another file"));
    status.enter(Phase::Streaming);
    assert_eq!(reason(&status), None);
}

#[test]
fn a_standby_is_ready() {
    let status = starting();
    status.on_error(Phase::Standby, &RelayError::new(ErrorKind::SlotActive, "held by pid 7"));
    assert_eq!(status.readiness(), Readiness::Ready("standby".into()));
    assert_eq!(status.json()["role"], "standby");
}

#[test]
fn rows_that_wait_without_an_acknowledgement_make_it_not_ready() {
    let status = streaming();
    let waiting =
        SessionStats { received: end(100), oldest_commit: Some(PgTime::now()), ..SessionStats::default() };
    status.set_session_stats(waiting);
    assert_eq!(reason(&status), None);
    grow_old(&status, LONG);
    assert_eq!(reason(&status).as_deref(), Some("NoAcknowledgement"));
    status.set_kafka_answers(KafkaAnswers::No, Some("refused".into()));
    assert_eq!(reason(&status).as_deref(), Some("KafkaUnreachable"), "the cause is known");
    status.set_kafka_answers(KafkaAnswers::Yes, None);
    // Within a large transaction the acknowledged prefix does not move, and yet there is progress.
    status.set_session_stats(SessionStats { acknowledged_events: 1, ..waiting });
    assert_eq!(reason(&status), None);
    // Rows found in Kafka after a crash within the transaction are progress, too.
    grow_old(&status, LONG);
    assert_eq!(reason(&status).as_deref(), Some("NoAcknowledgement"));
    status.set_session_stats(SessionStats { acknowledged_events: 1, suppressed_events: 1, ..waiting });
    assert_eq!(reason(&status), None);
}

#[test]
fn a_checkpoint_that_is_not_written_makes_it_not_ready() {
    let status = streaming();
    let since =
        |age| SessionStats { writing_since: Instant::now().checked_sub(age), ..SessionStats::default() };
    status.set_session_stats(since(Duration::ZERO));
    assert_eq!(reason(&status), None);
    status.set_session_stats(since(LONG));
    assert_eq!(reason(&status).as_deref(), Some("CheckpointStalled"));
    status.set_session_stats(SessionStats::default());
    assert_eq!(reason(&status), None);
}

#[test]
fn a_topic_that_is_found_clears_neither_another_missing_topic_nor_a_poison_row() {
    let status = streaming();
    status.on_topic_missing("a".into());
    status.on_topic_missing("b".into());
    assert_eq!(status.json()["problem"]["message"], "topic a does not exist, and 1 more");
    status.on_topic_exists("a");
    assert_eq!(status.json()["problem"]["message"], "topic b does not exist");
    status.set_poison(Some(RelayError::new(ErrorKind::PoisonRow, "row 1")));
    status.on_topic_exists("b");
    assert_eq!(reason(&status).as_deref(), Some("PoisonRow"));
    status.set_poison(None);
    assert_eq!(reason(&status), None);
}

#[test]
fn a_stream_that_brings_nothing_although_there_is_wal_makes_it_not_ready() {
    let status = streaming();
    let long_ago = Instant::now().checked_sub(LONG).unwrap();
    status.set_slot(long_ago, Some(slot_at(100)), None);
    grow_old(&status, LONG);
    assert_eq!(reason(&status), None, "there is nothing to read");
    status.set_slot(long_ago, Some(slot_at(200)), None);
    assert_eq!(reason(&status).as_deref(), Some("StreamStalled"));
    let full = SessionStats {
        received: end(100),
        stall_reason: Some(StallReason::Budget),
        ..SessionStats::default()
    };
    status.set_session_stats(full);
    assert_eq!(reason(&status), None, "the stream is not the cause");
    assert_eq!(status.json()["budgetFull"], true);
    status.set_session_stats(SessionStats { received: end(200), ..SessionStats::default() });
    assert_eq!(reason(&status), None);
}

#[test]
fn a_database_that_does_not_answer_makes_it_not_ready_unless_the_stream_moves() {
    let status = streaming();
    status.on_observer_failed(Instant::now().checked_sub(LONG).unwrap(), "timeout".into());
    assert_eq!(reason(&status), None, "the stream has just brought something");
    grow_old(&status, LONG);
    assert_eq!(reason(&status).as_deref(), Some("DatabaseUnreachable"));
    assert_eq!(status.json()["source"]["connected"], false);
    status.set_slot(Instant::now(), Some(slot_at(100)), None);
    assert_eq!(reason(&status), None);
}

#[test]
fn an_invalidated_slot_shows_while_the_stream_still_looks_open() {
    let status = streaming();
    let lost = SlotState { wal_status: Some("lost".into()), ..slot_at(100) };
    status.set_slot(Instant::now(), Some(lost), None);
    assert_eq!(reason(&status).as_deref(), Some("SlotLost"));
}

#[test]
fn lag_counts_unread_wal_until_it_is_acknowledged() {
    let status = starting();
    status.set_slot(Instant::now(), Some(slot_at(100)), None);
    assert!(status.lag_seconds() > 0.0);
    status.set_session_stats(SessionStats {
        received: end(100),
        acknowledged: end(100),
        ..SessionStats::default()
    });
    assert_eq!(status.lag_seconds(), 0.0);
}

#[test]
fn wal_that_another_relay_has_confirmed_is_not_this_ones_lag() {
    let status = starting();
    status.on_error(Phase::Standby, &RelayError::new(ErrorKind::SlotActive, "held by pid 7"));
    status.set_slot(Instant::now(), Some(slot_at(100)), None);
    status.set_slot(Instant::now(), Some(SlotState { confirmed: Some(end(100)), ..slot_at(100) }), None);
    assert_eq!(status.lag_seconds(), 0.0);
}

#[test]
fn the_inactive_time_of_a_slot_is_the_servers_or_this_processs() {
    let status = starting();
    let long_ago = Instant::now().checked_sub(LONG).unwrap();
    let idle = SlotState { active_pid: None, ..slot_at(100) };
    status.set_slot(long_ago, Some(idle.clone()), None);
    assert!(status.slot_inactive_for() >= LONG);
    let reported = SlotState { inactive_for: Some(LONG * 10), ..idle };
    status.set_slot(Instant::now(), Some(reported), None);
    assert!(status.slot_inactive_for() >= LONG * 10);
    status.set_slot(Instant::now(), Some(slot_at(100)), None);
    assert_eq!(status.slot_inactive_for(), Duration::ZERO);
}

#[test]
fn lost_records_are_shown_until_kafka_was_verified() {
    let status = starting();
    status.on_error(Phase::Stopped, &RelayError::new(ErrorKind::KafkaLostRecords, "t/0 ends early"));
    status.enter(Phase::Streaming);
    assert_eq!(reason(&status).as_deref(), Some("KafkaLostRecords"));
    status.on_kafka_verified();
    assert_eq!(reason(&status), None);
}
