//! From a row to a record that is handed to a producer: where it goes, whether Kafka has it, what it looks like there.

use outbox::Position;
use pg_replication::pgoutput::Column;
use pg_replication::{CommitLsn, PgTime};
use rdkafka::error::KafkaError;

use super::waiting_rows::{Placed, WaitingRow};
use super::{Delivery, Flow, code_of, violation};
use crate::error::RelayError;
use crate::event::decoded_row::DecodedRow;
use crate::event::poison::{Poison, PoisonKind};
use crate::event::record::{Prepared, kafka_timestamp};
use crate::event::row::{EventId, Layout, RowError};
use crate::failpoint::{self, Boundary};
use crate::kafka;
use crate::kafka::producers::{ProducerRecord, Tag};
use crate::progress::fingerprints::fingerprint;
use crate::progress::ledger::EntryId;
use crate::progress::partition_dedup::Admission;
use crate::routing::error::RoutingError;
use crate::routing::mapping::{Destination, RoutingInput};
use crate::topics::partitions::PartitionId;

/// Where a row comes from.
#[derive(Clone, Copy)]
pub(super) struct Origin {
    pub(super) position: Position,
    pub(super) commit: CommitLsn,
    pub(super) commit_time: PgTime,
    /// Its `seq`, if it comes from the table; else it is of the stream's open transaction.
    pub(super) copied: Option<i64>,
}

/// Commit of a row that goes where the mapping of now sends it: none before has a say.
pub(super) fn current_routing_commit() -> CommitLsn {
    CommitLsn::new(u64::MAX.into())
}

