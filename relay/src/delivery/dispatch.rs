//! From a row to a record in a producer: decides the partition, whether Kafka already has the record, and its content.

use std::time::Instant;

use outbox::Position;
use pg_replication::pgoutput::Column;
use pg_replication::{CommitLsn, PgTime};
use rdkafka::error::KafkaError;

use super::lanes::{Absence, Placed, SentContent, SentRecord, WaitingRow};
use super::silent_partitions::BlockedOn;
use super::{Broker, Delivery, Flow, code_of, violation};
use crate::error::RelayError;
use crate::event::decoded_row::DecodedRow;
use crate::event::poison::{Poison, PoisonKind};
use crate::event::record::{Prepared, kafka_timestamp};
use crate::event::row::{EventId, Layout, PartialRow, RowError};
use crate::failpoint::{self, Boundary};
use crate::kafka;
use crate::kafka::producers::{ProducerRecord, Tag};
use crate::progress::fingerprints::fingerprint;
use crate::progress::ledger::EntryId;
use crate::progress::partition_dedup::Admission;
use crate::routing::error::RoutingError;
use crate::routing::mapping::{CurrentDestination, Destination, EarlierDestination, RoutingInput};
use crate::topics::partitions::PartitionId;

/// The source of a row.
#[derive(Clone, Copy)]
pub(super) struct Origin {
    pub(super) position: Position,
    pub(super) commit: CommitLsn,
    pub(super) commit_time: PgTime,
    /// The row's `seq`, if it comes from the initial snapshot. Otherwise the row is of the stream's open transaction.
    pub(super) snapshot_seq: Option<i64>,
}

/// A decoded row.
struct Candidate<'a> {
    decoded: DecodedRow<'a>,
    /// The size of its record; 0 if it cannot become one.
    bytes: usize,
    time: PgTime,
    origin: Origin,
    fingerprint: u64,
}

