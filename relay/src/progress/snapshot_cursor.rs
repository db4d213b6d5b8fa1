//! How far a copy has come: the highest `seq` up to which every copied row is in Kafka.

use std::collections::VecDeque;

use crate::progress::ledger::EntryId;

/// See the module's text. Rows come in the order of `seq`, and each one sent has a ledger entry of its own.
#[derive(Debug)]
pub struct SnapshotCursor {
    reached: i64,
    /// (entry, `seq` up to which all is in Kafka once the entry is acknowledged).
    ahead: VecDeque<(EntryId, i64)>,
}

impl SnapshotCursor {
    /// Every row up to `reached` is in Kafka.
    pub fn new(reached: i64) -> Self {
        SnapshotCursor { reached, ahead: VecDeque::new() }
    }

    /// A row was sent.
    pub fn on_sent(&mut self, entry: EntryId, seq: i64) {
        self.ahead.push_back((entry, seq));
    }

    /// A row was in Kafka already: it waits for those before it.
    pub fn on_duplicate(&mut self, seq: i64) {
        match self.ahead.back_mut() {
            Some((_, last)) => *last = seq,
            None => self.reached = seq,
        }
    }

    /// Every row up to this `seq` is in Kafka, given the oldest ledger entry that is not acknowledged.
    pub fn advance(&mut self, first_unconfirmed: EntryId) -> i64 {
        while let Some((_, seq)) = self.ahead.pop_front_if(|(entry, _)| *entry < first_unconfirmed) {
            self.reached = seq;
        }
        self.reached
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_reaches_as_far_as_all_before_is_acknowledged() {
        let mut cursor = SnapshotCursor::new(-1);
        cursor.on_duplicate(3);
        assert_eq!(cursor.advance(0), 3);
        cursor.on_sent(0, 4);
        cursor.on_duplicate(6);
        cursor.on_sent(1, 9);
        assert_eq!(cursor.advance(0), 3, "entry 0 is not acknowledged");
        assert_eq!(cursor.advance(1), 6, "row 6 was there, and now all before it is");
        assert_eq!(cursor.advance(2), 9);
    }
}
