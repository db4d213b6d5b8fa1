//! Messages of the stream, and rows that were in the table before it: which row it is, and where it stands.

use std::rc::Rc;

use pg_replication::pgoutput::{Insert, Message, Relation};
use pg_replication::{CommitLsn, EndLsn, Lsn, MemoryLimit, PgTime};

use super::dispatch::Origin;
use super::{Delivery, Flow, StreamForm, violation};
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
    /// Inserts of the outbox table seen so far: the index of the next row's position.
    index: u64,
    /// It lies before the confirmed LSN: Kafka has it.
    delivered: bool,
}

/// What is needed of large rows and messages of the stream: values of the outbox that fit into a record. Bytes take two
/// digits each in text form.
pub fn memory_limit(table: &OutboxTable, mappings: &RoutingHistory, form: StreamForm) -> MemoryLimit {
    let (table, mappings) = (table.clone(), mappings.clone());
    MemoryLimit {
        largest_value: match form {
            StreamForm::Binary => mappings.largest_value(),
            StreamForm::Text { largest_value } => 2 * largest_value + HEX_PREFIX.len(),
        },
        is_wanted: Box::new(move |relation, column| {
            table.is(relation) && (is_read(column.name) || mappings.read(column.name))
        }),
    }
}

/// Which table of the stream is the outbox.
#[derive(Clone, Debug)]
pub struct OutboxTable {
    /// Its name.
    pub name: TableName,
    /// OID of the table that the checkpoint is about: its rows count under whatever name it had when they were written.
    pub oid: Option<u32>,
}

impl OutboxTable {
    fn is(&self, relation: &Relation<'_>) -> bool {
        let named = relation.namespace == self.name.schema && relation.name == self.name.table;
        named || self.oid == Some(relation.oid)
    }
}

impl Delivery {
    /// Deals with one pgoutput message. A row that cannot be delivered becomes a dead letter; where it may not, it is
    /// [`ErrorKind::PoisonRow`]: nothing has changed then, and what came before it goes on.
    /// `stored` is the revision of the mapping in the committed checkpoint.
    pub fn on_message(&mut self, data: &[u8], stored: u64) -> Result<Flow, RelayError> {
        match Message::parse(data).map_err(|error| violation(error.to_string()))? {
            Message::Begin(begin) => return self.on_begin(begin.final_lsn, begin.commit_time),
            Message::Insert(insert) => return self.on_insert(&insert, stored),
            Message::Commit(commit) => self.on_commit(commit.end_lsn)?,
            Message::Relation(relation) => self.on_relation(&relation),
            // The publication has inserts only; what else it may get some day is not an event.
            Message::Update(_) | Message::Delete(_) | Message::Truncate(_) => {}
            Message::Type(announced) => {
                let kind = ColumnType::named(announced.namespace, announced.name);
                self.types.insert(announced.oid, kind);
            }
            Message::Origin(_) => {}
            // Nothing to confirm: the keepalive behind it, or the Commit around it, has the place in the ledger.
            Message::Logical(message) => self.status.on_stream_message(message.prefix, message.content),
        }
        Ok(Flow::Next)
    }

    /// A keepalive: everything before `end` has been sent.
    pub fn on_keepalive(&mut self, end: EndLsn) {
        self.strays.on_passed(end);
        self.ledger.keepalive(end);
    }

    /// Deals with a row that was in the table before the slot. Such rows come before anything of the stream, in the
    /// order of `seq`. Their position is the byte before the slot's beginning, where no commit can be, with `seq` as
    /// index, so they keep the order of positions. A former process may have sent any of them.
    pub fn on_snapshot_row(
        &mut self,
        layout: &Layout,
        row: &StoredRow,
        stored: u64,
    ) -> Result<Flow, RelayError> {
        let (seq, commit) = (row.seq()?, self.before_start());
        let position = self.lineage.position(commit, seq.cast_unsigned());
        let origin = Origin { position, commit, commit_time: PgTime::now(), copied: Some(seq) };
        self.deliver(layout, row.values(), origin, stored)
    }

    /// While rows are copied: up to which `seq` they are all in Kafka.
    pub fn snapshot_cursor(&mut self) -> Option<i64> {
        let first_unconfirmed = self.ledger.first_unconfirmed();
        self.snapshot.as_mut().map(|cursor| cursor.advance(first_unconfirmed))
    }

    /// All rows to copy were dealt with and are in Kafka: the stream can begin.
    pub fn finish_snapshot(&mut self) {
        self.snapshot = None;
    }

    fn on_begin(&mut self, commit: CommitLsn, commit_time: PgTime) -> Result<Flow, RelayError> {
        // Rows before the horizon may have been sent, and are judged by where they went.
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

    fn on_insert(&mut self, insert: &Insert<'_>, stored: u64) -> Result<Flow, RelayError> {
        let transaction = self.transaction.as_ref().ok_or(Inconsistent::NoTransaction)?;
        let layout = match self.layouts.get(&insert.relation) {
            Some(Some(layout)) => layout.clone(),
            Some(None) => return Ok(Flow::Next),
            None => return Err(violation(format!("a row of unannounced relation {}", insert.relation))),
        };
        if transaction.delivered {
            self.counts.received += 1;
            self.counts.suppressed += 1;
            return Ok(Flow::Next);
        }
        let (commit, commit_time) = (transaction.commit, transaction.commit_time);
        let layout = layout.map_err(|error| {
            // Where the log has it so, whatever the table looks like by now.
            let what = format!("in the transaction whose commit is at {}: {error}", commit.lsn());
            RelayError::new(ErrorKind::TableUnsuitable, what)
        })?;
        if self.form == StreamForm::Binary && layout.needs_text() {
            let what = "the outbox table has a column whose type is read in text form now";
            return Err(RelayError::new(ErrorKind::StreamFormChanged, what));
        }
        let position = self.lineage.position(commit, transaction.index);
        let origin = Origin { position, commit, commit_time, copied: None };
        let flow = self.deliver(&layout, insert.tuple.columns(), origin, stored)?;
        if flow == Flow::Next
            && let Some(transaction) = &mut self.transaction
        {
            transaction.index += 1;
        }
        Ok(flow)
    }

    /// A commit record needs more than one byte, and begins at a multiple of eight.
    pub(super) fn before_start(&self) -> CommitLsn {
        CommitLsn::new(Lsn::from(self.start.lsn().as_u64().saturating_sub(1)))
    }
}
