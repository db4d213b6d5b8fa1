//! Pairs the rows of the table with the records in Kafka, by event id and time.
//!
//! Rows and records arrive roughly in the order of time, page by page, so most of them find their counterpart soon. Only
//! those without one are kept, and memory does not depend on the length of the period.

use std::collections::HashMap;
use std::collections::hash_map::Entry;

use chrono::{DateTime, Utc};
use serde::Serialize;

use crate::cli::RecordLocation;
use crate::kafka::evidence::EventKey;

/// Maximum number of rows and records without a counterpart, which limits the memory.
pub const MAX_UNPAIRED: usize = 100_000;
/// Maximum number of replayed events. Each takes a few bytes.
pub const MAX_REPLAYED: usize = 1_000_000;

/// A row of the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StoredEvent {
    pub key: EventKey,
    pub seq: i64,
    /// Whether the checkpoint counts it as delivered. Other rows may be in Kafka or not.
    pub is_confirmed: bool,
}

/// Why a record is in Kafka.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RecordKind {
    Event,
    DeadLetter,
    /// An event or a dead letter that was sent again.
    Replayed,
}

/// A record of this outbox.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct FoundRecord {
    pub id: String,
    /// The time of the event.
    pub time: DateTime<Utc>,
    #[serde(flatten)]
    pub location: RecordLocation,
    #[serde(skip)]
    pub kind: RecordKind,
    /// Whether a record with a higher position comes before it in its partition.
    #[serde(skip)]
    pub is_behind: bool,
}

#[derive(Debug, Default)]
pub struct Comparison {
    rows: HashMap<EventKey, StoredEvent>,
    records: HashMap<EventKey, Vec<FoundRecord>>,
    /// The events that were sent again, with the number of their rows whose own record has not been found.
    replayed: HashMap<EventKey, u32>,
    counts: Counts,
    out_of_order: Vec<FoundRecord>,
}

/// The rows, by what was found of them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Counts {
    /// All rows of the period.
    pub rows: u64,
    /// Their event is in Kafka.
    pub delivered: u64,
    pub dead_letters: u64,
    /// They are not in Kafka, and the checkpoint does not count them as delivered.
    pub waiting: u64,
}

#[derive(Debug, Default, PartialEq, Eq)]
pub struct Compared {
    pub counts: Counts,
    /// Records behind one with a higher position.
    pub out_of_order: Vec<FoundRecord>,
    /// The `seq` of confirmed rows without a record.
    pub missing: Vec<i64>,
    /// The records that are left over.
    pub records: UnpairedRecords,
}

/// Records without a row, or in addition to the first of their row.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct UnpairedRecords {
    by_key: HashMap<EventKey, Vec<FoundRecord>>,
    /// Those whose row exists.
    pub duplicates: Vec<FoundRecord>,
}

impl Comparison {
    pub fn on_row(&mut self, row: StoredEvent) {
        self.counts.rows += 1;
        match self.records.entry(row.key) {
            Entry::Vacant(_) => match self.replayed.get_mut(&row.key) {
                Some(rows) => *rows += 1,
                None => drop(self.rows.insert(row.key, row)),
            },
            Entry::Occupied(mut found) => {
                let first = found.get_mut().pop();
                if found.get().is_empty() {
                    found.remove();
                }
                first.into_iter().for_each(|record| self.on_pair(record));
            }
        }
    }

    pub fn on_record(&mut self, key: EventKey, record: FoundRecord) {
        if record.kind == RecordKind::Replayed {
            let rows = self.replayed.entry(key).or_default();
            *rows += u32::from(self.rows.remove(&key).is_some());
        } else if self.take_row(key) {
            self.on_pair(record);
        } else {
            self.records.entry(key).or_default().push(record);
        }
    }

    /// Takes a row of this event, if one has arrived.
    fn take_row(&mut self, key: EventKey) -> bool {
        match self.replayed.get_mut(&key).filter(|rows| **rows > 0) {
            Some(rows) => {
                *rows -= 1;
                true
            }
            None => self.rows.remove(&key).is_some(),
        }
    }

    fn on_pair(&mut self, record: FoundRecord) {
        match record.kind {
            RecordKind::DeadLetter => self.counts.dead_letters += 1,
            RecordKind::Event | RecordKind::Replayed => self.counts.delivered += 1,
        }
        if record.is_behind {
            self.out_of_order.push(record);
        }
    }

    /// Whether too many rows and records have no counterpart.
    pub fn is_full(&self) -> bool {
        let unpaired = self.rows.len() + self.records.len() + self.out_of_order.len();
        unpaired > MAX_UNPAIRED || self.replayed.len() > MAX_REPLAYED
    }

    /// All rows and records have arrived.
    pub fn finish(self) -> Compared {
        let Comparison { rows, records, replayed, mut counts, out_of_order } = self;
        counts.delivered += replayed.into_values().map(u64::from).sum::<u64>();
        let mut missing = Vec::new();
        for row in rows.into_values() {
            match row.is_confirmed {
                true => missing.push(row.seq),
                false => counts.waiting += 1,
            }
        }
        missing.sort_unstable();
        let records = UnpairedRecords { by_key: records, duplicates: Vec::new() };
        Compared { counts, out_of_order, missing, records }
    }
}

impl UnpairedRecords {
    pub fn is_empty(&self) -> bool {
        self.by_key.is_empty()
    }

    /// A row of the table, all of which are read a second time. A row that is not confirmed may have been committed
    /// after it was read the first time, so nothing is concluded from its record.
    pub fn on_row(&mut self, row: &StoredEvent) {
        let found = self.by_key.remove(&row.key).unwrap_or_default();
        if row.is_confirmed {
            self.duplicates.extend(found);
        }
    }

