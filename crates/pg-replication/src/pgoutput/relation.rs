//! Tables as pgoutput describes them. Match columns by name: DDL changes their order and number, and the catalog, read
//! on another connection, may already show a later schema than the rows have.

use crate::wire::{Reader, WireError};

/// The columns of a table's rows from here on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Relation<'a> {
    /// Its OID, by which rows refer to it.
    pub oid: u32,
    /// Its schema; empty for `pg_catalog`.
    pub namespace: &'a str,
    /// Its name.
    pub name: &'a str,
    /// What is sent of the old row of an UPDATE or DELETE.
    pub replica_identity: ReplicaIdentity,
    count: u16,
    /// Exactly `count` well-formed columns: `read` is the only constructor.
    bytes: &'a [u8],
}

/// Which part of an old row identifies it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReplicaIdentity {
    /// The primary key.
    Default,
    /// Nothing.
    Nothing,
    /// The whole row.
    Full,
    /// The columns of an index.
    Index,
}

/// One column of a table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RelationColumn<'a> {
    /// Whether it is part of the replica identity.
    pub key: bool,
    /// Its name.
    pub name: &'a str,
    /// Its type's OID.
    pub type_oid: u32,
    /// The type's modifier, such as a length; -1 for none.
    pub type_modifier: i32,
}

impl<'a> Relation<'a> {
    /// Its columns, in the order of the columns of its rows.
    pub fn columns(&self) -> RelationColumns<'a> {
        RelationColumns { left: self.count, reader: Reader::new(self.bytes) }
    }

    pub(super) fn read(reader: &mut Reader<'a>) -> Result<Self, WireError> {
        let oid = reader.u32()?;
        let namespace = reader.text()?;
        let name = reader.text()?;
        let replica_identity = match reader.u8()? {
            b'd' => ReplicaIdentity::Default,
            b'n' => ReplicaIdentity::Nothing,
            b'f' => ReplicaIdentity::Full,
            b'i' => ReplicaIdentity::Index,
            _ => return Err(WireError("has an unknown replica identity")),
        };
        let count = reader.u16()?;
        let before = reader.rest();
        for _ in 0..count {
            column(reader)?;
        }
        let bytes = before.get(..before.len() - reader.rest().len()).unwrap_or_default();
        Ok(Relation { oid, namespace, name, replica_identity, count, bytes })
    }
}

fn column<'a>(reader: &mut Reader<'a>) -> Result<RelationColumn<'a>, WireError> {
    Ok(RelationColumn {
        key: reader.u8()? & 1 != 0,
        name: reader.text()?,
        type_oid: reader.u32()?,
        type_modifier: reader.i32()?,
    })
}

/// The columns of a [`Relation`].
#[derive(Debug, Clone)]
pub struct RelationColumns<'a> {
    left: u16,
    reader: Reader<'a>,
}

impl<'a> Iterator for RelationColumns<'a> {
    type Item = RelationColumn<'a>;

    fn next(&mut self) -> Option<RelationColumn<'a>> {
        self.left = self.left.checked_sub(1)?;
        column(&mut self.reader).ok()
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        let left = usize::from(self.left);
        (left, Some(left))
    }
}

impl ExactSizeIterator for RelationColumns<'_> {}
impl std::iter::FusedIterator for RelationColumns<'_> {}
