//! Stream messages and rows of the initial snapshot: decodes them and assigns each row its position.

use std::rc::Rc;

use pg_replication::pgoutput::{Insert, Message, Relation};
use pg_replication::{CommitLsn, EndLsn, Lsn, MemoryLimit, PgTime};

use super::dispatch::Origin;
use super::{Broker, Delivery, Flow, StreamForm, violation};
use crate::config::TableName;
use crate::error::{ErrorKind, RelayError};
use crate::event::column_type::ColumnType;
use crate::event::row::{Layout, is_read};
use crate::event::value::HEX_PREFIX;
use crate::failpoint::{self, Boundary};
use crate::postgres::backfill::StoredRow;
use crate::progress::ledger::Inconsistent;
use crate::routing::mapping::RoutingHistory;

/// The transaction that is being read.
pub(super) struct Transaction {
    commit: CommitLsn,
    commit_time: PgTime,
    /// The number of inserts into the outbox table so far, which is the index in the next row's position.
    index: u64,
    /// The transaction lies before the confirmed LSN, so Kafka has it.
    delivered: bool,
}

/// Which values of large rows and messages to keep in memory: those of the outbox that fit into a record. In text form
/// a byte of a bytea takes two digits.
pub fn memory_limit(table: &OutboxTable, mappings: &RoutingHistory, form: StreamForm) -> MemoryLimit {
    let (table, mappings) = (table.clone(), mappings.clone());
    MemoryLimit {
        largest_value: match form {
            StreamForm::Binary => mappings.largest_value(),
            StreamForm::Text { largest_value } => 2 * largest_value + HEX_PREFIX.len(),
        },
        is_wanted: Box::new(move |relation, column| {
            table.is(relation) && (is_read(column.name) || mappings.routes_by(column.name))
        }),
    }
}

/// Identifies the outbox table in the stream.
#[derive(Clone, Debug)]
pub struct OutboxTable {
    /// The table's name.
    pub name: TableName,
    /// The OID of the table that the checkpoint belongs to. Its rows are delivered even if they were written while the
    /// table had another name.
    pub oid: Option<u32>,
}

impl OutboxTable {
    fn is(&self, relation: &Relation<'_>) -> bool {
        let has_name = relation.namespace == self.name.schema && relation.name == self.name.table;
        has_name || self.oid == Some(relation.oid)
    }
}

impl<B: Broker> Delivery<B> {
    /// Processes one pgoutput message. A row that cannot be delivered becomes a dead letter. If dead letters are
    /// disabled, the result is [`ErrorKind::PoisonRow`]: no state has changed, and delivery of earlier rows continues.
    /// `committed_revision` is the routing revision in the committed checkpoint.
    pub fn on_message(&mut self, data: &[u8], committed_revision: u64) -> Result<Flow, RelayError> {
        match Message::parse(data).map_err(|error| violation(error.to_string()))? {
            Message::Begin(begin) => return self.on_begin(begin.final_lsn, begin.commit_time),
            Message::Insert(insert) => return self.on_insert(&insert, committed_revision),
            Message::Commit(commit) => self.on_commit(commit.end_lsn)?,
            Message::Relation(relation) => self.on_relation(&relation),
            // The publication publishes inserts only. Anything else it may publish later is not an event.
            Message::Update(_) | Message::Delete(_) | Message::Truncate(_) => {}
            Message::Type(announced) => {
                let kind = ColumnType::named(announced.namespace, announced.name);
                self.types.insert(announced.oid, kind);
            }
            Message::Origin(_) => {}
            // Needs no ledger entry: the following keepalive, or the surrounding Commit, has one.
            Message::Logical(message) => self.status.on_stream_message(message.prefix, message.content),
        }
        Ok(Flow::Next)
    }

    /// A keepalive: the server has sent everything before `end`.
    pub fn on_keepalive(&mut self, end: EndLsn) {
        self.strays.on_passed(end);
        self.ledger.keepalive(end);
    }

    /// Processes a row of the initial snapshot. These rows come before the stream, in the order of `seq`. Their
    /// position is the byte before the slot's start, where no commit can be, with `seq` as the index, so positions stay
    /// in order. An earlier process may have sent any of them.
    pub fn on_snapshot_row(
        &mut self,
        layout: &Layout,
        row: &StoredRow,
        committed_revision: u64,
    ) -> Result<Flow, RelayError> {
        let (seq, commit) = (row.seq()?, self.before_start());
        let position = self.lineage.position(commit, seq.cast_unsigned());
        let origin = Origin { position, commit, commit_time: PgTime::now(), snapshot_seq: Some(seq) };
        self.deliver(layout, row.values(), origin, committed_revision)
    }

