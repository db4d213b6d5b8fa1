//! Processes the results of queries to Kafka that delivery started.

use std::time::Instant;

use super::another_outbox::record_ahead_error;
use super::{Broker, Delivery, code_of};
use crate::error::{ErrorKind, RelayError};
use crate::kafka;
use crate::kafka::query::QueryResult;
use crate::kafka::scanner::{QueryError, Reachability};
use crate::progress::phantoms::Phantoms;
use crate::topics::partitions::PartitionId;
use crate::topics::registry::PartitionName;

impl<B: Broker> Delivery<B> {
    /// Processes the result of a query.
    pub fn on_query_result(&mut self, result: QueryResult) -> Result<(), RelayError> {
        match result {
            QueryResult::Topic { name, found } => self.on_topic_found(&name, &found),
            QueryResult::TopicMissing { name, missing } => self.status.set_topic_missing(&name, missing),
            QueryResult::Grown { name, found } => self.on_topic_grown(&name, &found),
            QueryResult::Settings { topic, settings } => self.on_settings(&topic, settings)?,
            QueryResult::Verified { partition, search } => {
                self.topics.partition_mut(partition).mark_verified(search);
                self.update_integrity();
                self.resume(partition)?;
            }
            QueryResult::TopicStates(states) => self.on_topic_states(states)?,
            QueryResult::Scanned { partition, found, records, phantoms } => {
                if let Some(position) = phantoms.ahead {
                    let by_another_server = phantoms.by_another_server;
                    if !by_another_server {
                        self.report_phantoms(partition, phantoms);
                    }
                    return Err(self.record_ahead_error(partition, position, by_another_server));
                }
                self.report_phantoms(partition, phantoms);
                let scanned = self.topics.partition_mut(partition);
                scanned.found = records;
                scanned.dedup.on_scanned(found);
                self.resume(partition)?;
            }
            QueryResult::GapScanned { partition, gap, found, records } => {
                let scanned = self.topics.partition_mut(partition);
                scanned.found = records;
                let duplicates = scanned.dedup.on_gap_scanned(gap, found);
                self.count_duplicates(duplicates);
                self.resume(partition)?;
            }
            QueryResult::GapsSkipped(gaps) => self.metrics.offset_gaps_skipped_total.inc_by(gaps),
            QueryResult::Strays { partition, strays, more } => self.on_strays(partition, strays, more)?,
            QueryResult::Diagnosed { partition, diagnosis } => self.on_diagnosed(partition, diagnosis)?,
            QueryResult::Reachability(Reachability::ClientStranded) => {
                let what = "Kafka is reachable, but a client of this session knows no broker address that still works";
                return Err(RelayError::new(ErrorKind::DeliveryFailed, what));
            }
            QueryResult::Reachability(reachability) => {
                let is_up = reachability == Reachability::Up;
                self.kafka_answers = Some(is_up);
                self.watchdog.on_probed(Instant::now(), is_up);
                if let Some(why) = self.auth_error.take().filter(|_| !is_up) {
                    return Err(RelayError::new(ErrorKind::KafkaAuthenticationFailed, why));
                }
            }
            // The caller of a query without a response retries it.
            QueryResult::Failed(QueryError::Cancelled | QueryError::NoResponse(_)) => {}
            QueryResult::Failed(QueryError::Ahead {
                topic, partition, position, by_another_server, ..
            }) => {
                return Err(record_ahead_error(
                    PartitionName { topic: &topic, number: partition },
                    position,
                    by_another_server,
                    &self.encoder.source,
                ));
            }
            QueryResult::Failed(QueryError::AuthenticationFailed(why)) => {
                return Err(RelayError::new(ErrorKind::KafkaAuthenticationFailed, why));
            }
            QueryResult::Failed(error @ QueryError::Lost { .. }) => {
                return Err(RelayError::new(ErrorKind::KafkaLostRecords, error.to_string()));
            }
            QueryResult::Failed(QueryError::Refused(error)) => {
                return Err(kafka::error::error_of("Kafka refused the scan of a partition", code_of(&error)));
            }
        }
        Ok(())
    }

    /// Events whose rows this server does not have cannot be removed from Kafka, so administrators need to know which
    /// they are.
    fn report_phantoms(&self, partition: PartitionId, phantoms: Phantoms) {
        if phantoms.count == 0 {
            return;
        }
        tracing::warn!(
            topic = self.topics.topic_of(partition).name,
            events = phantoms.count,
            ids = phantoms.ids.join(" "),
            "Kafka has events whose rows this server does not have: it was restored, or promoted without them"
        );
        self.metrics.phantom_events_total.inc_by(phantoms.count);
        self.status.add_phantoms(phantoms);
    }

    pub(super) fn count_duplicates(&self, duplicates: u64) {
        if duplicates > 0 {
            self.metrics.duplicates_detected_total.inc_by(duplicates);
            tracing::warn!(
                events = duplicates,
                "events are in a partition twice: another relay process was still sending"
            );
        }
    }
}
