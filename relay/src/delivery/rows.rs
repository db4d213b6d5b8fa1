//! From a row to a record that is handed to a producer: where it goes, whether Kafka has it, what it looks like there.

use std::time::Instant;

use outbox::Position;
use pg_replication::pgoutput::Column;
use pg_replication::{CommitLsn, PgTime};
use rdkafka::error::KafkaError;

use super::{Delivery, Flow, code_of, violation};
use crate::dead_letter::{Arrival, Poison, PoisonKind};
use crate::event::record::{Prepared, kafka_timestamp};
use crate::event::row::{Layout, RowError};
use crate::failpoint::{self, Boundary};
use crate::kafka;
use crate::kafka::sink::{Outgoing, Tag};
use crate::progress::found::fingerprint;
use crate::progress::high_mark::Admission;
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
    /// Sends a row, or drops it because Kafka has it; [`Flow::Blocked`] where that is not known yet.
    pub(super) fn deliver<'a>(
        &mut self,
        layout: &Layout,
        values: impl Iterator<Item = Column<'a>> + Clone,
        origin: Origin,
        stored: u64,
    ) -> Result<Flow, Trouble> {
        if self.settles_first && self.in_flight.events > 0 {
            return Ok(Flow::Blocked);
        }
        self.settles_first = false;
        let (arrival, time) = self.read(layout, values.clone(), origin)?;
        failpoint::pass(match origin.position.index {
            0 => Boundary::AfterDecode,
            _ => Boundary::InTransaction,
        });
        let spread_by = arrival.spread_by(origin.position);
        let (bytes, route_by) = match &arrival {
            Arrival::Event(row, _) => (self.style.size(row), row.route_by),
            Arrival::Flawed(row, _) => (0, row.route_by),
        };
        let subject = Subject {
            key: &spread_by,
            bytes,
            has_key: arrival.has_key(),
            position: Some(origin.position),
            flaw: arrival.flaw(),
            commit: origin.commit,
            column: |name: &str| {
                if layout.routes_by(name) { route_by } else { layout.text(values.clone(), name) }
            },
        };
        let (topic, number, poison) = match self.mapper.place(&subject) {
            Ok(Place::Partition { topic, number, revision, poison }) if revision <= stored => {
                (topic, number, poison)
            }
            Ok(Place::Partition { .. }) => return Ok(Flow::Blocked),
            Ok(Place::NewTopic(name)) => {
                let name = name.to_owned();
                self.want(&name);
                return Ok(Flow::Blocked);
            }
            Err(error) => return Err(self.unplaceable(&arrival, origin.position, error)),
        };
        let Some(partition) = self.partitions.id(topic, number) else {
            return Err(violation(format!("{topic} has no partition {number}")));
        };
        if !self.partitions.is_inspected(partition) {
            return Ok(self.wait_for(partition));
        }
        let limit = self.partitions.place(partition).map_or(0, |(topic, _)| self.mapper.limit(topic));
        let takes = |(topic, _)| self.mapper.takes_now(topic, bytes, arrival.has_key());
        let fits = self.partitions.place(partition).is_some_and(takes);
        let id = match &arrival {
            Arrival::Event(row, _) => Some(row.id.as_bytes()),
            Arrival::Flawed(row, _) => row.id.as_ref().map(|id| id.as_bytes()),
        };
        let fingerprint = fingerprint(origin.position, id);
        let Some(mark) = self.partitions.mark(partition) else { return Ok(Flow::Blocked) };
        let mut admission = mark.admit(origin.position, self.lineage.holds(origin.position));
        if admission == Admission::AlreadyThere && self.partitions.lacks(partition, origin.position, id) {
            match poison {
                // Kafka may have refused it before it became poison, while later dead letters were taken.
                Some(_) => admission = Admission::Send,
                // It went where a later mapping sends it.
                None if !fits => {}
                None => return Err(self.not_ours(partition, origin.position)),
            }
        }
        match admission {
            Admission::Send => {
                if poison.is_none() && !fits {
                    // A mapping before this one would have sent it there, and did not.
                    let origin = Origin { commit: after_everything(), ..origin };
                    let flow = self.deliver(layout, values, origin, stored)?;
                    self.settles_first = flow == Flow::Next;
                    return Ok(flow);
                }
                if let Some(Poison {
                    kind: PoisonKind::TooLarge | PoisonKind::NoKey,
                    topic: Some(topic),
                    ..
                }) = &poison
                {
                    self.was_unfit_for(topic);
                }
                self.settles_first |= self.refusals.is_tried_again(origin.position);
                let prepared = self.prepare((arrival, bytes), poison, origin.position, time, limit);
                self.send(prepared, origin, partition)?;
            }
            Admission::AlreadyThere => {
                self.counts.suppressed += 1;
                self.metrics.duplicates_suppressed_total.inc();
                if let (Some(seq), Some(cursor)) = (origin.copied, &mut self.cursor) {
                    cursor.already_there(seq);
                }
            }
            Admission::Search { from } => {
                let topic = self.partitions.place(partition).map_or("", |(topic, _)| topic);
                let min_in_sync = self.partitions.settings(topic).and_then(|s| s.min_in_sync_replicas);
                self.jobs.search(partition, topic, number, from, min_in_sync);
                return Ok(self.wait_for(partition));
            }
            Admission::Wait => return Ok(self.wait_for(partition)),
        }
        self.held = None;
        self.recent.on_row(origin.position, fingerprint);
        self.counts.received += 1;
        Ok(Flow::Next)
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
        position: Position,
        time: PgTime,
        limit: usize,
    ) -> Prepared<'a> {
        let (row, poison) = match (arrival, poison) {
            (Arrival::Event(row, headers), None) => return Prepared::event(row, headers, bytes, time),
            (Arrival::Event(row, _), Some(poison)) => (row.into(), poison),
            (Arrival::Flawed(row, flaw), poison) => (row, poison.unwrap_or(flaw)),
        };
        self.dead_letter_style.record(row, poison, position, time, limit)
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

    fn send(
        &mut self,
        mut prepared: Prepared<'_>,
        origin: Origin,
        partition: PartitionId,
    ) -> Result<(), Trouble> {
        let position = origin.position;
        let entry = match origin.copied {
            None => self.ledger.row()?,
            Some(seq) => {
                let entry = self.ledger.lone_row(self.before_start(), prepared.time, self.start)?;
                self.cursor.iter_mut().for_each(|cursor| cursor.sent(entry, seq));
                entry
            }
        };
        let dead = prepared.dead.take();
        self.hand_over(prepared, Tag::new(entry, partition), Some(position))
            .map_err(|error| not_accepted(&format!("the event at {position}"), &error))?;
        if let Some(note) = dead {
            self.dead_letters.sent(partition, note);
            failpoint::pass(Boundary::DeadLetterSent);
        }
        if let Some(mark) = self.partitions.mark(partition) {
            mark.sent(position, Instant::now());
        }
        Ok(())
    }

    pub(super) fn hand_over(
        &mut self,
        prepared: Prepared<'_>,
        tag: Tag,
        position: Option<Position>,
    ) -> Result<(), KafkaError> {
        let Some((topic, number)) = self.partitions.place(tag.partition()) else { return Ok(()) };
        let now = kafka_timestamp(PgTime::now());
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
