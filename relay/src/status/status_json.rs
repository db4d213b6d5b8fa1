//! `/status` as JSON. Members and their meaning: docs/OPERATIONS.md. Times are RFC 3339, durations seconds, bytes
//! stats. Observations of the server carry their time, because the server may be unreachable since.

use std::time::{Duration, Instant, SystemTime};

use chrono::{DateTime, SecondsFormat, Utc};
use pg_replication::EndLsn;
use serde_json::{Value, json};

use super::failover_readiness::FailoverState;
use super::problems::Problem;
use super::state::State;
use super::{KafkaAnswers, Phase, SilentPartition, SlotState, StallReason, WaitsFor};

pub(super) fn json(state: &State, now: Instant) -> Value {
    let problem = state.problem(now);
    let stats = &state.session.stats;
    json!({
        "version": env!("CARGO_PKG_VERSION"),
        "name": state.config.name,
        "startedAt": time(state.started),
        "role": role(state.phase),
        "phase": state.phase.name(),
        "phaseSince": time(state.phase_since),
        "ready": state.is_ready(problem.as_ref()),
        "problem": problem.as_ref().or(state.problems.error.as_ref()).map(|shown| problem_json(shown, None)),
        "lastProblem": state.problems.last.as_ref().map(|past| problem_json(&past.shown, Some(past.until))),
        "lagSeconds": seconds(state.lag(now)),
        "receivedLsn": stats.received.to_string(),
        "receivedEvents": stats.received_events,
        "sentEvents": stats.sent_events,
        "suppressedEvents": stats.suppressed_events,
        "acknowledgedLsn": stats.acknowledged.to_string(),
        "acknowledgedEvents": stats.acknowledged_events,
        "confirmedLsn": stats.confirmed.to_string(),
        "inFlightEvents": stats.in_flight_events,
        "inFlightBytes": stats.in_flight_bytes,
        "inFlightLimit": {
            "events": state.config.delivery.max_in_flight_events,
            "bytes": state.config.delivery.max_in_flight_bytes,
        },
        "copiedRows": stats.snapshot_rows,
        "phantoms": { "count": state.phantoms.count, "ids": state.phantoms.ids },
        "deadLetters": dead_letters(state),
        "budgetFull": stats.stall_reason == Some(StallReason::Budget),
        "notReadingBecause": not_reading(state),
        "source": source(state, now),
        "slot": slot(state, now),
        "checkpoint": checkpoint(state, now),
        "failover": failover(&state.failover),
        "heartbeat": {
            "intervalSeconds": state.heartbeat.interval().as_secs(),
            "ageSeconds": state.heartbeat_age(now).map(seconds),
        },
        "retention": state.maintenance.as_ref().map(|maintained| json!({
            "at": time(maintained.at),
            "held": maintained.held,
            "error": maintained.error,
        })),
        "sink": {
            "bootstrapServers": state.config.sink.bootstrap_servers,
            "connected": match state.kafka.answers {
                KafkaAnswers::Unknown => Value::Null,
                answers => (answers == KafkaAnswers::Yes).into(),
            },
            "lastAcknowledgementAt": state.kafka.acknowledged_at.map(time),
            "silentPartitions": state.kafka.silent.iter().map(|silent| silent_partition(silent, now)).collect::<Vec<_>>(),
        },
    })
}

fn silent_partition(silent: &SilentPartition, now: Instant) -> Value {
    let age = |since| seconds(now.saturating_duration_since(since));
    json!({
        "topic": silent.topic,
        "partition": silent.partition,
        "records": silent.records,
        "oldestSeconds": age(silent.oldest),
        "silentSeconds": age(silent.since),
        "waitsFor": match silent.waits_for {
            WaitsFor::Acknowledgement => "acknowledgement",
            WaitsFor::Scan => "search",
        },
        "cause": silent.cause,
    })
}

fn dead_letters(state: &State) -> Value {
    let letters = &state.dead_letters;
    let last = letters.last.as_ref().map(|(summary, at)| {
        json!({
            "reason": summary.kind.name(),
            "id": summary.id,
            "position": summary.position.to_string(),
            "topic": summary.topic.as_deref(),
            "at": time(*at),
        })
    });
    json!({ "count": letters.count, "last": last })
}

