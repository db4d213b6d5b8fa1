//! What Kafka answered to the questions that delivery has had asked.

use std::time::Instant;

use super::{Delivery, code_of};
use crate::kafka;
use crate::kafka::jobs::Answer;
use crate::kafka::search::{Phantoms, Reach, SearchError};
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
            }
            Answer::Looked(seen) => self.looked(seen)?,
            Answer::Searched { partition, found, phantoms } => {
                let ahead = phantoms.ahead;
                self.report(partition, phantoms);
                if ahead {
                    let what = "Kafka has events of the server's own timeline beyond the end of its log: the database was put \
                                back to an earlier state without a new timeline";
                    return Err(Trouble::new(Reason::HistoryChanged, what));
                }
                if let Some(mark) = self.partitions.mark(partition) {
                    mark.searched(found);
                }
            }
            Answer::HoleRead { partition, hole, found } => self.hole_read(partition, hole, found),
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
            Answer::Failed(SearchError::Cancelled) => {}
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
        self.metrics.phantom_events.add(i64::try_from(phantoms.count).unwrap_or(i64::MAX));
        self.status.phantoms(phantoms);
    }

    fn hole_read(&mut self, partition: PartitionId, hole: Hole, found: Searched) {
        let twice = self.partitions.mark(partition).map_or(0, |mark| mark.hole_read(hole, found));
        if twice > 0 {
            self.metrics.duplicates_detected_total.inc_by(twice);
            tracing::warn!(
                events = twice,
                "events are in a partition twice: another relay process was still sending"
            );
        }
    }
}