impl Delivery {
    /// Sends a row, drops it because Kafka has it, or sets it aside until its partition takes it; [`Flow::Blocked`] where it cannot be said yet
    /// where it goes.
    pub(super) fn deliver<'a>(
        &mut self,
        layout: &Layout,
        values: impl Iterator<Item = Column<'a>> + Clone,
        origin: Origin,
        stored: u64,
    ) -> Result<Flow, RelayError> {
        if self.rerouted_row_in_flight && self.in_flight().0 > 0 {
            return Ok(Flow::Blocked);
        }
        self.rerouted_row_in_flight = false;
        let (arrival, time) = self.decode(layout, values.clone(), origin)?;
        failpoint::pass(match origin.position.index {
            0 => Boundary::AfterDecode,
            _ => Boundary::InTransaction,
        });
        let route_by = arrival.routing_value();
        let column = |name: &str| {
            if layout.routes_by(name) { route_by } else { layout.text(values.clone(), name) }
        };
        let bytes = match &arrival {
            DecodedRow::Valid(row, _) => self.encoder.size(row),
            DecodedRow::Invalid(..) => 0,
        };
        let Some((partition, poison)) = self.destination(&arrival, bytes, origin, column, stored)? else {
            return Ok(Flow::Blocked);
        };
        let takes = |(topic, _)| self.routing.takes_now(topic, bytes, arrival.has_key());
        let fits = self.partitions.name_of(partition).is_some_and(takes);
        let fingerprint = fingerprint(origin.position, arrival.id().map(EventId::as_bytes));
        let is_dead = poison.is_some();
        let placed = Placed { partition, position: origin.position, fingerprint, is_dead, fits };
        let admission = match self.waiting.has(partition) {
            true => Admission::Wait,
            false => self.admit(placed)?,
        };
        let waits = matches!(admission, Admission::Wait | Admission::Search { .. });
        let is_tried_again = self.refusals.is_tried_again(origin.position);
        if waits && (is_tried_again || !placed.goes_there()) {
            return Ok(self.block_on(partition));
        }
        if admission == Admission::AlreadyThere {
            self.count_suppressed();
            if let (Some(seq), Some(cursor)) = (origin.copied, &mut self.snapshot) {
                cursor.on_duplicate(seq);
            }
        } else if !placed.goes_there() {
            // A mapping before this one would have sent it there, and did not.
            let origin = Origin { commit: current_routing_commit(), ..origin };
            let flow = self.deliver(layout, values, origin, stored)?;
            self.rerouted_row_in_flight = flow == Flow::Next;
            return Ok(flow);
        } else {
            if let Some(Poison {
                kind: PoisonKind::TooLarge | PoisonKind::NoKey, topic: Some(topic), ..
            }) = &poison
            {
                self.watch_settings(topic);
            }
            self.rerouted_row_in_flight |= is_tried_again;
            let prepared = self.prepare((arrival, bytes), poison, placed, time);
            let entry = self.ledger_entry(origin, prepared.time)?;
            if waits {
                let row = WaitingRow { placed, prepared: prepared.into_owned(), entry };
                self.waiting.push(row, self.in_flight.now());
            } else {
                self.send(prepared, entry, placed)?;
            }
        }
        self.blocked_on = None;
        self.recent.on_row(origin.position, fingerprint);
        self.counts.received += 1;
        Ok(Flow::Next)
    }

    /// Where a row goes, as a dead letter where it cannot be delivered; `None` where that is not known yet.
    fn destination<'a>(
        &mut self,
        arrival: &DecodedRow<'_>,
        bytes: usize,
        Origin { position, commit, .. }: Origin,
        column: impl Fn(&str) -> Option<&'a str>,
        stored: u64,
    ) -> Result<Option<(PartitionId, Option<Poison>)>, RelayError> {
        let spread_by = arrival.partition_key(position);
        let subject = RoutingInput {
            key: &spread_by,
            bytes,
            has_key: arrival.has_key(),
            position: Some(position),
            flaw: arrival.error(),
            commit,
            column: |name: &str| column(name),
        };
        match self.routing.destination(&subject) {
            Ok(Destination::Partition { topic, number, revision, poison }) if revision <= stored => {
                let partition = self.partitions.id(topic, number);
                let partition =
                    partition.ok_or_else(|| violation(format!("{topic} has no partition {number}")))?;
                Ok(Some((partition, poison)))
            }
            Ok(Destination::Partition { .. }) => Ok(None),
            Ok(Destination::NewTopic(name)) => {
                let name = name.to_owned();
                self.request_topic(&name);
                Ok(None)
            }
            Err(error) => Err(self.routing_error(arrival, position, error)),
        }
    }

    /// Reads a row, with its time. What is wrong with its values is the row's; a row of another shape than its table
    /// is the stream's.
    fn decode<'a>(
        &self,
        layout: &Layout,
        values: impl Iterator<Item = Column<'a>> + Clone,
        origin: Origin,
    ) -> Result<(DecodedRow<'a>, PgTime), RelayError> {
        let (row, flaw) = match layout.read(values.clone()) {
            Ok(row) => {
                let time = row.occurred_at.unwrap_or(origin.commit_time);
                let headers = self.encoder.headers(&row, Some(origin.position), time);
                match headers {
                    Ok(headers) => return Ok((DecodedRow::Valid(row, headers), time)),
                    Err(error) => (row.into(), Poison::from(&error)),
                }
            }
            Err(error @ RowError::ColumnCount { .. }) => return Err(violation(error.to_string())),
            Err(RowError::Oversized { .. }) => {
                let row = layout.decode_lenient(values);
                let bytes = self.encoder.size_with_left_out(&row);
                (row, Poison::oversized(bytes, self.sink.max_message_bytes))
            }
            Err(error) => (layout.decode_lenient(values), Poison::from(&error)),
        };
        let time = row.occurred_at.unwrap_or(origin.commit_time);
        Ok((DecodedRow::Invalid(row, flaw), time))
    }

    fn prepare<'a>(
        &self,
        (arrival, bytes): (DecodedRow<'a>, usize),
        poison: Option<Poison>,
        placed: Placed,
        time: PgTime,
    ) -> Prepared<'a> {
        let (row, poison) = match (arrival, poison) {
            (DecodedRow::Valid(row, headers), None) => return Prepared::event(row, headers, bytes, time),
            (DecodedRow::Valid(row, _), Some(poison)) => (row.into(), poison),
            (DecodedRow::Invalid(row, flaw), poison) => (row, poison.unwrap_or(flaw)),
        };
        let limit =
            self.partitions.name_of(placed.partition).map_or(0, |(topic, _)| self.routing.limit(topic));
        self.dead_letter_encoder.encode(row, poison, placed.position, time, limit)
    }

    /// A row waits for the settings to be changed that keep it from its topic, or for the broker to change its mind.
    fn routing_error(
        &mut self,
        arrival: &DecodedRow<'_>,
        position: Position,
        error: RoutingError,
    ) -> RelayError {
        if let Some(topic) = error.decided_by_settings_of() {
            self.watch_settings(topic);
        }
        if error.is_refusal() {
            self.refusals.on_unplaced(position);
        }
        arrival.poison_error(error, position)
    }

    /// The ledger's entry for a row, which is done when the row is in Kafka.
    fn ledger_entry(&mut self, origin: Origin, time: PgTime) -> Result<EntryId, RelayError> {
        let Some(seq) = origin.copied else { return Ok(self.ledger.row()?) };
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
        let dead = prepared.dead.take();
        self.produce(prepared, Tag::new(entry, partition), Some(position))
            .map_err(|error| produce_failed(&format!("the event at {position}"), &error))?;
        if let Some(note) = dead {
            self.dead_letters.on_sent(partition, note);
            failpoint::pass(Boundary::DeadLetterSent);
        }
        if let Some(mark) = self.partitions.dedup(partition) {
            mark.on_sent(position, self.in_flight.now());
        }
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
        position: Option<Position>,
    ) -> Result<(), KafkaError> {
        let Some((topic, number)) = self.partitions.name_of(tag.partition()) else { return Ok(()) };
        let now = self.clock;
        let mut timestamp = kafka_timestamp(prepared.time);
        let settings = self.partitions.settings(topic).copied().unwrap_or_default();
        // Kafka has no time before 1970, and librdkafka takes 0 for none.
        let unfit = settings.is_too_old(timestamp, now) || settings.is_too_new(timestamp, now);
        if timestamp <= 0 || unfit || self.refusals.were_of_timestamps(topic) {
            timestamp = now;
            self.metrics.timestamps_replaced_total.inc();
        }
        let record = ProducerRecord {
            topic,
            partition: number,
            key: prepared.key.as_deref(),
            value: prepared.value.as_deref(),
            headers: prepared.headers,
            timestamp,
        };
        let sent = self.producers.send(record, tag);
        // After a refused record a producer takes no more: this can be the first that is heard of it.
        sent.inspect_err(|error| self.metrics.count_produce_error(code_of(error)))?;
        self.counts.sent += 1;
        self.in_flight.on_sent(tag.partition(), prepared.bytes, position);
        Ok(())
    }
}

pub(super) fn produce_failed(what: &str, error: &KafkaError) -> RelayError {
    kafka::error::error_of(&format!("the producer did not take {what}"), code_of(error))
}
