//! Decodes pgoutput, the logical decoding plugin built into PostgreSQL, protocol version 1.
//!
//! The decoder borrows from the message, allocates nothing, keeps no state and never panics. Everything is
//! checked when a message is parsed, so that reading its columns afterwards cannot fail. Layouts: PostgreSQL
//! documentation, "Logical Replication Message Formats".
//!
//! ```
//! use pg_replication::pgoutput::{Column, Message};
//!
//! let insert = b"I\0\0\x40\x01N\0\x02t\0\0\0\x05applen";
//! if let Message::Insert(insert) = Message::parse(insert)? {
//!     let columns: Vec<Column> = insert.tuple.columns().collect();
//!     assert_eq!(columns, [Column::Text(b"apple"), Column::Null]);
//! }
//! # Ok::<(), pg_replication::pgoutput::DecodeError>(())
//! ```

mod relation;
mod tuple;

pub use relation::{Relation, RelationColumn, RelationColumns, ReplicaIdentity};
pub use tuple::{Column, Columns, Tuple};
pub(crate) use tuple::{OVERSIZED, UNKNOWN_COLUMN};

use crate::wire::{Reader, SHORT, WireError};
use crate::{CommitLsn, EndLsn, Lsn, PgTime};

/// The bytes are not a pgoutput message of protocol version 1.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DecodeError {
    /// A kind of message that this protocol version does not have.
    #[error("pgoutput sent a message of unknown kind {tag:#04x}; the stream must not be read any further")]
    UnknownTag {
        /// The first byte of the message.
        tag: u8,
    },
    /// A message that contradicts its layout.
    #[error("pgoutput sent a broken message: {message} {what}; the stream must not be read any further")]
    Malformed {
        /// The kind of message.
        message: &'static str,
        /// What is wrong with it.
        what: &'static str,
    },
}

/// One pgoutput message, borrowed from the bytes it was parsed from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Message<'a> {
    /// A committed transaction begins.
    Begin(Begin),
    /// The transaction ends.
    Commit(Commit),
    /// The columns of a table from here on; sent before its first row and again after it changed.
    Relation(Relation<'a>),
    /// A row was inserted.
    Insert(Insert<'a>),
    /// A row was updated.
    Update(Update<'a>),
    /// A row was deleted.
    Delete(Delete<'a>),
    /// Tables were emptied.
    Truncate(Truncate<'a>),
    /// The transaction came to this server by replication.
    Origin(Origin<'a>),
    /// A data type that is not built in, sent before a Relation that uses it.
    Type(Type<'a>),
    /// The content of a `pg_logical_emit_message` call.
    Logical(LogicalMessage<'a>),
}

/// The beginning of a transaction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Begin {
    /// Where the transaction's commit record begins: its position.
    pub final_lsn: CommitLsn,
    /// When it was committed, by the server's clock.
    pub commit_time: PgTime,
    /// The transaction ID.
    pub xid: u32,
}

/// The end of a transaction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Commit {
    /// The same LSN as in its Begin.
    pub commit_lsn: CommitLsn,
    /// Where its commit record ends: what to confirm once the transaction is delivered.
    pub end_lsn: EndLsn,
    /// When it was committed, by the server's clock.
    pub commit_time: PgTime,
}

/// An inserted row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Insert<'a> {
    /// The table, as in its [`Relation`].
    pub relation: u32,
    /// The new row.
    pub tuple: Tuple<'a>,
}

/// An updated row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Update<'a> {
    /// The table, as in its [`Relation`].
    pub relation: u32,
    /// The old row, or its key only; sent when the replica identity asks for it.
    pub old: Option<Tuple<'a>>,
    /// The new row.
    pub new: Tuple<'a>,
}

/// A deleted row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Delete<'a> {
    /// The table, as in its [`Relation`].
    pub relation: u32,
    /// The old row, or its key only.
    pub old: Tuple<'a>,
}

/// Emptied tables.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Truncate<'a> {
    /// Whether CASCADE was given.
    pub cascade: bool,
    /// Whether RESTART IDENTITY was given.
    pub restart_identity: bool,
    oids: &'a [[u8; 4]],
}

impl Truncate<'_> {
    /// The tables, as in their [`Relation`]s.
    pub fn relations(&self) -> impl ExactSizeIterator<Item = u32> {
        self.oids.iter().map(|oid| u32::from_be_bytes(*oid))
    }
}

/// The origin of a replicated transaction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Origin<'a> {
    /// The LSN of the commit on the origin server.
    pub lsn: Lsn,
    /// The replication origin's name.
    pub name: &'a str,
}

