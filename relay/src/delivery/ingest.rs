//! Stream messages and rows of the initial snapshot: decodes them and assigns each row its origin.

use std::collections::HashMap;
use std::rc::Rc;

use outbox::Position;
use pg_replication::pgoutput::{Begin, Insert, Relation, Type};
use pg_replication::{CommitLsn, EndLsn, MemoryLimit, PgTime};

use super::source_progress::SourceProgress;
use super::violation;
use crate::config::TableName;
use crate::error::{ErrorKind, RefillCause, RelayError};
use crate::event::column_type::ColumnType;
use crate::event::row::{Layout, RowError, is_read};
use crate::event::value::HEX_PREFIX;
use crate::progress::ledger::Inconsistent;
use crate::progress::snapshot_cursor::Seq;
use crate::routing::mapping::RoutingHistory;

/// The format of values in the stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StreamForm {
    /// Binary, for the types that have a binary format.
    Binary,
    Text {
        /// The largest value that a record may have.
        largest_value: usize,
    },
}

#[derive(Clone, Copy)]
pub(super) struct Origin {
    pub(super) position: Position,
    pub(super) commit: CommitLsn,
    pub(super) commit_time: PgTime,
    pub(super) read_from: ReadFrom,
}

/// Where a row was read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ReadFrom {
    /// In the stream's open transaction.
    Stream,
    /// In the table: a row of the initial snapshot, or of the refill with this cause.
    Table(Option<RefillCause>),
}

impl ReadFrom {
    /// The cause of the refill that the row belongs to.
    pub(super) fn refill(self) -> Option<RefillCause> {
        match self {
            ReadFrom::Stream => None,
            ReadFrom::Table(refill) => refill,
        }
    }
}

impl Origin {
    /// The origin of a row from before the slot: of the initial snapshot, or of the refill with this cause. These rows
    /// come before the stream, in the order of `seq`. Their position is the byte before the slot's start, where no
    /// commit can be, with `seq` as the index, so positions stay in order.
    pub(super) fn in_snapshot(seq: Seq, refill: Option<RefillCause>, progress: &SourceProgress) -> Origin {
        let commit = progress.before_start();
        let position = progress.lineage.position(commit, seq.as_index());
        Origin { position, commit, commit_time: PgTime::now(), read_from: ReadFrom::Table(refill) }
    }

    /// The `seq` of a row that was read in the table.
    pub(super) fn seq(&self) -> Option<Seq> {
        (self.read_from != ReadFrom::Stream).then(|| Seq::from_index(self.position.index))
    }
}

pub(super) enum Inserted {
    /// Into another table.
    Elsewhere,
    /// In a transaction before the confirmed LSN, so Kafka has it.
    Delivered,
    Row(Rc<Layout>, Origin),
}

/// The transaction that is being read.
struct Transaction {
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

pub(super) struct Ingest {
    table: OutboxTable,
    form: StreamForm,
    /// By relation OID; `None` for a table that is not the outbox. A layout error is reported only when a row of that
    /// relation has to be delivered.
    layouts: HashMap<u32, Option<Result<Rc<Layout>, RowError>>>,
    /// Types announced in the stream, by OID.
    types: HashMap<u32, ColumnType>,
    /// The commit LSN of the last transaction that began in the stream.
    last_commit: CommitLsn,
    transaction: Option<Transaction>,
}

impl Ingest {
    pub(super) fn new(table: OutboxTable, form: StreamForm) -> Ingest {
        Ingest {
            table,
            form,
            layouts: HashMap::new(),
            types: HashMap::new(),
            last_commit: CommitLsn::default(),
            transaction: None,
        }
    }

    /// Whether a transaction has been read only in part.
    pub(super) fn in_transaction(&self) -> bool {
        self.transaction.is_some()
    }

    /// An LSN behind the last commit: no row committed at or after it was read from the stream.
    pub(super) fn behind_last(&self) -> EndLsn {
        EndLsn::just_after(self.last_commit)
    }

    /// The commit LSN of the last transaction that began in the stream.
    pub(super) fn last_commit(&self) -> CommitLsn {
        self.last_commit
    }

    pub(super) fn on_begin(&mut self, begin: &Begin, progress: &SourceProgress) {
        let (commit, commit_time) = (begin.final_lsn, begin.commit_time);
        let delivered = progress.is_before_start(commit);
        self.last_commit = commit;
        self.transaction = Some(Transaction { commit, commit_time, index: 0, delivered });
    }

    pub(super) fn on_commit(&mut self) {
        self.transaction = None;
    }

    pub(super) fn on_type(&mut self, announced: &Type<'_>) {
        let kind = ColumnType::named(announced.namespace, announced.name);
        self.types.insert(announced.oid, kind);
    }

    /// `by_field` is the column that the routing reads.
    pub(super) fn on_relation(&mut self, relation: &Relation<'_>, by_field: &str) {
        let is_outbox = self.table.is(relation);
        // A type that is not announced is PostgreSQL's own.
        let kind = |oid| self.types.get(&oid).cloned().unwrap_or_else(|| ColumnType::built_in(oid));
        let columns = relation.columns().map(|column| (column.name, kind(column.type_oid)));
        let layout = is_outbox.then(|| {
            let layout = Layout::new(columns, by_field)?;
            Ok(Rc::new(match self.form {
                StreamForm::Binary => layout,
                StreamForm::Text { largest_value } => layout.in_text_form(largest_value),
            }))
        });
        self.layouts.insert(relation.oid, layout);
    }

    pub(super) fn on_insert(
        &self,
        insert: &Insert<'_>,
        progress: &SourceProgress,
    ) -> Result<Inserted, RelayError> {
        let transaction = self.transaction.as_ref().ok_or(Inconsistent::NoTransaction)?;
        let layout = match self.layouts.get(&insert.relation) {
            Some(Some(layout)) => layout.clone(),
            Some(None) => return Ok(Inserted::Elsewhere),
            None => {
                let what = format!("a row arrived before its relation with OID {}", insert.relation);
                return Err(violation(what));
            }
        };
        if transaction.delivered {
            return Ok(Inserted::Delivered);
        }
        let Transaction { commit, commit_time, index, .. } = *transaction;
        let layout = layout.map_err(|error| {
            // Name the transaction: the table may look different by now.
            let what = format!("in the transaction whose commit is at {}: {error}", commit.lsn());
            RelayError::new(ErrorKind::TableUnsuitable, what)
        })?;
        if self.form == StreamForm::Binary && layout.needs_text() {
            let what = "a column of the outbox table has a type that the relay reads in text form";
            return Err(RelayError::new(ErrorKind::StreamFormChanged, what));
        }
        let position = progress.lineage.position(commit, index);
        Ok(Inserted::Row(layout, Origin { position, commit, commit_time, read_from: ReadFrom::Stream }))
    }

    /// The row of the last insert was processed.
    pub(super) fn on_row_processed(&mut self) {
        self.transaction.iter_mut().for_each(|transaction| transaction.index += 1);
    }
}
