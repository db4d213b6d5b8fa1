//! From a row to a record in a producer: decides the partition, whether Kafka already has the record, and its content.

use std::time::Instant;

use outbox::Position;
use pg_replication::PgTime;
use pg_replication::pgoutput::Column;

use super::in_flight::InFlight;
use super::ingest::Origin;
use super::lanes::{Absence, Placed, WaitingRow};
use super::refusals::RefusalWatch;
use super::silent_partitions::BlockedOn;
use super::topic_discovery::TopicDiscovery;
use super::{Broker, violation};
use crate::config::Config;
use crate::error::RelayError;
use crate::event::dead_letter::DeadLetterEncoder;
use crate::event::decoded_row::DecodedRow;
use crate::event::poison::{Poison, PoisonKind};
use crate::event::record::{Prepared, Provenance, RecordEncoder, rfc3339};
use crate::event::row::{EventId, Layout, PartialRow, RowError};
use crate::failpoint::{self, Boundary};
use crate::kafka::evidence::{DeliveredEvents, EventKey};
use crate::progress::fingerprints::Fingerprint;
use crate::progress::partition_dedup::Admission;
use crate::routing::error::RoutingError;
use crate::routing::mapping::{
    CurrentDestination, Destination, EarlierDestination, Revision, RoutingInput, RoutingTable,
};
use crate::topics::partitions::PartitionId;
use crate::topics::settings::Settings;

/// A decoded row.
struct Candidate<'a> {
    decoded: DecodedRow<'a>,
    /// The size of its record; 0 if it cannot become one.
    bytes: usize,
    time: PgTime,
    origin: Origin,
    fingerprint: Fingerprint,
}

impl Candidate<'_> {
    fn is_among(&self, events: &DeliveredEvents) -> bool {
        let id = self.decoded.id().map(EventId::as_bytes);
        id.is_some_and(|id| events.contains(EventKey::new(id, rfc3339(self.time).as_bytes())))
    }

    fn at(&self, partition: PartitionId, absence: Absence) -> Placed {
        let Origin { position, read_from, .. } = self.origin;
        Placed { partition, position, read_from, fingerprint: self.fingerprint, absence }
    }
}

/// What to do with a row.
enum Decision {
    /// Offer it again later.
    Block,
    /// Kafka has it.
    Skip,
    /// Queue it until its partition accepts it.
    Queue(Placed, Option<Poison>),
    Send(Placed, Option<Poison>),
}

/// When the next row may be processed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum NextRow {
    Anytime,
    /// The last row went to another partition than its first routing version chose. If a later row reached that
    /// partition first, a restart would find the higher position there and skip the row.
    OnceAllAcknowledged,
}

/// The other stages that dispatch needs for a row.
pub(super) struct Stages<'c, B> {
    pub(super) in_flight: &'c mut InFlight<B>,
    pub(super) discovery: &'c mut TopicDiscovery,
    pub(super) refusals: &'c mut RefusalWatch,
    /// In a refill: the events that Kafka has already.
    pub(super) delivered: Option<&'c DeliveredEvents>,
    /// The routing revision in the committed checkpoint.
    pub(super) committed_revision: Revision,
}

/// What became of a row.
pub(super) enum Dispatched {
    /// Nothing: it must be offered again.
    Blocked,
    /// It is sent, waits for its partition, or is in Kafka already.
    Done {
        /// Identifies the row.
        fingerprint: Fingerprint,
    },
}

pub(super) struct Dispatch {
    pub(super) routing: RoutingTable,
    pub(super) encoder: RecordEncoder,
    dead_letter_encoder: DeadLetterEncoder,
    /// `sink.maxMessageBytes`.
    max_message_bytes: usize,
    next_row: NextRow,
    /// The partition that the next row waits for, if the row cannot be queued.
    blocked_on: Option<BlockedOn>,
}

impl Dispatch {
    pub(super) fn new(routing: RoutingTable, config: &Config) -> Dispatch {
        let source = config.source.event_source();
        Dispatch {
            routing,
            encoder: RecordEncoder { source: source.clone() },
            dead_letter_encoder: DeadLetterEncoder { table: config.source.table.to_string(), source },
            max_message_bytes: config.sink.max_message_bytes,
            next_row: NextRow::Anytime,
            blocked_on: None,
        }
    }

    /// The partition that the next row waits for, if the row cannot be queued.
    pub(super) fn blocked_on(&self) -> Option<BlockedOn> {
        self.blocked_on
    }