/// A data type.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Type<'a> {
    /// Its number in `pg_type`.
    pub oid: u32,
    /// Its schema; empty for `pg_catalog`.
    pub namespace: &'a str,
    /// Its name.
    pub name: &'a str,
}

/// A message written with `pg_logical_emit_message`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LogicalMessage<'a> {
    /// Whether it belongs to the transaction it is sent in; otherwise it stands alone.
    pub transactional: bool,
    /// Its LSN.
    pub lsn: Lsn,
    /// The prefix that its writer chose.
    pub prefix: &'a str,
    /// Its content.
    pub content: &'a [u8],
}

impl<'a> Message<'a> {
    /// Parses one whole message: the `data` of an XLogData frame.
    #[inline]
    pub fn parse(bytes: &'a [u8]) -> Result<Self, DecodeError> {
        let Some((&tag, body)) = bytes.split_first() else {
            return Err(DecodeError::Malformed { message: "an empty message", what: SHORT.0 });
        };
        let reader = Reader::new(body);
        match tag {
            b'I' => named("Insert", reader, |r| {
                Ok(Message::Insert(Insert { relation: r.u32()?, tuple: Tuple::new_row(r)? }))
            }),
            b'B' => named("Begin", reader, |r| begin(r).map(Message::Begin)),
            b'C' => named("Commit", reader, |r| commit(r).map(Message::Commit)),
            b'R' => named("Relation", reader, |r| Relation::read(r).map(Message::Relation)),
            b'M' => named("Message", reader, |r| logical(r).map(Message::Logical)),
            b'U' => named("Update", reader, |r| update(r).map(Message::Update)),
            b'D' => named("Delete", reader, |r| delete(r).map(Message::Delete)),
            b'T' => named("Truncate", reader, |r| truncate(r).map(Message::Truncate)),
            b'O' => named("Origin", reader, |r| {
                Ok(Message::Origin(Origin { lsn: Lsn::from(r.u64()?), name: r.text()? }))
            }),
            b'Y' => named("Type", reader, |r| {
                Ok(Message::Type(Type { oid: r.u32()?, namespace: r.text()?, name: r.text()? }))
            }),
            _ => Err(DecodeError::UnknownTag { tag }),
        }
    }
}

/// Parses a whole message; errors name its kind.
#[inline]
fn named<'a, T>(
    message: &'static str,
    mut reader: Reader<'a>,
    read: impl FnOnce(&mut Reader<'a>) -> Result<T, WireError>,
) -> Result<T, DecodeError> {
    read(&mut reader)
        .and_then(|value| reader.finish().map(|()| value))
        .map_err(|WireError(what)| DecodeError::Malformed { message, what })
}

fn begin(r: &mut Reader<'_>) -> Result<Begin, WireError> {
    Ok(Begin {
        final_lsn: CommitLsn::new(Lsn::from(r.u64()?)),
        commit_time: PgTime::from_micros(r.i64()?),
        xid: r.u32()?,
    })
}

fn commit(r: &mut Reader<'_>) -> Result<Commit, WireError> {
    let _flags = r.u8()?; // unused in every version so far
    Ok(Commit {
        commit_lsn: CommitLsn::new(Lsn::from(r.u64()?)),
        end_lsn: EndLsn::new(Lsn::from(r.u64()?)),
        commit_time: PgTime::from_micros(r.i64()?),
    })
}

fn update<'a>(r: &mut Reader<'a>) -> Result<Update<'a>, WireError> {
    let relation = r.u32()?;
    let old = Tuple::old_row(r)?;
    Ok(Update { relation, old, new: Tuple::new_row(r)? })
}

fn delete<'a>(r: &mut Reader<'a>) -> Result<Delete<'a>, WireError> {
    let relation = r.u32()?;
    let old = Tuple::old_row(r)?.ok_or(WireError("has no old row"))?;
    Ok(Delete { relation, old })
}

fn truncate<'a>(r: &mut Reader<'a>) -> Result<Truncate<'a>, WireError> {
    let count = r.u32()?;
    let flags = r.u8()?;
    let bytes = usize::try_from(count).ok().and_then(|count| count.checked_mul(4)).ok_or(SHORT)?;
    let (oids, _) = r.bytes(bytes)?.as_chunks();
    Ok(Truncate { cascade: flags & 1 != 0, restart_identity: flags & 2 != 0, oids })
}

fn logical<'a>(r: &mut Reader<'a>) -> Result<LogicalMessage<'a>, WireError> {
    Ok(LogicalMessage {
        transactional: r.u8()? & 1 != 0,
        lsn: Lsn::from(r.u64()?),
        prefix: r.text()?,
        content: r.length_prefixed()?,
    })
}

#[cfg(test)]
mod tests;