    /// During the initial snapshot: all its rows up to this `seq` are in Kafka.
    pub fn snapshot_cursor(&mut self) -> Option<i64> {
        let first_unconfirmed = self.ledger.first_unconfirmed();
        self.snapshot.as_mut().map(|cursor| cursor.advance(first_unconfirmed))
    }

    /// All rows of the snapshot are in Kafka: the stream can be read.
    pub fn finish_snapshot(&mut self) {
        self.snapshot = None;
    }

    fn on_begin(&mut self, commit: CommitLsn, commit_time: PgTime) -> Result<Flow, RelayError> {
        // Rows before the horizon may have been sent, so they are routed to the partitions they would have gone to
        // then.
        if !self.lineage.end().covers(commit) {
            self.apply_growth()?;
            if !self.discovery.grown.is_empty() {
                return Ok(Flow::Blocked);
            }
        }
        self.ledger.begin(commit, commit_time)?;
        self.last_commit = commit;
        let delivered = self.start.covers(commit);
        self.transaction = Some(Transaction { commit, commit_time, index: 0, delivered });
        Ok(Flow::Next)
    }

    fn on_commit(&mut self, end: EndLsn) -> Result<(), RelayError> {
        failpoint::pass(Boundary::AllSent);
        self.transaction = None;
        self.strays.on_passed(end);
        let completed = self.ledger.commit(end)?;
        self.observe_latency(completed);
        Ok(())
    }

    fn on_relation(&mut self, relation: &Relation<'_>) {
        let is_outbox = self.table.is(relation);
        // A type that is not announced is PostgreSQL's own.
        let kind = |oid| self.types.get(&oid).cloned().unwrap_or_else(|| ColumnType::built_in(oid));
        let columns = relation.columns().map(|column| (column.name, kind(column.type_oid)));
        let layout = is_outbox.then(|| {
            let layout = Layout::new(columns, self.routing.by_field())?;
            Ok(Rc::new(match self.form {
                StreamForm::Binary => layout,
                StreamForm::Text { largest_value } => layout.in_text_form(largest_value),
            }))
        });
        self.layouts.insert(relation.oid, layout);
    }

    fn on_insert(&mut self, insert: &Insert<'_>, committed_revision: u64) -> Result<Flow, RelayError> {
        let transaction = self.transaction.as_ref().ok_or(Inconsistent::NoTransaction)?;
        let layout = match self.layouts.get(&insert.relation) {
            Some(Some(layout)) => layout.clone(),
            Some(None) => return Ok(Flow::Next),
            None => {
                let what = format!("a row arrived before its relation with OID {}", insert.relation);
                return Err(violation(what));
            }
        };
        if transaction.delivered {
            self.counts.received += 1;
            self.counts.suppressed += 1;
            return Ok(Flow::Next);
        }
        let (commit, commit_time) = (transaction.commit, transaction.commit_time);
        let layout = layout.map_err(|error| {
            // Name the transaction: the table may look different by now.
            let what = format!("in the transaction whose commit is at {}: {error}", commit.lsn());
            RelayError::new(ErrorKind::TableUnsuitable, what)
        })?;
        if self.form == StreamForm::Binary && layout.needs_text() {
            let what = "a column of the outbox table has a type that the relay reads in text form";
            return Err(RelayError::new(ErrorKind::StreamFormChanged, what));
        }
        let position = self.lineage.position(commit, transaction.index);
        let origin = Origin { position, commit, commit_time, snapshot_seq: None };
        let flow = self.deliver(&layout, insert.tuple.columns(), origin, committed_revision)?;
        if flow == Flow::Next
            && let Some(transaction) = &mut self.transaction
        {
            transaction.index += 1;
        }
        Ok(flow)
    }

    /// The byte before the slot's start. No commit can be there: a commit record starts at a multiple of eight bytes
    /// and is longer than one byte.
    pub(super) fn before_start(&self) -> CommitLsn {
        CommitLsn::new(Lsn::from(self.start.lsn().as_u64().saturating_sub(1)))
    }
}
