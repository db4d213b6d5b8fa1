//! What Kafka answered to the questions that delivery has had asked.

use std::time::Instant;

use super::another_outbox::ahead;
use super::{Delivery, code_of};
use crate::error::{ErrorKind, RelayError};
use crate::kafka;
use crate::kafka::queries::QueryResult;
use crate::kafka::scanner::{QueryError, Reachability};
use crate::progress::partition_dedup::{OffsetGap, ScanResult};
use crate::progress::phantoms::Phantoms;
use crate::topics::partitions::PartitionId;

impl Delivery {
    /// Takes in the answer to a question.
    pub fn on_query_result(&mut self, answer: QueryResult) -> Result<(), RelayError> {
        match answer {
            QueryResult::Topic { name, found } => self.on_topic_found(&name, &found),
            QueryResult::TopicMissing { name, missing } => self.status.set_topic_missing(&name, missing),
            QueryResult::Grown { name, found } => self.on_topic_grown(name, &found),
            QueryResult::Settings { topic, settings } => self.on_settings(&topic, settings)?,
            QueryResult::Inspected { partition, search } => {
                self.partitions.mark_verified(partition, search);
                self.update_integrity();
                self.resume(partition)?;
            }
            QueryResult::Looked(seen) => self.on_topic_states(seen)?,
            QueryResult::Searched { partition, found, records, phantoms } => {
                if let Some(position) = phantoms.ahead {
                    let by_another_server = phantoms.by_another_server;
                    if !by_another_server {
                        self.report_phantoms(partition, phantoms);
                    }
                    return Err(self.ahead(partition, position, by_another_server));
                }
                self.report_phantoms(partition, phantoms);
                self.partitions.set_found(partition, records);
                if let Some(mark) = self.partitions.dedup(partition) {
                    mark.on_scanned(found);
                }
                self.resume(partition)?;
            }
            QueryResult::HoleRead { partition, hole, found, records } => {
                self.partitions.set_found(partition, records);
                self.on_gap_scanned(partition, hole, found);
                self.resume(partition)?;
            }
            QueryResult::Strays { partition, strays, more } => self.on_strays(partition, strays, more)?,
            QueryResult::Examined { partition, ailment } => self.on_diagnosed(partition, ailment)?,
            QueryResult::Reached(Reachability::ClientStranded) => {
                let what = "Kafka can be reached, but a client of this session has no broker left to ask";
                return Err(RelayError::new(ErrorKind::DeliveryFailed, what));
            }
            QueryResult::Reached(reach) => {
                let there = reach == Reachability::Up;
                self.kafka_answers = Some(there);
                self.watchdog.on_probed(Instant::now(), there);
                if let Some(why) = self.auth_error.take().filter(|_| !there) {
                    return Err(RelayError::new(ErrorKind::KafkaAuthenticationFailed, why));
                }
            }
            // An unanswered call is made again where it is made.
            QueryResult::Failed(QueryError::Cancelled | QueryError::Unanswered(_)) => {}
            QueryResult::Failed(QueryError::Ahead {
                topic, partition, position, by_another_server, ..
            }) => {
                return Err(ahead(&topic, partition, position, by_another_server, &self.encoder.source));
            }
            QueryResult::Failed(QueryError::Distrusted(why)) => {
                return Err(RelayError::new(ErrorKind::KafkaAuthenticationFailed, why));
            }
            QueryResult::Failed(error @ QueryError::Lost { .. }) => {
                return Err(RelayError::new(ErrorKind::KafkaLostRecords, error.to_string()));
            }
            QueryResult::Failed(QueryError::Refused(error)) => {
                return Err(kafka::error::error_of("Kafka refused a search", code_of(&error)));
            }
        }
        Ok(())
    }

    /// Events whose rows this server does not have cannot be taken out of Kafka: a person has to know which they are.
    fn report_phantoms(&self, partition: PartitionId, phantoms: Phantoms) {
        if phantoms.count == 0 {
            return;
        }
        let topic = self.partitions.name_of(partition).map_or("", |(topic, _)| topic);
        tracing::warn!(
            topic,
            events = phantoms.count,
            ids = phantoms.ids.join(" "),
            "Kafka has events that are not of this server's history: it was restored, or took over without them"
        );
        self.metrics.phantom_events_total.inc_by(phantoms.count);
        self.status.add_phantoms(phantoms);
    }

    fn on_gap_scanned(&mut self, partition: PartitionId, hole: OffsetGap, found: ScanResult) {
        let twice = self.partitions.dedup(partition).map_or(0, |mark| mark.on_gap_scanned(hole, found));
        self.count_duplicates(twice);
    }

    pub(super) fn count_duplicates(&self, twice: u64) {
        if twice > 0 {
            self.metrics.duplicates_detected_total.inc_by(twice);
            tracing::warn!(
                events = twice,
                "events are in a partition twice: another relay process was still sending"
            );
        }
    }
}
