//! From a row to a record in a producer: decides the partition, whether Kafka already has the record, and its content.

use outbox::Position;
use pg_replication::pgoutput::Column;
use pg_replication::{CommitLsn, PgTime};
use rdkafka::error::KafkaError;

use super::waiting_rows::{Placed, WaitingRow};
use super::{Broker, Delivery, Flow, code_of, violation};
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

/// The source of a row.
#[derive(Clone, Copy)]
pub(super) struct Origin {
    pub(super) position: Position,
    pub(super) commit: CommitLsn,
    pub(super) commit_time: PgTime,
    /// The row's `seq`, if it comes from the initial snapshot. Otherwise the row is of the stream's open transaction.
    pub(super) snapshot_seq: Option<i64>,
}

/// A commit LSN after those of all earlier routing versions, so that only the current version applies.
pub(super) fn current_routing_commit() -> CommitLsn {
    CommitLsn::new(u64::MAX.into())
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
        if self.rerouted_row_in_flight && self.in_flight().0 > 0 {
            return Ok(Flow::Blocked);
        }
        self.rerouted_row_in_flight = false;
        let (decoded, time) = self.decode(layout, values.clone(), origin)?;
        failpoint::pass(match origin.position.index {
            0 => Boundary::AfterDecode,
            _ => Boundary::InTransaction,
        });
        let route_by = decoded.routing_value();
        let column = |name: &str| {
            if layout.routes_by(name) { route_by } else { layout.text(values.clone(), name) }
        };
        let bytes = match &decoded {
            DecodedRow::Valid(row, _) => self.encoder.size(row),
            DecodedRow::Invalid(..) => 0,
        };
        let destination = self.destination(&decoded, bytes, origin, column, committed_revision)?;
        let Some((partition, poison)) = destination else { return Ok(Flow::Blocked) };
        let accepts = |(topic, _)| self.routing.accepts(topic, bytes, decoded.has_key());
        let fits = self.partitions.name_of(partition).is_some_and(accepts);
        let fingerprint = fingerprint(origin.position, decoded.id().map(EventId::as_bytes));
        let is_dead_letter = poison.is_some();
        let placed = Placed { partition, position: origin.position, fingerprint, is_dead_letter, fits };
        let admission = match self.waiting.has(partition) {
            true => Admission::Wait,
            false => self.admit(placed)?,
        };
        let waits = matches!(admission, Admission::Wait | Admission::Scan { .. });
        let is_retry = self.refusals.is_retry(origin.position);
        if waits && (is_retry || !placed.keeps_partition()) {
            return Ok(self.block_on(partition));
        }
        if admission == Admission::AlreadyThere {
            self.count_suppressed();
            if let (Some(seq), Some(cursor)) = (origin.snapshot_seq, &mut self.snapshot) {
                cursor.on_duplicate(seq);
            }
        } else if !placed.keeps_partition() {
            // An earlier routing version chose this partition, but the row was not sent there. Route it by the current
            // one.
            let origin = Origin { commit: current_routing_commit(), ..origin };
            let flow = self.deliver(layout, values, origin, committed_revision)?;
            self.rerouted_row_in_flight = flow == Flow::Next;
            return Ok(flow);
        } else {
            if let Some(Poison {
                kind: PoisonKind::TooLarge | PoisonKind::NoKey, topic: Some(topic), ..
            }) = &poison
            {
                self.watch_settings(topic);
            }
            self.rerouted_row_in_flight |= is_retry;
            let prepared = self.prepare((decoded, bytes), poison, placed, time);
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

    /// The partition of a row, with the poison if it goes there as a dead letter; `None` while that is not known.
    fn destination<'a>(
        &mut self,
        decoded: &DecodedRow<'_>,
        bytes: usize,
        Origin { position, commit, .. }: Origin,
        column: impl Fn(&str) -> Option<&'a str>,
        committed_revision: u64,
    ) -> Result<Option<(PartitionId, Option<Poison>)>, RelayError> {
        let partition_key = decoded.partition_key(position);
        let input = RoutingInput {
            key: &partition_key,
            bytes,
            has_key: decoded.has_key(),
            position: Some(position),
            invalid: decoded.error(),
            commit,
            column: |name: &str| column(name),
        };
        match self.routing.destination(&input) {
            Ok(Destination::Partition { topic, number, revision, poison })
                if revision <= committed_revision =>
            {
                let partition = self.partitions.id(topic, number);
                let partition =
                    partition.ok_or_else(|| violation(format!("topic {topic} has no partition {number}")))?;
                Ok(Some((partition, poison)))
            }
            Ok(Destination::Partition { .. }) => Ok(None),
            Ok(Destination::NewTopic(name)) => {
                let name = name.to_owned();
                self.request_topic(&name);
                Ok(None)
            }
            Err(error) => Err(self.routing_error(decoded, position, error)),
        }
    }

    /// Decodes a row and its time. A bad value makes the row invalid. A row that does not match its relation is a
    /// protocol violation.
    fn decode<'a>(
        &self,
        layout: &Layout,
        values: impl Iterator<Item = Column<'a>> + Clone,
        origin: Origin,
    ) -> Result<(DecodedRow<'a>, PgTime), RelayError> {
        let (row, error) = match layout.read(values.clone()) {
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
        Ok((DecodedRow::Invalid(row, error), time))
    }

    fn prepare<'a>(
        &self,
        (decoded, bytes): (DecodedRow<'a>, usize),
        poison: Option<Poison>,
        placed: Placed,
        time: PgTime,
    ) -> Prepared<'a> {
        let (row, poison) = match (decoded, poison) {
            (DecodedRow::Valid(row, headers), None) => return Prepared::event(row, headers, bytes, time),
            (DecodedRow::Valid(row, _), Some(poison)) => (row.into(), poison),
            (DecodedRow::Invalid(row, error), poison) => (row, poison.unwrap_or(error)),
        };
        let limit =
            self.partitions.name_of(placed.partition).map_or(0, |(topic, _)| self.routing.limit(topic));
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
        let dead_letter = prepared.dead.take();
        self.produce(prepared, Tag::new(entry, partition), Some(position))
            .map_err(|error| produce_failed(&format!("the event at {position}"), &error))?;
        if let Some(summary) = dead_letter {
            self.dead_letters.on_sent(partition, summary);
            failpoint::pass(Boundary::DeadLetterSent);
        }
        if let Some(dedup) = self.partitions.dedup(partition) {
            dedup.on_sent(position, self.in_flight.now());
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
        let now = self.now_millis;
        let mut timestamp = kafka_timestamp(prepared.time);
        let settings = self.partitions.settings(topic).copied().unwrap_or_default();
        // Kafka has no timestamps before 1970, and librdkafka treats 0 as no timestamp.
        let outside_limits = settings.is_too_old(timestamp, now) || settings.is_too_new(timestamp, now);
        if timestamp <= 0 || outside_limits || self.refusals.timestamps_were_refused(topic) {
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
        let sent = self.broker.produce(record, tag);
        // A producer accepts nothing after a refused record, so this call may be the first sign of the refusal.
        sent.inspect_err(|error| self.metrics.count_produce_error(code_of(error)))?;
        self.counts.sent += 1;
        self.in_flight.on_sent(tag.partition(), prepared.bytes, position);
        Ok(())
    }
}

pub(super) fn produce_failed(what: &str, error: &KafkaError) -> RelayError {
    kafka::error::error_of(&format!("the producer did not accept {what}"), code_of(error))
}