    /// The records whose rows do not exist, and those that are second records of a row.
    pub fn into_phantoms_and_duplicates(self) -> (Vec<FoundRecord>, Vec<FoundRecord>) {
        (self.by_key.into_values().flatten().collect(), self.duplicates)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::progress::offset::Offset;
    use crate::topics::partitions::PartitionNumber;

    fn key(id: u8) -> EventKey {
        EventKey::new(&[id], b"10:00")
    }

    fn row(id: u8, is_confirmed: bool) -> StoredEvent {
        StoredEvent { key: key(id), seq: id.into(), is_confirmed }
    }

    fn record(id: u8, kind: RecordKind) -> FoundRecord {
        let location = RecordLocation {
            topic: "t".to_owned(),
            partition: PartitionNumber(0),
            offset: Offset(id.into()),
        };
        FoundRecord { id: id.to_string(), time: DateTime::UNIX_EPOCH, location, kind, is_behind: false }
    }

    /// One step of an audit: a row or a record arrives.
    #[derive(Clone, Copy, Debug)]
    enum Arrival {
        Row(u8),
        Record(u8, RecordKind),
    }

    fn compared(arrivals: impl IntoIterator<Item = Arrival>) -> Compared {
        let mut comparison = Comparison::default();
        for arrival in arrivals {
            match arrival {
                Arrival::Row(id) => comparison.on_row(row(id, true)),
                Arrival::Record(id, kind) => comparison.on_record(key(id), record(id, kind)),
            }
        }
        comparison.finish()
    }

    fn ids(mut records: Vec<FoundRecord>) -> Vec<String> {
        records.sort_by_key(|record| record.location.offset);
        records.into_iter().map(|record| record.id).collect()
    }

    #[test]
    fn a_row_that_is_not_confirmed_waits_and_its_record_proves_nothing() {
        let mut comparison = Comparison::default();
        comparison.on_row(row(1, false));
        comparison.on_record(key(2), record(2, RecordKind::Event));
        let Compared { counts, missing, mut records, .. } = comparison.finish();
        assert_eq!((missing.len(), counts.waiting), (0, 1));
        records.on_row(&row(2, false));
        assert!(records.is_empty() && records.duplicates.is_empty());
    }

    #[test]
    fn a_replayed_dead_letter_is_neither_a_duplicate_nor_a_phantom() {
        use RecordKind::{DeadLetter, Replayed};
        let arrivals = [
            Arrival::Row(1),
            Arrival::Record(1, Replayed),
            Arrival::Record(1, DeadLetter),
            Arrival::Record(2, Replayed),
            Arrival::Row(2),
        ];
        // The dead letter of the second one was removed by retention.
        let counts = Counts { rows: 2, delivered: 1, dead_letters: 1, waiting: 0 };
        assert_eq!(compared(arrivals), Compared { counts, ..Compared::default() });
    }

    #[test]
    fn a_row_that_was_replayed_has_its_counterpart() {
        let mut comparison = Comparison::default();
        for n in 0..MAX_UNPAIRED {
            let key = EventKey::new(&n.to_le_bytes(), b"10:00");
            comparison.on_row(StoredEvent { key, seq: 0, is_confirmed: true });
            comparison.on_record(key, record(0, RecordKind::Replayed));
        }
        assert!(!comparison.is_full());
        let Compared { counts, missing, .. } = comparison.finish();
        assert_eq!((counts.delivered, missing.len()), (MAX_UNPAIRED as u64, 0));
    }

    #[test]
    fn order_is_judged_for_the_record_that_is_paired() {
        let mut comparison = Comparison::default();
        comparison.on_record(key(1), FoundRecord { is_behind: true, ..record(1, RecordKind::Event) });
        assert!(comparison.out_of_order.is_empty());
        comparison.on_row(row(1, true));
        assert_eq!(comparison.out_of_order.len(), 1);
    }

    proptest! {
        /// Whatever the order of arrival: a row without a record is missing, a record without a row is a phantom, and
        /// all but one of the records of a row are duplicates.
        #[test]
        fn every_row_and_record_is_judged(
            counts in prop::collection::vec((0..2_usize, 0..4_usize), 1..20),
            seed in any::<u64>(),
        ) {
            let mut arrivals = Vec::new();
            for (id, (rows, records)) in counts.iter().enumerate() {
                let id = u8::try_from(id).unwrap();
                arrivals.extend(std::iter::repeat_n(Arrival::Row(id), *rows));
                arrivals.extend(std::iter::repeat_n(Arrival::Record(id, RecordKind::Event), *records));
            }
            // A shuffle.
            let hash = |index: usize| seed.wrapping_add(index as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32;
            let mut order: Vec<usize> = (0..arrivals.len()).collect();
            order.sort_by_key(|index| hash(*index));
            let mut compared = compared(order.into_iter().map(|index| arrivals[index]));

            let mut expected = (Vec::new(), Vec::new(), Vec::new(), 0);
            for (id, (rows, records)) in counts.iter().enumerate() {
                let name = id.to_string();
                match (rows, records) {
                    (0, records) => expected.1.extend(std::iter::repeat_n(name, *records)),
                    (_, 0) => expected.0.push(id as i64),
                    (_, records) => {
                        expected.2.extend(std::iter::repeat_n(name, records - 1));
                        expected.3 += 1;
                    }
                }
                if *rows > 0 {
                    compared.records.on_row(&row(u8::try_from(id).unwrap(), true));
                }
            }
            let (phantoms, duplicates) = compared.records.into_phantoms_and_duplicates();
            prop_assert_eq!((compared.missing, ids(phantoms), ids(duplicates)), (expected.0, expected.1, expected.2));
            prop_assert_eq!(compared.counts.delivered, expected.3);
        }
    }
}
