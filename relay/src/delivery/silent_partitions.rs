//! Partitions that make no progress, even while others do: which, for how long, and why.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use super::Broker;
use super::in_flight::InFlight;
use super::lanes::{Lanes, SilentLane};
use crate::error::{ErrorKind, RelayError};
use crate::kafka::diagnosis::Diagnosis;
use crate::kafka::query::Query;
use crate::status::{SilentPartition, WaitsFor};
use crate::topics::partitions::PartitionId;
use crate::topics::registry::{PartitionName, TopicRegistry};

/// A partition without progress for this long is diagnosed, so that the cause is known when `/status` shows it.
const DIAGNOSE_AFTER: Duration = Duration::from_millis(2500);
/// A record unacknowledged for this long ends the session. After twice this time brokers by default forget its producer
/// (`producer.id.expiration.ms`), and would accept the records after it without it.
const GIVE_UP_AFTER: Duration = Duration::from_secs(12 * 60 * 60);
/// How often to diagnose one silent partition.
const DIAGNOSE_EVERY: Duration = Duration::from_secs(3);

/// The partition that the next row waits for, if the row cannot be queued.
#[derive(Clone, Copy, Debug)]
pub(super) struct BlockedOn {
    pub(super) partition: PartitionId,
    pub(super) since: Instant,
}

#[derive(Debug, Default)]
pub(super) struct Diagnoses {
    found: HashMap<PartitionId, (Instant, Diagnosis)>,
    /// The partition whose diagnosis is running.
    running: Option<PartitionId>,
}

impl Diagnoses {
    /// Returns the partitions without progress, and starts the diagnosis of one of them.
    pub(super) fn on_tick<B: Broker>(
        &mut self,
        now: Instant,
        blocked_on: Option<BlockedOn>,
        in_flight: &InFlight<B>,
    ) -> Result<Vec<SilentPartition>, RelayError> {
        if let Some(silent) = in_flight.lanes.silent(GIVE_UP_AFTER).first() {
            return Err(waited_too_long(in_flight.topics.name_of(silent.partition)));
        }
        let silent = silent_lanes(now, blocked_on, &in_flight.lanes);
        self.found.retain(|id, _| silent.iter().any(|(silent, _)| silent.partition == *id));
        self.diagnose(now, &silent, in_flight);
        let shown = silent.iter().map(|(silent, waits_for)| {
            let name = in_flight.topics.name_of(silent.partition);
            let diagnosis = self.found.get(&silent.partition);
            SilentPartition {
                topic: name.topic.to_owned(),
                partition: name.number,
                records: silent.records,
                oldest: silent.oldest,
                since: silent.since,
                waits_for: *waits_for,
                cause: diagnosis.and_then(|(_, diagnosis)| diagnosis.what.clone()),
            }
        });
        Ok(shown.collect())
    }

    /// Starts the diagnosis of the partition that was diagnosed longest ago.
    fn diagnose<B: Broker>(
        &mut self,
        now: Instant,
        silent: &[(SilentLane, WaitsFor)],
        in_flight: &InFlight<B>,
    ) {
        if self.running.is_some() {
            return;
        }
        let diagnosed = |id: &PartitionId| self.found.get(id).map(|(at, _)| *at);
        let next = silent.iter().map(|(silent, _)| silent.partition).min_by_key(diagnosed);
        let is_due = |id: &PartitionId| {
            diagnosed(id).is_none_or(|at| now.saturating_duration_since(at) >= DIAGNOSE_EVERY)
        };
        let Some(id) = next.filter(is_due) else { return };
        let min_in_sync = in_flight.topics.topic_of(id).min_in_sync_replicas();
        in_flight.broker.query(Query::Diagnosis { partition: in_flight.queried(id), min_in_sync });
        self.running = Some(id);
    }

    pub(super) fn on_diagnosed(
        &mut self,
        partition: PartitionId,
        diagnosis: Diagnosis,
        topics: &TopicRegistry,
    ) -> Result<(), RelayError> {
        self.running = None;
        if diagnosis.producer_is_lost {
            let name = topics.name_of(partition);
            let what =
                format!("{name} is reachable, but its producer knows no broker address that still works");
            return Err(RelayError::new(ErrorKind::DeliveryFailed, what));
        }
        self.found.insert(partition, (Instant::now(), diagnosis));
        Ok(())
    }
}

/// The partitions without progress, the longest silent first, and what they wait for.
fn silent_lanes(now: Instant, blocked_on: Option<BlockedOn>, lanes: &Lanes) -> Vec<(SilentLane, WaitsFor)> {
    let sent = lanes.silent(DIAGNOSE_AFTER).into_iter().map(|silent| {
        let records = silent.records + lanes.waiting_count(silent.partition);
        (SilentLane { records, ..silent }, WaitsFor::Acknowledgement)
    });
    let mut silent: Vec<(SilentLane, WaitsFor)> = sent.collect();
    let blocked = blocked_on.map(|BlockedOn { partition, since }| {
        let records = lanes.waiting_count(partition);
        SilentLane { partition, records, oldest: since, since }
    });
    let unsent = lanes.with_waiting().chain(blocked).filter(|SilentLane { partition, since, .. }| {
        let is_late = now.saturating_duration_since(*since) >= DIAGNOSE_AFTER;
        is_late && lanes.has_nothing_sent(*partition)
    });
    for waiting in unsent {
        if !silent.iter().any(|(known, _)| known.partition == waiting.partition) {
            silent.push((waiting, WaitsFor::Scan));
        }
    }
    silent.sort_by_key(|(silent, _)| silent.since);
    silent
}

fn waited_too_long(name: PartitionName<'_>) -> RelayError {
    let what = format!(
        "{name} has acknowledged nothing for {} h; a new session sends its waiting records again, \
         before brokers forget the producer",
        GIVE_UP_AFTER.as_secs() / 3600
    );
    RelayError::new(ErrorKind::DeliveryFailed, what)
}
