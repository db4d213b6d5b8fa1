//! Dead letters that are sent again: outside the order of the stream, without a position, one at a time.

use pg_replication::PgTime;
use rdkafka::error::RDKafkaErrorCode;
use tokio::sync::oneshot;

use super::Delivery;
use super::rows::{after_everything, not_accepted};
use crate::dead_letter::Poison;
use crate::dead_letter::replay::{Candidate, Outcome};
use crate::event::record::Prepared;
use crate::kafka::sink::Tag;
use crate::routing::mapping::{Place, Subject};
use crate::trouble::Trouble;

impl Delivery {
    /// Sends a dead letter again, by the mapping of now. Gives it back when it has to be offered again.
    pub fn replay(&mut self, candidate: Candidate, stored: u64) -> Result<Option<Candidate>, Trouble> {
        if self.replaying.is_some() {
            return Ok(Some(candidate));
        }
        let Candidate { letter, topic_exists, answer } = candidate;
        let prepared = letter.row().map_err(|error| Poison::from(&error)).and_then(|row| {
            let now = PgTime::now();
            let time = row.occurred_at.unwrap_or(now);
            let headers = self.style.headers(&row, None, time).map_err(|error| Poison::from(&error))?;
            let bytes = self.style.size(&row);
            let subject = Subject {
                key: row.key.as_deref().unwrap_or_else(|| row.id.as_bytes()),
                bytes,
                has_key: row.key.is_some(),
                position: None,
                flaw: None,
                commit: after_everything(),
                column: |_: &str| row.route_by,
            };
            let place = match self.mapper.place(&subject)? {
                Place::Partition { poison: Some(poison), .. } => return Err(poison),
                Place::Partition { topic, number, revision, poison: None } => {
                    let id = self.partitions.id(topic, number).filter(|_| revision <= stored);
                    Ok(id.filter(|id| self.partitions.is_inspected(*id)))
                }
                Place::NewTopic(topic) => Err(topic.to_owned()),
            };
            // A record as old as its event might be gone by the topic's retention as soon as it is there.
            Ok((place, Prepared::event(row, headers, bytes, now)))
        });
        let (place, prepared) = match prepared {
            Ok((place, prepared)) => (place, prepared),
            Err(poison) => return Ok(answered(answer, Outcome::Refused(poison.error))),
        };
        match place {
            Ok(Some(partition)) => {
                self.hand_over(prepared, Tag::replay(partition), None)
                    .map_err(|error| not_accepted("a dead letter", &error))?;
                self.replaying = Some(answer);
                return Ok(None);
            }
            Err(topic) if !topic_exists => return Ok(answered(answer, Outcome::UnknownTopic(topic))),
            Err(topic) => self.want(&topic),
            Ok(None) => {}
        }
        drop(prepared);
        Ok(Some(Candidate { letter, topic_exists, answer }))
    }
}

/// High marks see the record of a replay as somebody else's: it has no position.
pub(super) fn replayed(
    answer: Option<oneshot::Sender<Outcome>>,
    topic: &str,
    partition: i32,
    outcome: &Result<i64, RDKafkaErrorCode>,
) {
    let Some(answer) = answer else { return };
    let outcome = match outcome {
        Ok(_) => Outcome::Sent { topic: topic.to_owned(), partition },
        Err(code) => Outcome::Refused(format!("Kafka refused it for {topic}/{partition}: {code:?}")),
    };
    answered(answer, outcome);
}

/// Who asked may have gone away.
fn answered(answer: oneshot::Sender<Outcome>, outcome: Outcome) -> Option<Candidate> {
    drop(answer.send(outcome));
    None
}
