//! Partitions that make no progress, whatever the others do: which, for how long, and why.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use super::in_flight::Silent;
use super::{Delivery, Flow};
use crate::kafka::health::Ailment;
use crate::status::{SilentPartition, WaitsFor};
use crate::topics::partitions::PartitionId;
use crate::trouble::{Reason, Trouble};

/// A partition that is silent for so long is examined, so that the cause is known when it is shown.
const EXAMINE_AFTER: Duration = Duration::from_millis(2500);
/// How often.
const EXAMINE_EVERY: Duration = Duration::from_secs(3);

/// The next row waits for its partition: to be compared with what is remembered, to be searched, or for its first record.
#[derive(Clone, Copy, Debug)]
pub(super) struct Held {
    partition: PartitionId,
    since: Instant,
}

/// What was found out about silent partitions.
#[derive(Debug, Default)]
pub(super) struct Examinations {
    found: HashMap<PartitionId, (Instant, Ailment)>,
    asked: Option<PartitionId>,
}

impl Delivery {
    /// The next row waits for this partition.
    pub(super) fn wait_for(&mut self, partition: PartitionId) -> Flow {
        if self.held.is_none_or(|held| held.partition != partition) {
            self.held = Some(Held { partition, since: Instant::now() });
        }
        Flow::Blocked
    }

    /// Shows partitions of which nothing is acknowledged, and has one examined.
    pub(super) fn watch_silent_partitions(&mut self) {
        let now = Instant::now();
        self.in_flight.on_turn(now);
        let mut silent: Vec<(Silent, WaitsFor)> = self
            .in_flight
            .silent(EXAMINE_AFTER)
            .into_iter()
            .map(|silent| (silent, WaitsFor::Acknowledgement))
            .collect();
        if let Some(Held { partition, since }) = self.held
            && now.saturating_duration_since(since) >= EXAMINE_AFTER
            && !silent.iter().any(|(known, _)| known.partition == partition)
        {
            silent.push((Silent { partition, records: 0, oldest: since, since }, WaitsFor::Search));
        }
        silent.sort_by_key(|(silent, _)| silent.since);
        self.examinations.found.retain(|id, _| silent.iter().any(|(silent, _)| silent.partition == *id));
        self.examine(now, &silent);
        let shown = silent.iter().filter_map(|(silent, waits_for)| {
            let (topic, number) = self.partitions.place(silent.partition)?;
            let found = self.examinations.found.get(&silent.partition);
            Some(SilentPartition {
                topic: topic.to_owned(),
                partition: number,
                records: silent.records,
                oldest: silent.oldest,
                since: silent.since,
                waits_for: *waits_for,
                cause: found.and_then(|(_, ailment)| ailment.what.clone()),
            })
        });
        self.status.silent_partitions(shown.collect());
    }

    /// Has the partition examined that was examined longest ago.
    fn examine(&mut self, now: Instant, silent: &[(Silent, WaitsFor)]) {
        if self.examinations.asked.is_some() {
            return;
        }
        let examined = |id: &PartitionId| self.examinations.found.get(id).map(|(at, _)| *at);
        let next = silent.iter().map(|(silent, _)| silent.partition).min_by_key(examined);
        let is_due = |id: &PartitionId| {
            examined(id).is_none_or(|at| now.saturating_duration_since(at) >= EXAMINE_EVERY)
        };
        let Some(id) = next.filter(is_due) else { return };
        let Some((topic, number)) = self.partitions.place(id) else { return };
        let min_in_sync = self.partitions.settings(topic).and_then(|settings| settings.min_in_sync_replicas);
        self.jobs.examine(id, topic, number, min_in_sync, self.producers.roster(Some(number)));
        self.examinations.asked = Some(id);
    }

    pub(super) fn on_examined(&mut self, partition: PartitionId, ailment: Ailment) -> Result<(), Trouble> {
        self.examinations.asked = None;
        if ailment.producer_is_lost {
            let (topic, number) = self.partitions.place(partition).unwrap_or_default();
            let what = format!(
                "{topic}/{number} can be reached, but the producer that sends to it has no broker left to ask"
            );
            return Err(Trouble::new(Reason::DeliveryFailed, what));
        }
        self.examinations.found.insert(partition, (Instant::now(), ailment));
        Ok(())
    }
}
