//! Messages too large to keep: reduced while they arrive, so that only the needed parts take memory.

use std::collections::HashMap;
use std::sync::Arc;

use bytes::{Buf, BufMut, Bytes, BytesMut};

use super::Frame;
use crate::pgoutput::{Message, OVERSIZED, Relation, RelationColumn, UNKNOWN_COLUMN};
use crate::wire::{LONG, NEGATIVE, Reader, SHORT, WireError};

/// XLogData's own header: its kind, two LSNs, a time.
const XLOG_HEADER_BYTES: usize = 1 + 3 * 8;
/// Before the first column of an Insert: that header, its kind, the relation, the marker of a new row, the number of
/// columns.
const ROW_HEADER_BYTES: usize = XLOG_HEADER_BYTES + 1 + 4 + 1 + 2;
/// A column's kind and length.
const COLUMN_HEADER_BYTES: usize = 1 + 4;
/// No message that has to be kept whole, other than a row, is larger than this.
const MAX_COLLECTED_BYTES: usize = 16 * 1024 * 1024;
/// Bytes kept of an error or notice: its fields come in order of importance.
const REPORT_BYTES: usize = 64 * 1024;

/// Whether a column of a table is needed.
pub type IsWanted = dyn Fn(&Relation<'_>, &RelationColumn<'_>) -> bool + Send;

/// Limits what is kept of rows and messages that are larger than one read. Without a limit they are kept whole,
/// whatever their size.
pub struct MemoryLimit {
    /// A larger value arrives as [`Column::Oversized`](crate::pgoutput::Column::Oversized), with its size only.
    pub largest_value: usize,
    /// Which columns are needed. Of others only the size is kept when the row is large. A large row of a table without
    /// any such column is dropped, as is any other large message of the stream, such as that of
    /// `pg_logical_emit_message`.
    pub is_wanted: Box<IsWanted>,
}

/// The limit, applied to the tables that the stream has announced.
pub(super) struct Selection {
    limit: MemoryLimit,
    /// By relation OID, of each table with a needed column.
    wanted: HashMap<u32, Arc<[bool]>>,
}

impl Selection {
    pub(super) fn new(limit: MemoryLimit) -> Self {
        Selection { limit, wanted: HashMap::new() }
    }

    /// Registers a table, if `message` is a Relation.
    pub(super) fn announce(&mut self, message: &[u8]) {
        let Ok(Message::Relation(relation)) = Message::parse(message) else { return };
        let wanted: Arc<[bool]> =
            relation.columns().map(|column| (self.limit.is_wanted)(&relation, &column)).collect();
        if wanted.contains(&true) {
            self.wanted.insert(relation.oid, wanted);
        } else {
            self.wanted.remove(&relation.oid);
        }
    }
}

/// What happens to a message that is larger than a read.
pub(super) enum Plan {
    /// Too little has arrived to decide.
    Unclear,
    /// It is kept whole.
    Whole,
    /// No server sends such a message.
    TooLong,
    /// It is reduced.
    InPieces(Large),
}

/// Decides about a message with this tag and body length from the beginning of its body.
pub(super) fn plan(selection: Option<&Selection>, tag: u8, length: usize, body: &[u8]) -> Plan {
    let pieces = |step| Plan::InPieces(Large { tag, left: length, kept: BytesMut::new(), step });
    let bounded = if length <= MAX_COLLECTED_BYTES { Plan::Whole } else { Plan::TooLong };
    let selection = match (tag, selection) {
        (b'E' | b'N', _) => return pieces(Step::Head(REPORT_BYTES)),
        (b'd', Some(selection)) => selection,
        (b'd', None) => return Plan::Whole,
        _ => return bounded,
    };
    if body.len() < ROW_HEADER_BYTES {
        return Plan::Unclear;
    }
    let (kind, message) = (body.first(), body.get(XLOG_HEADER_BYTES));
    match (kind, message) {
        (Some(b'w'), Some(b'I')) => {
            let relation = body.get(XLOG_HEADER_BYTES + 1..).and_then(<[u8]>::first_chunk);
            match relation.and_then(|oid| selection.wanted.get(&u32::from_be_bytes(*oid))) {
                Some(_) if length <= selection.limit.largest_value => Plan::Whole,
                Some(wanted) => pieces(Step::Row(Row {
                    wanted: Arc::clone(wanted),
                    largest_value: selection.limit.largest_value,
                    next: 0,
                    columns: None,
                    value: None,
                })),
                None => pieces(Step::Skip(XLOG_HEADER_BYTES)),
            }
        }
        // No message that moves a position, or that a later message depends on.
        (Some(b'w'), Some(b'M' | b'U' | b'D' | b'T' | b'O')) => pieces(Step::Skip(XLOG_HEADER_BYTES)),
        _ => bounded,
    }
}

/// A message that is being reduced.
pub(super) struct Large {
    tag: u8,
    /// Bytes of its body that have not arrived yet.
    left: usize,
    kept: BytesMut,
    step: Step,
}

enum Step {
    /// Keeps the header of XLogData, which has the message's position in the WAL.
    Skip(usize),
    /// Keeps the beginning.
    Head(usize),
    /// Keeps the wanted columns.
    Row(Row),
}