impl Candidate<'_> {
    fn at(&self, partition: PartitionId, absence: Absence) -> Placed {
        Placed { partition, position: self.origin.position, fingerprint: self.fingerprint, absence }
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
    /// Send it.
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

impl<B: Broker> Delivery<B> {
    /// Sends a row, skips it because Kafka has it, or queues it until its partition accepts it. Returns
    /// [`Flow::Blocked`] if its partition cannot be determined yet, or if the row must not be queued.
    pub(super) fn deliver<'a>(
        &mut self,
        layout: &Layout,
        values: impl Iterator<Item = Column<'a>> + Clone,
        origin: Origin,
        committed_revision: u64,
    ) -> Result<Flow, RelayError> {
        if self.next_row == NextRow::OnceAllAcknowledged && self.in_flight().0 > 0 {
            return Ok(Flow::Blocked);
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
        let (decision, mut next_row) = self.decide(&row, column, committed_revision)?;
        match decision {
            Decision::Block => return Ok(Flow::Blocked),
            Decision::Skip => {
                self.count_suppressed();
                if let (Some(seq), Some(cursor)) = (origin.snapshot_seq, &mut self.snapshot) {
                    cursor.on_duplicate(seq);
                }
            }
            Decision::Queue(placed, poison) => {
                let (prepared, entry) = self.enter(row, poison, placed)?;
                let row = WaitingRow { placed, prepared: prepared.into_owned(), entry };
                self.lanes.push_waiting(row);
            }
            Decision::Send(placed, poison) => {
                if self.refusals.is_retry(origin.position) {
                    next_row = NextRow::OnceAllAcknowledged;
                }
                let (prepared, entry) = self.enter(row, poison, placed)?;
                self.send(prepared, entry, placed)?;
            }
        }
        self.next_row = next_row;
        self.blocked_on = None;
        self.recent.on_row(origin.position, fingerprint);
        self.counts.received += 1;
        Ok(Flow::Next)
    }

    /// Decides where a row goes, and when. A row that may have been sent by an earlier version of the routing is
    /// compared with that version's partition.
    fn decide<'a>(
        &mut self,
        row: &Candidate<'_>,
        column: impl Fn(&str) -> Option<&'a str>,
        committed_revision: u64,
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
        match self.routing.earlier_destination(&input, commit, &self.topics) {
            Some(EarlierDestination::Kept(destination)) => {
                return Ok((self.decide_at(row, destination, committed_revision)?, next_row));
            }
            Some(EarlierDestination::Superseded(Destination { topic, number, revision, .. })) => {
                if revision > committed_revision {
                    return Ok((Decision::Block, next_row));
                }
                let partition = self.topics.partition_at(topic, number)?;
                match self.admission(row.at(partition, Absence::SentElsewhere))? {
                    Admission::AlreadyThere => return Ok((Decision::Skip, next_row)),
                    Admission::Wait | Admission::Scan { .. } => {
                        return Ok((self.block_on(partition), next_row));
                    }
                    Admission::Send => next_row = NextRow::OnceAllAcknowledged,
                }
            }
            None => {}
        }
        let decision = match self.routing.current_destination(&input, &self.topics) {
            Ok(CurrentDestination::Partition(destination)) => {
                self.decide_at(row, destination, committed_revision)?
            }
            Ok(CurrentDestination::NewTopic(name)) => {
                self.request_topic(&name);
                Decision::Block
            }
            Err(error) => return Err(self.routing_error(&row.decoded, position, error)),
        };
        Ok((decision, next_row))
    }

    /// Decides what to do with a row that goes to this destination unless it is there already.
    fn decide_at(
        &mut self,
        row: &Candidate<'_>,
        destination: Destination,
        committed_revision: u64,
    ) -> Result<Decision, RelayError> {
        let Destination { topic, number, revision, poison } = destination;
        if revision > committed_revision {
            return Ok(Decision::Block);
        }
        let partition = self.topics.partition_at(topic, number)?;
        let absence = if poison.is_some() { Absence::NotSent } else { Absence::Impossible };
        let placed = row.at(partition, absence);
        Ok(match self.admission(placed)? {
            Admission::AlreadyThere => Decision::Skip,
            Admission::Send => Decision::Send(placed, poison),
            // A retried row is sent alone.
            Admission::Wait | Admission::Scan { .. } if self.refusals.is_retry(placed.position) => {
                self.block_on(partition)
            }
            Admission::Wait | Admission::Scan { .. } => Decision::Queue(placed, poison),
        })
    }

    fn admission(&mut self, placed: Placed) -> Result<Admission, RelayError> {
        match self.lanes.has_waiting(placed.partition) {
            true => Ok(Admission::Wait),
            false => self.admit(placed),
        }
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
        let invalid = |row: PartialRow<'a>, poison| {
            let time = row.occurred_at.unwrap_or(origin.commit_time);
            (DecodedRow::Invalid(row, poison), 0, time)
        };
        let (decoded, bytes, time) = match layout.read(values.clone()) {
            Ok(row) => {
                let time = row.occurred_at.unwrap_or(origin.commit_time);
                match self.encoder.headers(&row, Some(origin.position), time) {
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
                invalid(row, Poison::oversized(bytes, self.sink.max_message_bytes))
            }
            Err(error) => invalid(layout.decode_lenient(values), Poison::from(&error)),
        };
        let fingerprint = fingerprint(origin.position, decoded.id().map(EventId::as_bytes));
        Ok(Candidate { decoded, bytes, time, origin, fingerprint })
    }

    /// Makes the record of a row, and enters the row into the ledger.
    fn enter<'a>(
        &mut self,
        row: Candidate<'a>,
        poison: Option<Poison>,
        placed: Placed,
    ) -> Result<(Prepared<'a>, EntryId), RelayError> {
        if let Some(Poison { kind: PoisonKind::TooLarge | PoisonKind::NoKey, topic: Some(topic), .. }) =
            &poison
        {
            self.watch_settings(topic);
        }
        let origin = row.origin;
        let prepared = self.prepare(row, poison, placed);
        let entry = self.ledger_entry(origin, prepared.time)?;
        Ok((prepared, entry))
    }

    fn prepare<'a>(&self, row: Candidate<'a>, poison: Option<Poison>, placed: Placed) -> Prepared<'a> {
        let Candidate { decoded, bytes, time, .. } = row;
        let (row, poison) = match (decoded, poison) {
            (DecodedRow::Valid(row, headers), None) => return Prepared::event(row, headers, bytes, time),
            (DecodedRow::Valid(row, _), Some(poison)) => (row.into(), poison),
            (DecodedRow::Invalid(row, error), poison) => (row, poison.unwrap_or(error)),
        };
        let limit = self.routing.limit(self.topics.partition(placed.partition).topic);
        self.dead_letter_encoder.encode(row, poison, placed.position, time, limit)
    }

    /// The error for a row that cannot be routed. Delivery continues once the topic's settings allow the row, or once
    /// the broker accepts it.
    fn routing_error(
        &mut self,
        decoded: &DecodedRow<'_>,
        position: Position,
        error: RoutingError,
    ) -> RelayError {
        if let Some(topic) = error.decided_by_settings_of() {
            self.watch_settings(topic);
        }
        if error.is_refusal() {
            self.refusals.on_unroutable(position);
        }
        decoded.poison_error(error, position)
    }

    /// The ledger entry of a row, which is completed when the row is in Kafka.
    fn ledger_entry(&mut self, origin: Origin, time: PgTime) -> Result<EntryId, RelayError> {
        let Some(seq) = origin.snapshot_seq else { return Ok(self.ledger.row()?) };
        let entry = self.ledger.single_row_transaction(self.before_start(), time, self.start)?;
        self.snapshot.iter_mut().for_each(|cursor| cursor.on_sent(entry, seq));
        Ok(entry)
    }

    pub(super) fn send(
        &mut self,
        mut prepared: Prepared<'_>,
        entry: EntryId,
        placed: Placed,
    ) -> Result<(), RelayError> {
        let Placed { partition, position, .. } = placed;
        let dead_letter = prepared.dead.take().map(Box::new);
        let is_dead_letter = dead_letter.is_some();
        let content = dead_letter.map_or(SentContent::Event(position), SentContent::DeadLetter);
        self.produce(prepared, Tag::new(entry, partition), content)
            .map_err(|error| produce_failed(&format!("the event at {position}"), &error))?;
        if is_dead_letter {
            failpoint::pass(Boundary::DeadLetterSent);
        }
        self.topics.partition_mut(partition).dedup.on_sent(position, self.lanes.now());
        Ok(())
    }

    pub(super) fn count_suppressed(&mut self) {
        self.counts.suppressed += 1;
        self.metrics.duplicates_suppressed_total.inc();
    }

    pub(super) fn produce(
        &mut self,
        prepared: Prepared<'_>,
        tag: Tag,
        content: SentContent,
    ) -> Result<(), KafkaError> {
        let name = self.topics.name_of(tag.partition());
        let (now, time) = (self.now_millis, kafka_timestamp(prepared.time));
        let keeps_time = self.topics.topic_of(tag.partition()).accepts_timestamp(time, now);
        if !keeps_time {
            self.metrics.timestamps_replaced_total.inc();
        }
        let record = ProducerRecord {
            topic: name.topic,
            partition: name.number,
            key: prepared.key.as_deref(),
            value: prepared.value.as_deref(),
            headers: prepared.headers,
            timestamp: if keeps_time { time } else { now },
        };
        let sent = self.broker.produce(record, tag);
        // A producer accepts nothing after a refused record, so this call may be the first sign of the refusal.
        sent.inspect_err(|error| self.metrics.count_produce_error(code_of(error)))?;
        self.counts.sent += 1;
        self.lanes.on_sent(SentRecord { tag, bytes: prepared.bytes, content });
        Ok(())
    }
}

pub(super) fn produce_failed(what: &str, error: &KafkaError) -> RelayError {
    kafka::error::error_of(&format!("the producer did not accept {what}"), code_of(error))
}
