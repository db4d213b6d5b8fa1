//! Progress of the initial snapshot: the highest `seq` up to which all its rows are in Kafka.

use std::collections::VecDeque;

use crate::progress::ledger::EntryId;

/// The `seq` of a row of the outbox table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Seq(pub i64);

impl Seq {
    /// As the index of a position.
    pub fn as_index(self) -> u64 {
        self.0.cast_unsigned()
    }

    /// The `seq` that is the index of a position.
    pub fn from_index(index: u64) -> Seq {
        Seq(index.cast_signed())
    }
}

/// See the module documentation. Rows arrive in the order of `seq`, and each row that is sent has its own ledger entry.
#[derive(Debug)]
pub struct SnapshotCursor {
    reached: Seq,
    /// Per ledger entry, the `seq` up to which all rows are in Kafka once the entry is acknowledged.
    ahead: VecDeque<(EntryId, Seq)>,
}

impl SnapshotCursor {
    /// All rows up to `reached` are in Kafka.
    pub fn new(reached: Seq) -> Self {
        SnapshotCursor { reached, ahead: VecDeque::new() }
    }

    pub fn on_sent(&mut self, entry: EntryId, seq: Seq) {
        self.ahead.push_back((entry, seq));
    }

    /// A row was in Kafka already. It counts once all rows before it are in Kafka.
    pub fn on_duplicate(&mut self, seq: Seq) {
        match self.ahead.back_mut() {
            Some((_, last)) => *last = seq,
            None => self.reached = seq,
        }
    }

    /// The `seq` up to which all rows are in Kafka, given the oldest ledger entry that is not acknowledged.
    pub fn reached(&self, first_unacknowledged: EntryId) -> Seq {
        let acknowledged = self.ahead.partition_point(|(entry, _)| *entry < first_unacknowledged);
        let last = acknowledged.checked_sub(1).and_then(|index| self.ahead.get(index));
        last.map_or(self.reached, |(_, seq)| *seq)
    }

    /// Forgets the rows up to that `seq`.
    pub fn advance(&mut self, first_unacknowledged: EntryId) {
        while let Some((_, seq)) = self.ahead.pop_front_if(|(entry, _)| *entry < first_unacknowledged) {
            self.reached = seq;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cursor_advances_only_past_acknowledged_rows() {
        let mut cursor = SnapshotCursor::new(Seq(-1));
        cursor.on_duplicate(Seq(3));
        assert_eq!(cursor.reached(EntryId(0)), Seq(3));
        cursor.on_sent(EntryId(0), Seq(4));
        cursor.on_duplicate(Seq(6));
        cursor.on_sent(EntryId(1), Seq(9));
        assert_eq!(cursor.reached(EntryId(0)), Seq(3), "entry 0 is not acknowledged");
        assert_eq!(cursor.reached(EntryId(1)), Seq(6), "row 6 was in Kafka, and now all rows before it are");
        assert_eq!(cursor.reached(EntryId(2)), Seq(9));
        cursor.advance(EntryId(1));
        assert_eq!(
            (cursor.reached(EntryId(1)), cursor.reached(EntryId(2)), cursor.ahead.len()),
            (Seq(6), Seq(9), 1)
        );
    }
}
