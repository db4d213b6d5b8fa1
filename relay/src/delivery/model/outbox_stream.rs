//! The stream of an outbox table, as pgoutput sends it.

use outbox::Position;
use pg_replication::{CommitLsn, EndLsn};

use crate::testing::{commit, end};

const TIMELINE: u32 = 1;
const RELATION: u32 = 7;
/// `text` in `pg_type.dat`.
const TEXT: u32 = 25;

#[derive(Clone, Debug)]
pub(super) struct Row {
    pub(super) aggregate_type: &'static str,
    pub(super) key: Option<String>,
    pub(super) payload_bytes: usize,
}

pub(super) struct Transaction {
    commit: u64,
    rows: Vec<Row>,
}

impl Transaction {
    /// The transaction that commits as number `number` of the stream.
    pub(super) fn new(number: usize, rows: Vec<Row>) -> Transaction {
        Transaction { commit: commit_of(number), rows }
    }

    pub(super) fn commit(&self) -> CommitLsn {
        commit(self.commit)
    }

    pub(super) fn end(&self) -> EndLsn {
        end(self.commit + 8)
    }

    /// An LSN after the transaction, and before the next one.
    pub(super) fn after(&self) -> EndLsn {
        end(self.commit + 48)
    }

    /// The rows with their positions.
    pub(super) fn rows(&self) -> impl Iterator<Item = (Position, &Row)> {
        let position = |index| Position { timeline: TIMELINE, commit_lsn: self.commit, index };
        self.rows.iter().enumerate().map(move |(index, row)| (position(index as u64), row))
    }

    /// Begin, the rows, and Commit; `None` after them.
    pub(super) fn message(&self, index: usize) -> Option<Vec<u8>> {
        match index.checked_sub(1) {
            None => Some(numbers(b"B", &[self.commit, 0], &9_u32.to_be_bytes())),
            Some(row) if row < self.rows.len() => Some(self.insert(row)),
            Some(row) if row == self.rows.len() => {
                Some(numbers(b"C\0", &[self.commit, self.commit + 8, 0], &[]))
            }
            Some(_) => None,
        }
    }

    fn insert(&self, index: usize) -> Vec<u8> {
        let Row { aggregate_type, key, payload_bytes } = &self.rows[index];
        let (id, payload) = (format!("{}-{index}", self.commit), "x".repeat(*payload_bytes));
        let values = [Some(&*id), Some(aggregate_type), key.as_deref(), Some("type"), Some(&payload)];
        let mut out = [b"I", &RELATION.to_be_bytes()[..], b"N", &5_u16.to_be_bytes()].concat();
        for value in values {
            match value {
                Some(text) => {
                    out.push(b'b');
                    out.extend((text.len() as u32).to_be_bytes());
                    out.extend(text.as_bytes());
                }
                None => out.push(b'n'),
            }
        }
        out
    }
}

/// The Relation message of `public.outbox`.
pub(super) fn relation() -> Vec<u8> {
    let columns = ["id", "aggregatetype", "aggregateid", "type", "payload"];
    let mut out = [b"R", &RELATION.to_be_bytes()[..], b"public\0outbox\0d", &5_u16.to_be_bytes()].concat();
    for name in columns {
        out.push(0);
        out.extend(name.as_bytes());
        out.push(0);
        out.extend(TEXT.to_be_bytes());
        out.extend((-1_i32).to_be_bytes());
    }
    out
}

/// Covers the transactions before number `number`.
pub(super) fn end_before(number: usize) -> EndLsn {
    end(commit_of(number))
}

fn commit_of(number: usize) -> u64 {
    96 * (number as u64 + 1)
}

fn numbers(tag: &[u8], numbers: &[u64], tail: &[u8]) -> Vec<u8> {
    let numbers: Vec<u8> = numbers.iter().flat_map(|number| number.to_be_bytes()).collect();
    [tag, &numbers, tail].concat()
}
