//! What Kafka answered to the questions that delivery has had asked.

use std::time::Instant;

use super::another_outbox::ahead;
use super::{Delivery, code_of};
use crate::kafka;
use crate::kafka::jobs::Answer;
use crate::kafka::scan::Phantoms;
use crate::kafka::search::{Reach, SearchError};
use crate::progress::high_mark::{Hole, Searched};
use crate::topics::partitions::PartitionId;
use crate::trouble::{Reason, Trouble};

impl Delivery {
    /// Takes in the answer to a question.
    pub fn answer(&mut self, answer: Answer) -> Result<(), Trouble> {
        match answer {
            Answer::Topic { name, found } => self.found(&name, &found),
            Answer::Grown { name, found } => self.has_grown(name, &found),
            Answer::Settings { topic, settings } => self.settings(&topic, settings)?,
            Answer::Inspected { partition, search } => {
                self.partitions.inspected(partition, search);
                self.say_whether_kafka_is_whole();
                self.resume(partition)?;
            }
            Answer::Looked(seen) => self.looked(seen)?,
            Answer::Searched { partition, found, records, phantoms } => {
                if let Some(position) = phantoms.ahead {
                    let by_another_server = phantoms.by_another_server;
                    if !by_another_server {
                        self.report(partition, phantoms);
                    }
                    return Err(self.ahead(partition, position, by_another_server));
                }
                self.report(partition, phantoms);
                self.partitions.set_found(partition, records);
                if let Some(mark) = self.partitions.mark(partition) {
                    mark.searched(found);
                }
                self.resume(partition)?;
            }
            Answer::HoleRead { partition, hole, found, records } => {
                self.partitions.set_found(partition, records);
                self.hole_read(partition, hole, found);
                self.resume(partition)?;
            }
            Answer::Strays { partition, strays, more } => self.on_strays(partition, strays, more)?,
            Answer::Examined { partition, ailment } => self.on_examined(partition, ailment)?,
            Answer::Reached(Reach::NotByOurClients) => {
                let what = "Kafka can be reached, but a client of this session has no broker left to ask";
                return Err(Trouble::new(Reason::DeliveryFailed, what));
            }
            Answer::Reached(reach) => {
                let there = reach == Reach::There;
                self.kafka = Some(there);
                self.watchdog.looked(Instant::now(), there);
                if let Some(why) = self.distrusted.take().filter(|_| !there) {
                    return Err(Trouble::new(Reason::KafkaAuthenticationFailed, why));
                }
            }
            // An unanswered call is made again where it is made.
            Answer::Failed(SearchError::Cancelled | SearchError::Unanswered(_)) => {}
            Answer::Failed(SearchError::Ahead { topic, partition, position, by_another_server, .. }) => {
                return Err(ahead(&topic, partition, position, by_another_server, &self.style.source));
            }
            Answer::Failed(SearchError::Distrusted(why)) => {
                return Err(Trouble::new(Reason::KafkaAuthenticationFailed, why));
            }
            Answer::Failed(error @ SearchError::Lost { .. }) => {
                return Err(Trouble::new(Reason::KafkaLostRecords, error.to_string()));
            }
            Answer::Failed(SearchError::Refused(error)) => {
                return Err(kafka::error::trouble("Kafka refused a search", code_of(&error)));
            }
        }
        Ok(())
    }

    /// Events whose rows this server does not have cannot be taken out of Kafka: a person has to know which they are.
    fn report(&self, partition: PartitionId, phantoms: Phantoms) {
        if phantoms.count == 0 {
            return;
        }
        let topic = self.partitions.place(partition).map_or("", |(topic, _)| topic);
        tracing::warn!(
            topic,
            events = phantoms.count,
            ids = phantoms.ids.join(" "),
            "Kafka has events that are not of this server's history: it was restored, or took over without them"
        );
        self.metrics.phantom_events_total.inc_by(phantoms.count);
        self.status.phantoms(phantoms);
    }

    fn hole_read(&mut self, partition: PartitionId, hole: Hole, found: Searched) {
        let twice = self.partitions.mark(partition).map_or(0, |mark| mark.hole_read(hole, found));
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
