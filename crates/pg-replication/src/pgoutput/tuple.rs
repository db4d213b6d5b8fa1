//! Rows: checked once when parsed, then read without allocation and without errors.

use crate::wire::{Reader, WireError};

/// The kind of a column whose value was larger than [`MemoryLimit`](crate::MemoryLimit) allows; four bytes of size
/// follow. The server never sends it: this crate writes it where it reads the row.
pub(crate) const OVERSIZED: u8 = 0xFF;
pub(crate) const UNKNOWN_COLUMN: WireError = WireError("has a column of unknown kind");

/// One column's value in a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Column<'a> {
    /// SQL NULL.
    Null,
    /// An out-of-line (TOAST) value that an UPDATE did not change, and that is therefore not sent.
    Unchanged,
    /// The value in text format, written by its type's output function.
    Text(&'a [u8]),
    /// The value in binary format, written by its type's send function.
    Binary(&'a [u8]),
    /// A value that [`MemoryLimit`](crate::MemoryLimit) does not allow to be kept: its size in bytes.
    Oversized(usize),
}

/// A row, in the order of its [`Relation`](super::Relation)'s columns.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tuple<'a> {
    count: u16,
    /// Exactly `count` well-formed columns: `read` is the only constructor.
    bytes: &'a [u8],
}

impl<'a> Tuple<'a> {
    /// The number of columns.
    pub fn len(&self) -> usize {
        usize::from(self.count)
    }

    /// Whether it has no columns, as a row of a table without any.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Its columns.
    #[inline]
    pub fn columns(&self) -> Columns<'a> {
        Columns { left: self.count, reader: Reader::new(self.bytes) }
    }

    /// Reads the marker of a new row and the row.
    #[inline]
    pub(super) fn new_row(reader: &mut Reader<'a>) -> Result<Self, WireError> {
        match reader.u8()? {
            b'N' => Self::read(reader),
            _ => Err(WireError("has no new row")),
        }
    }

    /// Reads an old row or key, if one follows.
    pub(super) fn old_row(reader: &mut Reader<'a>) -> Result<Option<Self>, WireError> {
        match reader.rest().first() {
            Some(b'K' | b'O') => {
                reader.u8()?;
                Self::read(reader).map(Some)
            }
            _ => Ok(None),
        }
    }

    #[inline]
    fn read(reader: &mut Reader<'a>) -> Result<Self, WireError> {
        let count = reader.u16()?;
        let before = reader.rest();
        for _ in 0..count {
            column(reader)?;
        }
        let bytes = before.get(..before.len() - reader.rest().len()).unwrap_or_default();
        Ok(Tuple { count, bytes })
    }
}

#[inline]
fn column<'a>(reader: &mut Reader<'a>) -> Result<Column<'a>, WireError> {
    match reader.u8()? {
        b'b' => reader.length_prefixed().map(Column::Binary),
        b't' => reader.length_prefixed().map(Column::Text),
        b'n' => Ok(Column::Null),
        b'u' => Ok(Column::Unchanged),
        OVERSIZED => Ok(Column::Oversized(usize::try_from(reader.u32()?).unwrap_or(usize::MAX))),
        _ => Err(UNKNOWN_COLUMN),
    }
}

/// The columns of a [`Tuple`].
#[derive(Debug, Clone)]
pub struct Columns<'a> {
    left: u16,
    reader: Reader<'a>,
}

impl<'a> Iterator for Columns<'a> {
    type Item = Column<'a>;

    #[inline]
    fn next(&mut self) -> Option<Column<'a>> {
        self.left = self.left.checked_sub(1)?;
        column(&mut self.reader).ok()
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        let left = usize::from(self.left);
        (left, Some(left))
    }
}

impl ExactSizeIterator for Columns<'_> {}
impl std::iter::FusedIterator for Columns<'_> {}
