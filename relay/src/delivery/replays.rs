//! Replays dead letters: outside the order of the stream, without a position, one at a time.

use pg_replication::PgTime;
use rdkafka::error::RDKafkaErrorCode;
use tokio::sync::oneshot;

use super::dispatch::produce_failed;
use super::lanes::SentContent;
use super::{Broker, Delivery};
use crate::dead_letters::replay::{ReplayRequest, SendOutcome};
use crate::error::RelayError;
use crate::event::poison::Poison;
use crate::event::record::Prepared;
use crate::kafka::producers::Tag;
use crate::routing::mapping::{CurrentDestination, Destination, RoutingInput};
use crate::topics::registry::PartitionName;

impl<B: Broker> Delivery<B> {
    /// Replays a dead letter with the current routing. Returns the request if it must be offered again later.
    pub fn on_replay_request(
        &mut self,
        request: ReplayRequest,
        committed_revision: u64,
    ) -> Result<Option<ReplayRequest>, RelayError> {
        if self.replay.is_some() {
            return Ok(Some(request));
        }
        let ReplayRequest { letter, topic_exists, answer } = request;
        let prepared = letter.row().map_err(|error| Poison::from(&error)).and_then(|row| {
            let now = PgTime::now();
            let time = row.occurred_at.unwrap_or(now);
            let headers = self.encoder.headers(&row, None, time).map_err(|error| Poison::from(&error))?;
            let bytes = self.encoder.size(&row);
            let input = RoutingInput {
                key: row.key.as_deref().unwrap_or_else(|| row.id.as_bytes()),
                bytes,
                has_key: row.key.is_some(),
                position: None,
                invalid: None,
                column: |_: &str| row.route_by,
            };
            let destination = match self.routing.current_destination(&input, &self.topics)? {
                CurrentDestination::Partition(Destination { poison: Some(poison), .. }) => {
                    return Err(poison);
                }
                destination => destination,
            };
            // The timestamp is the current time: retention could delete a record as old as its event immediately.
            Ok((destination, Prepared::event(row, headers, bytes, now)))
        });
        let (destination, prepared) = match prepared {
            Ok(routed) => routed,
            Err(poison) => return Ok(send_outcome(answer, SendOutcome::Refused(poison.error))),
        };
        match destination {
            CurrentDestination::Partition(Destination { topic, number, revision, .. }) => {
                let partition = self.topics.partition_at(topic, number)?;
                if revision <= committed_revision && self.topics.partition(partition).is_verified() {
                    self.produce(prepared, Tag::replay(partition), SentContent::Replay)
                        .map_err(|error| produce_failed("a dead letter", &error))?;
                    self.replay = Some(answer);
                    return Ok(None);
                }
            }
            CurrentDestination::NewTopic(topic) if !topic_exists => {
                return Ok(send_outcome(answer, SendOutcome::UnknownTopic(topic)));
            }
            CurrentDestination::NewTopic(topic) => self.request_topic(&topic),
        }
        drop(prepared);
        Ok(Some(ReplayRequest { letter, topic_exists, answer }))
    }
}

/// Reports the outcome of a replay. Its record has no position, so deduplication treats it as another producer's
/// record.
pub(super) fn complete_replay(
    answer: Option<oneshot::Sender<SendOutcome>>,
    name: PartitionName<'_>,
    outcome: &Result<i64, RDKafkaErrorCode>,
) {
    let Some(answer) = answer else { return };
    let outcome = match outcome {
        Ok(_) => SendOutcome::Sent { topic: name.topic.to_owned(), partition: name.number },
        Err(code) => SendOutcome::Refused(format!("Kafka refused the record for {name}: {code:?}")),
    };
    send_outcome(answer, outcome);
}

/// Ignores an error: the requester may be gone.
fn send_outcome(answer: oneshot::Sender<SendOutcome>, outcome: SendOutcome) -> Option<ReplayRequest> {
    drop(answer.send(outcome));
    None
}
