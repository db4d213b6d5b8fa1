//! From a row to a record that is handed to a producer: where it goes, whether Kafka has it, what it looks like there.

use outbox::Position;
use pg_replication::pgoutput::Column;
use pg_replication::{CommitLsn, PgTime};
use rdkafka::error::KafkaError;

use super::waiting::{Placed, WaitingRow};
use super::{Delivery, Flow, code_of, violation};
use crate::dead_letter::{Arrival, Poison, PoisonKind};
use crate::event::record::{Prepared, kafka_timestamp};
use crate::event::row::{EventId, Layout, RowError};
use crate::failpoint::{self, Boundary};
use crate::kafka;
use crate::kafka::sink::{Outgoing, Tag};
use crate::progress::found::fingerprint;
use crate::progress::high_mark::Admission;
use crate::progress::ledger::EntryId;
use crate::routing::mapping::{Place, Subject, Unplaceable};
use crate::topics::partitions::PartitionId;
use crate::trouble::Trouble;

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
pub(super) fn after_everything() -> CommitLsn {
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
    ) -> Result<Flow, Trouble> {
        if self.settles_first && self.in_flight().0 > 0 {
            return Ok(Flow::Blocked);
        }
        self.settles_first = false;
        let (arrival, time) = self.read(layout, values.clone(), origin)?;
        failpoint::pass(match origin.position.index {
            0 => Boundary::AfterDecode,
            _ => Boundary::InTransaction,
        });
        let route_by = arrival.route_by();
        let column = |name: &str| {
            if layout.routes_by(name) { route_by } else { layout.text(values.clone(), name) }
        };
        let bytes = match &arrival {
            Arrival::Event(row, _) => self.style.size(row),
            Arrival::Flawed(..) => 0,
        };
        let Some((partition, poison)) = self.place(&arrival, bytes, origin, column, stored)? else {
            return Ok(Flow::Blocked);
        };
        let takes = |(topic, _)| self.mapper.takes_now(topic, bytes, arrival.has_key());
        let fits = self.partitions.place(partition).is_some_and(takes);
        let fingerprint = fingerprint(origin.position, arrival.id().map(EventId::as_bytes));
        let is_dead = poison.is_some();
        let placed = Placed { partition, position: origin.position, fingerprint, is_dead, fits };
        let admission = match self.waiting.has(partition) {
            true => Admission::Wait,
            false => self.judge(placed)?,
        };
        let waits = matches!(admission, Admission::Wait | Admission::Search { .. });
        let is_tried_again = self.refusals.is_tried_again(origin.position);
        if waits && (is_tried_again || !placed.goes_there()) {
            return Ok(self.wait_for(partition));
        }
        if admission == Admission::AlreadyThere {
            self.count_already_there();
            if let (Some(seq), Some(cursor)) = (origin.copied, &mut self.cursor) {
                cursor.already_there(seq);
            }
        } else if !placed.goes_there() {
            // A mapping before this one would have sent it there, and did not.
            let origin = Origin { commit: after_everything(), ..origin };
            let flow = self.deliver(layout, values, origin, stored)?;
            self.settles_first = flow == Flow::Next;
            return Ok(flow);
        } else {
            if let Some(Poison {
                kind: PoisonKind::TooLarge | PoisonKind::NoKey, topic: Some(topic), ..
            }) = &poison
            {
                self.was_unfit_for(topic);
            }
            self.settles_first |= is_tried_again;
            let prepared = self.prepare((arrival, bytes), poison, placed, time);
            let entry = self.enter(origin, prepared.time)?;
            if waits {
                let row = WaitingRow { placed, prepared: prepared.into_owned(), entry };
                self.waiting.set_aside(row, self.in_flight.now());
            } else {
                self.send(prepared, entry, placed)?;
            }
        }
        self.held = None;
        self.recent.on_row(origin.position, fingerprint);
        self.counts.received += 1;
        Ok(Flow::Next)
    }

    /// Where a row goes, as a dead letter where it cannot be delivered; `None` where that is not known yet.
    fn place<'a>(
        &mut self,
        arrival: &Arrival<'_>,
        bytes: usize,
        Origin { position, commit, .. }: Origin,
        column: impl Fn(&str) -> Option<&'a str>,
        stored: u64,
    ) -> Result<Option<(PartitionId, Option<Poison>)>, Trouble> {
        let spread_by = arrival.spread_by(position);
        let subject = Subject {
            key: &spread_by,
            bytes,
            has_key: arrival.has_key(),
            position: Some(position),
            flaw: arrival.flaw(),
            commit,
            column: |name: &str| column(name),
        };
        match self.mapper.place(&subject) {
            Ok(Place::Partition { topic, number, revision, poison }) if revision <= stored => {
                let partition = self.partitions.id(topic, number);
                let partition =
                    partition.ok_or_else(|| violation(format!("{topic} has no partition {number}")))?;
                Ok(Some((partition, poison)))
            }
            Ok(Place::Partition { .. }) => Ok(None),
            Ok(Place::NewTopic(name)) => {
                let name = name.to_owned();
                self.want(&name);
                Ok(None)
            }
            Err(error) => Err(self.unplaceable(arrival, position, error)),
        }
    }

    /// Reads a row, with its time. What is wrong with its values is the row's; a row of another shape than its table
    /// is the stream's.
    fn read<'a>(
        &self,
        layout: &Layout,
        values: impl Iterator<Item = Column<'a>> + Clone,
        origin: Origin,
    ) -> Result<(Arrival<'a>, PgTime), Trouble> {
        let (row, flaw) = match layout.read(values.clone()) {
            Ok(row) => {
                let time = row.occurred_at.unwrap_or(origin.commit_time);
                let headers = self.style.headers(&row, Some(origin.position), time);
                match headers {
                    Ok(headers) => return Ok((Arrival::Event(row, headers), time)),
                    Err(error) => (row.into(), Poison::from(&error)),
                }
            }
            Err(error @ RowError::ColumnCount { .. }) => return Err(violation(error.to_string())),
            Err(RowError::Oversized { .. }) => {
                let row = layout.salvage(values);
                let bytes = self.style.size_with_left_out(&row);
                (row, Poison::oversized(bytes, self.sink.max_message_bytes))
            }
            Err(error) => (layout.salvage(values), Poison::from(&error)),
        };
        let time = row.occurred_at.unwrap_or(origin.commit_time);
        Ok((Arrival::Flawed(row, flaw), time))
    }

    fn prepare<'a>(
        &self,
        (arrival, bytes): (Arrival<'a>, usize),
        poison: Option<Poison>,
        placed: Placed,
        time: PgTime,
    ) -> Prepared<'a> {
        let (row, poison) = match (arrival, poison) {
            (Arrival::Event(row, headers), None) => return Prepared::event(row, headers, bytes, time),
            (Arrival::Event(row, _), Some(poison)) => (row.into(), poison),
            (Arrival::Flawed(row, flaw), poison) => (row, poison.unwrap_or(flaw)),
        };
        let limit = self.partitions.place(placed.partition).map_or(0, |(topic, _)| self.mapper.limit(topic));
        self.dead_letter_style.record(row, poison, placed.position, time, limit)
    }

    /// A row waits for the settings to be changed that keep it from its topic, or for the broker to change its mind.
    fn unplaceable(&mut self, arrival: &Arrival<'_>, position: Position, error: Unplaceable) -> Trouble {
        if let Some(topic) = error.decided_by_settings_of() {
            self.was_unfit_for(topic);
        }
        if error.is_refusal() {
            self.refusals.waits(position);
        }
        arrival.trouble(error, position)
    }

    /// The ledger's entry for a row, which is done when the row is in Kafka.
    fn enter(&mut self, origin: Origin, time: PgTime) -> Result<EntryId, Trouble> {
        let Some(seq) = origin.copied else { return Ok(self.ledger.row()?) };
        let entry = self.ledger.lone_row(self.before_start(), time, self.start)?;
        self.cursor.iter_mut().for_each(|cursor| cursor.sent(entry, seq));
        Ok(entry)
    }

    pub(super) fn send(
        &mut self,
        mut prepared: Prepared<'_>,
        entry: EntryId,
        placed: Placed,
    ) -> Result<(), Trouble> {
        let Placed { partition, position, .. } = placed;
        let dead = prepared.dead.take();
        self.hand_over(prepared, Tag::new(entry, partition), Some(position))
            .map_err(|error| not_accepted(&format!("the event at {position}"), &error))?;
        if let Some(note) = dead {
            self.dead_letters.sent(partition, note);
            failpoint::pass(Boundary::DeadLetterSent);
        }
        if let Some(mark) = self.partitions.mark(partition) {
            mark.sent(position, self.in_flight.now());
        }
        Ok(())
    }

    pub(super) fn count_already_there(&mut self) {
        self.counts.suppressed += 1;
        self.metrics.duplicates_suppressed_total.inc();
    }

    pub(super) fn hand_over(
        &mut self,
        prepared: Prepared<'_>,
        tag: Tag,
        position: Option<Position>,
    ) -> Result<(), KafkaError> {
        let Some((topic, number)) = self.partitions.place(tag.partition()) else { return Ok(()) };
        let now = self.clock;
        let mut timestamp = kafka_timestamp(prepared.time);
        let settings = self.partitions.settings(topic).copied().unwrap_or_default();
        // Kafka has no time before 1970, and librdkafka takes 0 for none.
        let unfit = settings.is_too_old(timestamp, now) || settings.is_too_new(timestamp, now);
        if timestamp <= 0 || unfit || self.refusals.were_of_timestamps(topic) {
            timestamp = now;
            self.metrics.timestamps_replaced_total.inc();
        }
        let record = Outgoing {
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
        self.in_flight.sent(tag.partition(), prepared.bytes, position);
        Ok(())
    }
}

pub(super) fn not_accepted(what: &str, error: &KafkaError) -> Trouble {
    kafka::error::trouble(&format!("the producer did not take {what}"), code_of(error))
}