    /// Sends a row, skips it because Kafka has it, or queues it until its partition accepts it. The row is blocked if its
    /// partition cannot be determined yet, or if it must not be queued.
    pub(super) fn deliver<'a, B: Broker>(
        &mut self,
        layout: &Layout,
        values: impl Iterator<Item = Column<'a>> + Clone,
        origin: Origin,
        stages: &mut Stages<'_, B>,
    ) -> Result<Dispatched, RelayError> {
        if self.next_row == NextRow::OnceAllAcknowledged && stages.in_flight.lanes.load().events > 0 {
            return Ok(Dispatched::Blocked);
        }
        self.next_row = NextRow::Anytime;
        let row = self.decode(layout, values.clone(), origin)?;
        failpoint::pass(match origin.position.index {
            0 => Boundary::AfterDecode,
            _ => Boundary::InTransaction,
        });
        let route_by = row.decoded.routing_value();
        let column = |name: &str| {
            if layout.routes_by(name) { route_by } else { layout.text(values.clone(), name) }
        };
        let fingerprint = row.fingerprint;
        let is_delivered = stages.delivered.is_some_and(|events| row.is_among(events));
        let (decision, mut next_row) = match is_delivered {
            true => (Decision::Skip, NextRow::Anytime),
            false => self.decide(&row, column, stages)?,
        };
        match decision {
            Decision::Block => return Ok(Dispatched::Blocked),
            Decision::Skip => {
                stages.in_flight.count_suppressed();
                stages.in_flight.progress.on_duplicate(origin);
            }
            Decision::Queue(placed, poison) => {
                let prepared = self.prepare(row, poison, placed, stages);
                let entry = stages.in_flight.progress.enter(origin, prepared.time)?;
                let row = WaitingRow { placed, prepared: prepared.into_owned(), entry };
                stages.in_flight.lanes.push_waiting(row);
            }
            Decision::Send(placed, poison) => {
                if stages.refusals.is_retry(origin.position) {
                    next_row = NextRow::OnceAllAcknowledged;
                }
                let prepared = self.prepare(row, poison, placed, stages);
                let entry = stages.in_flight.progress.enter(origin, prepared.time)?;
                stages.in_flight.send(prepared, entry, placed)?;
            }
        }
        self.next_row = next_row;
        self.blocked_on = None;
        Ok(Dispatched::Done { fingerprint })
    }

    /// Decides where a row goes, and when. A row that may have been sent by an earlier version of the routing is
    /// compared with that version's partition.
    fn decide<'a, B: Broker>(
        &mut self,
        row: &Candidate<'_>,
        column: impl Fn(&str) -> Option<&'a str>,
        stages: &mut Stages<'_, B>,
    ) -> Result<(Decision, NextRow), RelayError> {
        let Origin { position, commit, .. } = row.origin;
        let partition_key = row.decoded.partition_key(position);
        let input = RoutingInput {
            key: &partition_key,
            bytes: row.bytes,
            has_key: row.decoded.has_key(),
            position: Some(position),
            invalid: row.decoded.error(),
            column: |name: &str| column(name),
        };
        let mut next_row = NextRow::Anytime;
        match self.routing.earlier_destination(&input, commit, &stages.in_flight.topics) {
            Some(EarlierDestination::Kept(destination)) => {
                return Ok((self.decide_at(row, destination, stages)?, next_row));
            }
            Some(EarlierDestination::Superseded(destination)) => {
                if let Some(decision) = self.decide_superseded(row, &destination, stages)? {
                    return Ok((decision, next_row));
                }
                next_row = NextRow::OnceAllAcknowledged;
            }
            None => {}
        }
        let decision = match self.routing.current_destination(&input, &stages.in_flight.topics) {
            Ok(CurrentDestination::Partition(destination)) => self.decide_at(row, destination, stages)?,
            Ok(CurrentDestination::NewTopic(name)) => {
                stages.discovery.request(&name, &stages.in_flight.broker);
                Decision::Block
            }
            Err(error) => {
                self.blocked_on = None;
                return Err(on_unroutable(&row.decoded, position, &error, stages));
            }
        };
        Ok((decision, next_row))
    }

    /// Decides what to do with a row that does not go to this destination any more; `None` if it was not sent there
    /// either.
    fn decide_superseded<B: Broker>(
        &mut self,
        row: &Candidate<'_>,
        destination: &Destination,
        stages: &mut Stages<'_, B>,
    ) -> Result<Option<Decision>, RelayError> {
        if destination.revision > stages.committed_revision {
            return Ok(Some(Decision::Block));
        }
        let partition = stages.in_flight.topics.partition_at(destination.topic, destination.number)?;
        Ok(match stages.in_flight.admit(row.at(partition, Absence::SentElsewhere))? {
            Admission::AlreadyThere => Some(Decision::Skip),
            Admission::Wait | Admission::Scan { .. } => Some(self.block_on(partition)),
            Admission::Send => None,
        })
    }

    /// Decides what to do with a row that goes to this destination unless it is there already.
    fn decide_at<B: Broker>(
        &mut self,
        row: &Candidate<'_>,
        destination: Destination,
        stages: &mut Stages<'_, B>,
    ) -> Result<Decision, RelayError> {
        let Destination { topic, number, revision, poison } = destination;
        if revision > stages.committed_revision {
            return Ok(Decision::Block);
        }
        let partition = stages.in_flight.topics.partition_at(topic, number)?;
        // The settings may change the destination, also of a row that would only be queued: the topic would refuse it,
        // in each session again.
        if stages.in_flight.topics.topic(topic).settings == Settings::Unread {
            return Ok(self.block_on(partition));
        }
        let absence = if poison.is_some() { Absence::NotSent } else { Absence::Impossible };
        let placed = row.at(partition, absence);
        Ok(match stages.in_flight.admit(placed)? {
            Admission::AlreadyThere => Decision::Skip,
            Admission::Send => Decision::Send(placed, poison),
            // A retried row is sent alone.
            Admission::Wait | Admission::Scan { .. } if stages.refusals.is_retry(placed.position) => {
                self.block_on(partition)
            }
            Admission::Wait | Admission::Scan { .. } => Decision::Queue(placed, poison),
        })
    }

    fn block_on(&mut self, partition: PartitionId) -> Decision {
        if self.blocked_on.is_none_or(|blocked| blocked.partition != partition) {
            self.blocked_on = Some(BlockedOn { partition, since: Instant::now() });
        }
        Decision::Block
    }

    /// Decodes a row and its time. A bad value makes the row invalid. A row that does not match its relation is a
    /// protocol violation.
    fn decode<'a>(
        &self,
        layout: &Layout,
        values: impl Iterator<Item = Column<'a>> + Clone,
        origin: Origin,
    ) -> Result<Candidate<'a>, RelayError> {
        let provenance = Provenance::Row { position: origin.position, refill: origin.read_from.refill() };
        let invalid = |row: PartialRow<'a>, poison| {
            let time = row.occurred_at.unwrap_or(origin.commit_time);
            (DecodedRow::Invalid(row, poison), 0, time)
        };
        let (decoded, bytes, time) = match layout.read(values.clone()) {
            Ok(row) => {
                let time = row.occurred_at.unwrap_or(origin.commit_time);
                match self.encoder.headers(&row, provenance, time) {
                    Ok(headers) => {
                        let bytes = self.encoder.size(&row);
                        (DecodedRow::Valid(row, headers), bytes, time)
                    }
                    Err(error) => invalid(row.into(), Poison::from(&error)),
                }
            }
            Err(error @ RowError::ColumnCount { .. }) => return Err(violation(error.to_string())),
            Err(RowError::Oversized { .. }) => {
                let row = layout.decode_lenient(values);
                let bytes = self.encoder.size_with_left_out(&row);
                invalid(row, Poison::oversized(bytes, self.max_message_bytes))
            }
            Err(error) => invalid(layout.decode_lenient(values), Poison::from(&error)),
        };
        let fingerprint = Fingerprint::of(origin.position, decoded.id().map(EventId::as_bytes));
        Ok(Candidate { decoded, bytes, time, origin, fingerprint })
    }

    /// Makes the record of a row. If the topic's settings make it a dead letter, they are read regularly.
    fn prepare<'a, B>(
        &self,
        row: Candidate<'a>,
        poison: Option<Poison>,
        placed: Placed,
        stages: &mut Stages<'_, B>,
    ) -> Prepared<'a> {
        if let Some(Poison { kind: PoisonKind::TooLarge | PoisonKind::NoKey, topic: Some(topic), .. }) =
            &poison
        {
            stages.discovery.watch_settings(topic);
        }
        let Candidate { decoded, bytes, time, origin, .. } = row;
        let (row, poison) = match (decoded, poison) {
            (DecodedRow::Valid(row, headers), None) => return Prepared::event(row, headers, bytes, time),
            (DecodedRow::Valid(row, _), Some(poison)) => (row.into(), poison),
            (DecodedRow::Invalid(row, error), poison) => (row, poison.unwrap_or(error)),
        };
        let limit = self.routing.limit(stages.in_flight.topics.partition(placed.partition).topic);
        self.dead_letter_encoder.encode(row, poison, origin.position, origin.read_from.refill(), time, limit)
    }
}

/// A row cannot be routed. Delivery continues once the topic's settings allow the row, or once the broker accepts it, so
/// these are tried again from time to time. Returns the error to show until then.
fn on_unroutable<B>(
    decoded: &DecodedRow<'_>,
    position: Position,
    error: &RoutingError,
    stages: &mut Stages<'_, B>,
) -> RelayError {
    if let Some(topic) = error.decided_by_settings_of() {
        stages.discovery.watch_settings(topic);
    }
    if error.is_refusal() {
        stages.refusals.schedule_retry(position);
    }
    decoded.poison_error(error, position)
}