impl Large {
    /// Takes what has arrived out of `buffer`. Returns whether that was the end of the message.
    pub(super) fn digest(&mut self, buffer: &mut BytesMut) -> Result<bool, WireError> {
        let arrived = buffer.len().min(self.left);
        let mut input = Input { kept: &mut self.kept, left: &mut self.left, buffer, arrived };
        match &mut self.step {
            Step::Skip(keep) | Step::Head(keep) => {
                let kept = input.keep(*keep);
                *keep -= kept;
                input.discard(usize::MAX);
            }
            Step::Row(row) => row.digest(&mut input)?,
        }
        Ok(self.left == 0)
    }

    pub(super) fn into_frame(mut self) -> Frame {
        if matches!(self.step, Step::Head(_)) {
            end_report(&mut self.kept);
        }
        let skipped = matches!(self.step, Step::Skip(_));
        Frame { tag: self.tag, body: Bytes::from(self.kept), skipped }
    }
}

/// Terminates a truncated error or notice: its last field, and the list of fields.
fn end_report(kept: &mut BytesMut) {
    let end = kept.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
    kept.truncate(end);
    kept.extend_from_slice(&[0, 0]);
}

/// The part of a message that has arrived.
struct Input<'a> {
    kept: &'a mut BytesMut,
    left: &'a mut usize,
    buffer: &'a mut BytesMut,
    arrived: usize,
}

impl Input<'_> {
    /// Keeps up to `count` bytes of what has arrived; returns how many.
    fn keep(&mut self, count: usize) -> usize {
        let count = count.min(self.arrived);
        self.kept.extend_from_slice(self.buffer.get(..count).unwrap_or_default());
        self.discard(count)
    }

    /// Discards up to `count` bytes of what has arrived; returns how many.
    fn discard(&mut self, count: usize) -> usize {
        let count = count.min(self.arrived);
        self.buffer.advance(count);
        self.arrived -= count;
        *self.left -= count;
        count
    }

    /// The next `count` bytes, not taken yet; `None` until they have arrived.
    fn peek(&self, count: usize) -> Result<Option<&[u8]>, WireError> {
        if count > *self.left {
            return Err(SHORT);
        }
        Ok(self.buffer.get(..count).filter(|_| count <= self.arrived))
    }
}

/// An Insert, parsed column by column.
struct Row {
    wanted: Arc<[bool]>,
    largest_value: usize,
    /// The next column.
    next: usize,
    /// The number of columns, once the row's header has arrived.
    columns: Option<usize>,
    /// The value that is arriving, and whether it is kept.
    value: Option<(usize, bool)>,
}

impl Row {
    fn digest(&mut self, input: &mut Input<'_>) -> Result<(), WireError> {
        loop {
            if let Some((left, kept)) = &mut self.value {
                *left -= if *kept { input.keep(*left) } else { input.discard(*left) };
                if *left > 0 {
                    return Ok(());
                }
                self.value = None;
            }
            let going_on = match self.columns {
                None => self.begin(input)?,
                Some(columns) if self.next < columns => self.column(input)?,
                Some(_) if *input.left > 0 => return Err(LONG),
                Some(_) => false,
            };
            if !going_on {
                return Ok(());
            }
        }
    }

    /// Reads the row's header; returns whether it has arrived.
    fn begin(&mut self, input: &mut Input<'_>) -> Result<bool, WireError> {
        let Some(header) = input.peek(ROW_HEADER_BYTES)? else { return Ok(false) };
        let mut reader = Reader::new(header.get(ROW_HEADER_BYTES - 3..).unwrap_or_default());
        if reader.u8()? != b'N' {
            return Err(WireError("has no new row"));
        }
        self.columns = Some(usize::from(reader.u16()?));
        input.keep(ROW_HEADER_BYTES);
        Ok(true)
    }

    /// Reads the header of a column, and decides about its value; returns whether it has arrived.
    fn column(&mut self, input: &mut Input<'_>) -> Result<bool, WireError> {
        let Some(&[kind]) = input.peek(1)? else { return Ok(false) };
        match kind {
            b't' | b'b' => {}
            b'n' | b'u' => {
                input.keep(1);
                self.next += 1;
                return Ok(true);
            }
            _ => return Err(UNKNOWN_COLUMN),
        }
        let Some(header) = input.peek(COLUMN_HEADER_BYTES)? else { return Ok(false) };
        let mut reader = Reader::new(header.get(1..).unwrap_or_default());
        let length = reader.u32()?;
        let bytes =
            usize::try_from(length).ok().filter(|_| length <= i32::MAX.cast_unsigned()).ok_or(NEGATIVE)?;
        if bytes > *input.left - COLUMN_HEADER_BYTES {
            return Err(SHORT);
        }
        let kept = bytes <= self.largest_value && self.wanted.get(self.next).is_some_and(|wanted| *wanted);
        if kept {
            input.keep(COLUMN_HEADER_BYTES);
        } else {
            input.discard(COLUMN_HEADER_BYTES);
            input.kept.put_u8(OVERSIZED);
            input.kept.put_u32(length);
        }
        self.value = Some((bytes, kept));
        self.next += 1;
        Ok(true)
    }
}

#[cfg(test)]
mod tests;
