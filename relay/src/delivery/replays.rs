//! Replays events: outside the order of the stream, without a position, one at a time.

use pg_replication::PgTime;
use rdkafka::error::RDKafkaErrorCode;
use tokio::sync::oneshot;

use super::Broker;
use super::dispatch::Dispatch;
use super::in_flight::InFlight;
use super::topic_discovery::TopicDiscovery;
use crate::error::RelayError;
use crate::event::poison::Poison;
use crate::event::record::{Prepared, Provenance};
use crate::event::row::OutboxRow;
use crate::progress::offset::Offset;
use crate::replay::lines::SendOutcome;
use crate::replay::{ReplayRequest, UnknownTopic};
use crate::routing::mapping::{CurrentDestination, Destination, Revision, RoutingInput};
use crate::topics::registry::{PartitionName, TopicRegistry};

/// The replay in flight.
#[derive(Default)]
pub(super) struct Replays {
    /// Receives its outcome.
    answer: Option<oneshot::Sender<SendOutcome>>,
}

impl Replays {
    /// Replays an event with the current routing. Returns the request if it must be offered again later.
    pub(super) fn on_request<B: Broker>(
        &mut self,
        request: ReplayRequest,
        committed_revision: Revision,
        dispatch: &mut Dispatch,
        discovery: &mut TopicDiscovery,
        in_flight: &mut InFlight<B>,
    ) -> Result<Option<ReplayRequest>, RelayError> {
        if self.answer.is_some() {
            return Ok(Some(request));
        }
        let ReplayRequest { row: values, source, unknown_topic, answer } = request;
        let row = values.as_row().map_err(|error| Poison::from(&error));
        let routed = row.and_then(|row| dispatch.replay(row, source.provenance(), &in_flight.topics));
        let (destination, prepared) = match routed {
            Ok(routed) => routed,
            Err(poison) => return Ok(send_outcome(answer, SendOutcome::Refused(poison.error))),
        };
        match destination {
            CurrentDestination::Partition(Destination { topic, number, revision, .. }) => {
                let partition = in_flight.topics.partition_at(topic, number)?;
                if revision <= committed_revision && in_flight.topics.partition(partition).is_verified() {
                    in_flight.send_replay(prepared, partition)?;
                    self.answer = Some(answer);
                    return Ok(None);
                }
            }
            CurrentDestination::NewTopic(topic) if unknown_topic == UnknownTopic::Return => {
                return Ok(send_outcome(answer, SendOutcome::UnknownTopic(topic)));
            }
            CurrentDestination::NewTopic(topic) => discovery.request(&topic, &in_flight.broker),
        }
        drop(prepared);
        Ok(Some(ReplayRequest { row: values, source, unknown_topic, answer }))
    }

    /// Reports the outcome of the replay in flight. Its record has no position, so deduplication treats it as another
    /// producer's record.
    pub(super) fn on_outcome(&mut self, name: PartitionName<'_>, outcome: &Result<Offset, RDKafkaErrorCode>) {
        let Some(answer) = self.answer.take() else { return };
        let outcome = match outcome {
            Ok(_) => SendOutcome::Sent { topic: name.topic.to_owned(), partition: name.number },
            Err(code) => SendOutcome::Refused(format!("Kafka refused the record for {name}: {code:?}")),
        };
        send_outcome(answer, outcome);
    }
}

impl Dispatch {
    /// The destination and the record of a replayed event.
    fn replay<'a>(
        &mut self,
        row: OutboxRow<'a>,
        provenance: Provenance<'_>,
        topics: &TopicRegistry,
    ) -> Result<(CurrentDestination, Prepared<'a>), Poison> {
        let now = PgTime::now();
        let time = row.occurred_at.unwrap_or(now);
        let headers = self.encoder.headers(&row, provenance, time).map_err(|error| Poison::from(&error))?;
        let bytes = self.encoder.size(&row);
        let input = RoutingInput {
            key: row.partition_key(),
            bytes,
            has_key: row.key.is_some(),
            position: None,
            invalid: None,
            column: |_: &str| row.route_by,
        };
        match self.routing.current_destination(&input, topics)? {
            CurrentDestination::Partition(Destination { poison: Some(poison), .. }) => Err(poison),
            // The timestamp is the current time: retention could delete a record as old as its event immediately.
            destination => Ok((destination, Prepared::event(row, headers, bytes, now))),
        }
    }
}

/// Ignores an error: the requester may be gone.
fn send_outcome(answer: oneshot::Sender<SendOutcome>, outcome: SendOutcome) -> Option<ReplayRequest> {
    drop(answer.send(outcome));
    None
}
