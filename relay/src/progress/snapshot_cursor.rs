//! Progress of the initial snapshot: the highest `seq` up to which all its rows are in Kafka.

use std::collections::VecDeque;

use crate::progress::ledger::EntryId;

/// See the module documentation. Rows arrive in the order of `seq`, and each row that is sent has its own ledger entry.
#[derive(Debug)]
pub struct SnapshotCursor {
    reached: i64,
    /// Per ledger entry, the `seq` up to which all rows are in Kafka once the entry is acknowledged.
    ahead: VecDeque<(EntryId, i64)>,
}

impl SnapshotCursor {
    /// All rows up to `reached` are in Kafka.
    pub fn new(reached: i64) -> Self {
        SnapshotCursor { reached, ahead: VecDeque::new() }
    }

    /// A row was sent.
    pub fn on_sent(&mut self, entry: EntryId, seq: i64) {
        self.ahead.push_back((entry, seq));
    }

    /// A row was in Kafka already. It counts once all rows before it are in Kafka.
    pub fn on_duplicate(&mut self, seq: i64) {
        match self.ahead.back_mut() {
            Some((_, last)) => *last = seq,
            None => self.reached = seq,
        }
    }

    /// The `seq` up to which all rows are in Kafka, given the oldest ledger entry that is not acknowledged.
    pub fn reached(&self, first_unacknowledged: EntryId) -> i64 {
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
        let mut cursor = SnapshotCursor::new(-1);
        cursor.on_duplicate(3);
        assert_eq!(cursor.reached(EntryId(0)), 3);
        cursor.on_sent(EntryId(0), 4);
        cursor.on_duplicate(6);
        cursor.on_sent(EntryId(1), 9);
        assert_eq!(cursor.reached(EntryId(0)), 3, "entry 0 is not acknowledged");
        assert_eq!(cursor.reached(EntryId(1)), 6, "row 6 was in Kafka, and now all rows before it are");
        assert_eq!(cursor.reached(EntryId(2)), 9);
        cursor.advance(EntryId(1));
        assert_eq!((cursor.reached(EntryId(1)), cursor.reached(EntryId(2)), cursor.ahead.len()), (6, 9, 1));
    }
}
