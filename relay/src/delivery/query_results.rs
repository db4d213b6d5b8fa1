//! Passes the results of queries to Kafka to the stages that need them.

use super::another_outbox::record_ahead_error;
use super::{Broker, Delivery, code_of};
use crate::error::{ErrorKind, RelayError};
use crate::kafka;
use crate::kafka::query::QueryResult;
use crate::kafka::scanner::QueryError;
use crate::progress::fingerprints::FoundRecords;
use crate::progress::partition_dedup::{OffsetGap, ScanResult};
use crate::progress::phantoms::Phantoms;
use crate::topics::partitions::PartitionId;
use crate::topics::registry::PartitionName;

impl<B: Broker> Delivery<B> {
    pub fn on_query_result(&mut self, result: QueryResult) -> Result<(), RelayError> {
        let Delivery { dispatch, in_flight, discovery, .. } = self;
        let (routing, topics) = (&mut dispatch.routing, &mut in_flight.topics);
        match result {
            QueryResult::Topic { name, found } => discovery.on_found(&name, &found, routing, topics),
            QueryResult::TopicMissing(name) => self.status.on_topic_missing(name),
            QueryResult::TopicExists(name) => self.status.on_topic_exists(&name),
            QueryResult::Grown { name, found } => discovery.on_grown(&name, &found, routing, topics),
            QueryResult::Settings { topic, settings } => {
                let unsent = in_flight.progress.lineage.horizon().max(self.ingest.behind_last());
                discovery.on_settings(&topic, settings, unsent, routing, topics)?;
            }
            QueryResult::Verified { partition, scan_from } => {
                topics.partition_mut(partition).mark_verified(scan_from);
                self.update_integrity();
                self.in_flight.resume(partition)?;
            }
            QueryResult::TopicStates(Some(states)) => discovery.on_states(states, in_flight)?,
            QueryResult::TopicStates(None) => {
                discovery.on_states_unavailable();
                // Producers may receive acknowledgements nevertheless.
                self.health.probe(&in_flight.broker);
            }
            QueryResult::Scanned { partition, found, records, phantoms } => {
                self.on_scanned(partition, found, records, phantoms)?;
            }
            QueryResult::GapScanned { partition, gap, found, records } => {
                self.on_gap_scanned(partition, gap, found, records)?;
            }
            QueryResult::GapsSkipped(gaps) => self.metrics.offset_gaps_skipped_total.inc_by(gaps),
            QueryResult::Strays { partition, strays, more } => {
                if self.refill.is_some() {
                    return Err(self.evidence_outdated(partition));
                }
                self.in_flight.count_duplicates(more);
                self.strays.add(partition, strays);
                self.check_strays()?;
            }
            QueryResult::Diagnosed { partition, diagnosis } => {
                self.diagnoses.on_diagnosed(partition, diagnosis, topics)?;
            }
            QueryResult::Evidence(delivered) => {
                if let Some(refill) = &mut self.refill {
                    in_flight.count_duplicates(delivered.twice());
                    refill.on_evidence(delivered);
                }
            }
            QueryResult::Reachability(reachability) => self.health.on_reachability(reachability)?,
            QueryResult::Failed(error) => self.on_query_failed(error)?,
        }
        Ok(())
    }

    fn on_scanned(
        &mut self,
        partition: PartitionId,
        found: ScanResult,
        records: FoundRecords,
        phantoms: Phantoms,
    ) -> Result<(), RelayError> {
        if let Some(position) = phantoms.ahead {
            let by_another_server = phantoms.by_another_server;
            if !by_another_server {
                self.report_phantoms(partition, phantoms);
            }
            let (name, source) = (self.in_flight.topics.name_of(partition), &self.in_flight.source);
            return Err(record_ahead_error(name, position, by_another_server, source));
        }
        self.report_phantoms(partition, phantoms);
        let name = self.in_flight.topics.name_of(partition);
        if self.refill.as_ref().is_some_and(|refill| refill.misses(name, records.last())) {
            return Err(self.evidence_outdated(partition));
        }
        let scanned = self.in_flight.topics.partition_mut(partition);
        scanned.found = Some(records);
        scanned.dedup.on_scanned(found);
        self.in_flight.resume(partition)
    }

    fn on_gap_scanned(
        &mut self,
        partition: PartitionId,
        gap: OffsetGap,
        found: ScanResult,
        records: FoundRecords,
    ) -> Result<(), RelayError> {
        if self.refill.is_some() && found.own_records > 0 {
            return Err(self.evidence_outdated(partition));
        }
        let scanned = self.in_flight.topics.partition_mut(partition);
        scanned.found = Some(records);
        let duplicates = scanned.dedup.on_gap_scanned(gap, found);
        self.in_flight.count_duplicates(duplicates);
        self.in_flight.resume(partition)
    }

    /// The next session reads the evidence again. The rows that this one has sent of those events are in Kafka twice.
    fn evidence_outdated(&self, partition: PartitionId) -> RelayError {
        let what = format!(
            "{}: an earlier process of the relay, or another outbox of the same name, appended events after this process \
             had read which rows of the refill Kafka has; it reads them again",
            self.in_flight.topics.name_of(partition)
        );
        RelayError::new(ErrorKind::DeliveryFailed, what)
    }

    fn on_query_failed(&self, error: QueryError) -> Result<(), RelayError> {
        Err(match error {
            // The caller of a query without a response retries it.
            QueryError::Cancelled | QueryError::NoResponse(_) => return Ok(()),
            QueryError::Ahead { topic, partition, position, by_another_server, .. } => {
                let name = PartitionName { topic: &topic, number: partition };
                record_ahead_error(name, position, by_another_server, &self.in_flight.source)
            }
            QueryError::AuthenticationFailed(why) => {
                RelayError::new(ErrorKind::KafkaAuthenticationFailed, why)
            }
            QueryError::EvidenceIncomplete { .. } => RelayError::new(
                ErrorKind::RefillBlocked,
                format!("it cannot be proved which of the rows from before the slot are in Kafka: {error}"),
            ),
            QueryError::Lost { .. } => RelayError::new(ErrorKind::KafkaLostRecords, error.to_string()),
            QueryError::Refused(error) => {
                kafka::error_codes::error_of("Kafka refused the scan of a partition", code_of(&error))
            }
        })
    }

    /// Events whose rows this server does not have cannot be removed from Kafka, so administrators need to know which
    /// they are.
    fn report_phantoms(&self, partition: PartitionId, phantoms: Phantoms) {
        if phantoms.count == 0 {
            return;
        }
        tracing::warn!(
            topic = self.in_flight.topics.topic_of(partition).name,
            events = phantoms.count,
            ids = phantoms.ids.join(" "),
            "Kafka has events whose rows this server does not have: it was restored, or promoted without them"
        );
        self.metrics.phantom_events_total.inc_by(phantoms.count);
        self.status.add_phantoms(phantoms);
    }
}