fn not_reading(state: &State) -> Option<&'static str> {
    match state.phase.has_stream() {
        true => state.session.stats.stall_reason.map(StallReason::text),
        false => Some("the stream is not open"),
    }
}

/// `observerError` says why the observer cannot see the slot; delivery does not depend on it.
fn source(state: &State, now: Instant) -> Value {
    let from = &state.config.source;
    json!({
        "host": from.host,
        "port": from.port,
        "database": from.database,
        "table": from.table.to_string(),
        "publication": from.publication.name,
        "connected": state.is_connected(now),
        "observerError": state.observed.failure.as_ref().map(|(_, why)| why),
    })
}

/// Members are `null` while there is no slot, or before it was first observed.
fn slot(state: &State, now: Instant) -> Value {
    let observed = &state.observed;
    let slot = observed.slot.as_ref();
    let lsn = |lsn: fn(&SlotState) -> Option<EndLsn>| slot.and_then(lsn).map(|lsn| lsn.to_string());
    json!({
        "name": state.config.source.slot.name,
        "observedAt": observed.at.map(|at| time(SystemTime::now() - now.saturating_duration_since(at))),
        "exists": observed.at.map(|_| slot.is_some()),
        "activePid": slot.and_then(|slot| slot.active_pid),
        "inactiveSeconds": slot.map(|_| seconds(observed.inactive_for(now))),
        "walStatus": slot.and_then(|slot| slot.wal_status.as_deref()),
        "invalidationReason": slot.and_then(|slot| slot.invalidation_reason.as_deref()),
        "confirmedLsn": lsn(|slot| slot.confirmed),
        "restartLsn": lsn(|slot| slot.restart),
        "serverLsn": lsn(|slot| slot.current),
        "unconfirmedBytes": slot.map(|slot| slot.behind(slot.confirmed).unwrap_or(0)),
        "retainedBytes": slot.map(|slot| slot.behind(slot.restart).unwrap_or(0)),
        "safeBytes": slot.and_then(|slot| slot.safe_wal_bytes),
    })
}

/// `ready` is `null` while it is not known.
fn failover(state: &FailoverState) -> Value {
    let readiness = state.readiness();
    let primary = state.primary.as_ref();
    let standbys = state.standbys.iter().map(|standby| {
        let shown = standby.state.as_ref().ok();
        json!({
            "host": standby.host.to_string(),
            "primarySlot": shown.and_then(|shown| shown.primary_slot.as_deref()),
            "copy": shown.map(|shown| shown.copy.name()),
            "behindBytes": standby.behind(primary),
            "error": standby.state.as_ref().err(),
        })
    });
    json!({
        "ready": readiness.reason.is_ready(),
        "reason": readiness.reason.name(),
        "message": readiness.message,
        "remedy": readiness.reason.remedy(),
        "failoverSlot": primary.map(|primary| primary.is_failover_slot),
        "standbys": standbys.collect::<Vec<_>>(),
    })
}

fn checkpoint(state: &State, now: Instant) -> Option<Value> {
    let (seen, checkpoint) = state.observed.checkpoint?;
    Some(json!({
        "confirmedLsn": checkpoint.confirmed.map(|lsn| lsn.to_string()),
        "ageSeconds": seconds(checkpoint.age + now.saturating_duration_since(seen)),
    }))
}

/// With `until` for the last problem, which may be over.
fn problem_json(shown: &Problem, until: Option<Option<SystemTime>>) -> Value {
    let mut value = json!({
        "reason": shown.reason.name(),
        "message": shown.what,
        "remedy": shown.reason.remedy(),
        "since": time(shown.since),
    });
    if let (Value::Object(members), Some(until)) = (&mut value, until) {
        members.insert("until".into(), until.map_or(Value::Null, |until| time(until).into()));
    }
    value
}

/// This process's role, which follows from who holds the slot.
fn role(phase: Phase) -> &'static str {
    match phase {
        Phase::Standby => "standby",
        phase if phase.has_stream() => "active",
        _ => "none",
    }
}

fn time(time: SystemTime) -> String {
    DateTime::<Utc>::from(time).to_rfc3339_opts(SecondsFormat::Secs, true)
}

/// To the millisecond: more digits carry no information.
fn seconds(duration: Duration) -> f64 {
    (duration.as_secs_f64() * 1000.0).round() / 1000.0
}
