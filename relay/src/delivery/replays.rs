//! Dead letters that are sent again: outside the order of the stream, without a position, one at a time.

use pg_replication::PgTime;
use rdkafka::error::RDKafkaErrorCode;
use tokio::sync::oneshot;

use super::Delivery;
use super::dispatch::{current_routing_commit, produce_failed};
use crate::dead_letters::replay::{ReplayRequest, SendOutcome};
use crate::error::RelayError;
use crate::event::poison::Poison;
use crate::event::record::Prepared;
use crate::kafka::producers::Tag;
use crate::routing::mapping::{Destination, RoutingInput};

impl Delivery {
    /// Sends a dead letter again, by the mapping of now. Gives it back when it has to be offered again.
    pub fn on_replay_request(
        &mut self,
        candidate: ReplayRequest,
        stored: u64,
    ) -> Result<Option<ReplayRequest>, RelayError> {
        if self.replay.is_some() {
            return Ok(Some(candidate));
        }
        let ReplayRequest { letter, topic_exists, answer } = candidate;
        let prepared = letter.row().map_err(|error| Poison::from(&error)).and_then(|row| {
            let now = PgTime::now();
            let time = row.occurred_at.unwrap_or(now);
            let headers = self.encoder.headers(&row, None, time).map_err(|error| Poison::from(&error))?;
            let bytes = self.encoder.size(&row);
            let subject = RoutingInput {
                key: row.key.as_deref().unwrap_or_else(|| row.id.as_bytes()),
                bytes,
                has_key: row.key.is_some(),
                position: None,
                flaw: None,
                commit: current_routing_commit(),
                column: |_: &str| row.route_by,
            };
            let place = match self.routing.destination(&subject)? {
                Destination::Partition { poison: Some(poison), .. } => return Err(poison),
                Destination::Partition { topic, number, revision, poison: None } => {
                    let id = self.partitions.id(topic, number).filter(|_| revision <= stored);
                    Ok(id.filter(|id| self.partitions.is_verified(*id)))
                }
                Destination::NewTopic(topic) => Err(topic.to_owned()),
            };
            // A record as old as its event might be gone by the topic's retention as soon as it is there.
            Ok((place, Prepared::event(row, headers, bytes, now)))
        });
        let (place, prepared) = match prepared {
            Ok((place, prepared)) => (place, prepared),
            Err(poison) => return Ok(send_outcome(answer, SendOutcome::Refused(poison.error))),
        };
        match place {
            Ok(Some(partition)) => {
                self.produce(prepared, Tag::replay(partition), None)
                    .map_err(|error| produce_failed("a dead letter", &error))?;
                self.replay = Some(answer);
                return Ok(None);
            }
            Err(topic) if !topic_exists => return Ok(send_outcome(answer, SendOutcome::UnknownTopic(topic))),
            Err(topic) => self.request_topic(&topic),
            Ok(None) => {}
        }
        drop(prepared);
        Ok(Some(ReplayRequest { letter, topic_exists, answer }))
    }
}

/// High marks see the record of a replay as somebody else's: it has no position.
pub(super) fn answer_replay(
    answer: Option<oneshot::Sender<SendOutcome>>,
    topic: &str,
    partition: i32,
    outcome: &Result<i64, RDKafkaErrorCode>,
) {
    let Some(answer) = answer else { return };
    let outcome = match outcome {
        Ok(_) => SendOutcome::Sent { topic: topic.to_owned(), partition },
        Err(code) => SendOutcome::Refused(format!("Kafka refused it for {topic}/{partition}: {code:?}")),
    };
    send_outcome(answer, outcome);
}

/// Who asked may have gone away.
fn send_outcome(answer: oneshot::Sender<SendOutcome>, outcome: SendOutcome) -> Option<ReplayRequest> {
    drop(answer.send(outcome));
    None
}
