//! The oracle must be right before anything else is believed: each fault, put into a right history, is found, and
//! nothing but it.

use std::collections::BTreeMap;

use proptest::prelude::*;
use uuid::Uuid;

use super::{Verdict, check};
use crate::load::{Fate, Log, Written, digest};
use crate::records::Record;

const TOPIC: &str = "outbox.event.load";
const PARTITIONS: usize = 3;

/// Rows and the records a faultless relay makes of them.
#[derive(Clone, Debug, Default)]
struct History {
    rows: Vec<Written>,
    records: Vec<Record>,
}

impl History {
    /// `keys` keys with `each` committed events, interleaved; key `n` lies in partition `n mod 3`.
    fn right(keys: usize, each: usize) -> History {
        let mut history = History::default();
        for number in 0..each {
            for key in 0..keys {
                history.write(key, i64::try_from(number).unwrap(), Fate::Committed);
                history.publish(history.rows.len() - 1);
            }
        }
        history
    }

    fn write(&mut self, key: usize, key_seq: i64, fate: Fate) {
        let key: String = format!("key-{key}");
        self.rows.push(Written {
            id: Uuid::from_u128(self.rows.len() as u128 + 1),
            topic: TOPIC.into(),
            key: key.as_str().into(),
            key_seq,
            event_type: "load.written.v1".into(),
            payload: Some(digest(value(&key, key_seq).as_bytes())),
            headers: BTreeMap::from([("load-key".to_owned(), key)]),
            fate,
        });
    }

    /// Appends the record of row `index` to its partition.
    fn publish(&mut self, index: usize) {
        let row = &self.rows[index];
        let number: usize = row.key.strip_prefix("key-").unwrap().parse().unwrap();
        let partition = i32::try_from(number % PARTITIONS).unwrap();
        let offset = self.records.iter().filter(|record| record.partition == partition).count();
        self.records.push(Record {
            topic: row.topic.to_string(),
            partition,
            offset: i64::try_from(offset).unwrap(),
            timestamp: Some(0),
            key: Some(row.key.as_bytes().to_vec()),
            value: Some(value(&row.key, row.key_seq).into_bytes()),
            headers: [
                ("ce_id", row.id.to_string()),
                ("ce_type", row.event_type.to_string()),
                ("load-key", row.key.to_string()),
            ]
            .map(|(name, value)| (name.to_owned(), Some(value.into_bytes())))
            .to_vec(),
        });
    }

    fn check(&self) -> Verdict {
        let mut log = Log::default();
        self.rows.iter().cloned().for_each(|row| log.push(row));
        check(&log, &self.records)
    }

    fn swap_offsets(&mut self, a: usize, b: usize) {
        let offset = self.records[a].offset;
        self.records[a].offset = self.records[b].offset;
        self.records[b].offset = offset;
    }
}

fn value(key: &str, key_seq: i64) -> String {
    format!(r#"{{"key": "{key}", "key_seq": {key_seq}}}"#)
}

/// Counts of lost, phantom, duplicate, reordered, corrupted.
fn counts(verdict: &Verdict) -> [usize; 5] {
    verdict.findings().map(|(_, findings)| findings.count)
}

fn set_header(record: &mut Record, name: &str, value: &str) {
    let (_, old) = record.headers.iter_mut().find(|(header, _)| header == name).unwrap();
    *old = Some(value.as_bytes().to_vec());
}

#[test]
fn a_right_history_is_right() {
    let verdict = History::right(5, 4).check();
    assert!(verdict.is_right(), "{verdict}");
    assert_eq!((verdict.committed, verdict.records), (20, 20));
}

#[test]
fn a_check_of_nothing_is_not_right() {
    assert!(!History::default().check().is_right());
}

#[test]
fn a_missing_record_is_lost() {
    let mut history = History::right(5, 4);
    let gone = history.records.remove(7);
    let verdict = history.check();
    assert_eq!(counts(&verdict), [1, 0, 0, 0, 0], "{verdict}");
    assert_eq!(verdict.lost.examples[0].id, gone.event_id());
}

#[test]
fn a_record_without_a_writer_is_a_phantom() {
    let mut history = History::right(5, 4);
    history.rows.remove(7);
    assert_eq!(counts(&history.check()), [0, 1, 0, 0, 0]);
}

#[test]
fn a_record_of_a_rolled_back_row_is_a_phantom() {
    let mut history = History::right(5, 4);
    history.rows[7].fate = Fate::RolledBack;
    let verdict = history.check();
    assert_eq!(counts(&verdict), [0, 1, 0, 0, 0]);
    assert!(verdict.to_string().contains("rolled back"));
}

#[test]
fn a_record_without_an_id_is_a_phantom_and_its_row_lost() {
    let mut history = History::right(5, 4);
    history.records[7].headers.retain(|(name, _)| name != "ce_id");
    assert_eq!(counts(&history.check()), [1, 1, 0, 0, 0]);
}

#[test]
fn the_header_id_serves_where_ce_id_is_absent() {
    let mut history = History::right(5, 4);
    for record in &mut history.records {
        record.headers.retain(|(name, _)| name != "ce_type");
        record
            .headers
            .iter_mut()
            .filter(|(name, _)| name == "ce_id")
            .for_each(|(name, _)| *name = "id".into());
    }
    assert!(history.check().is_right());
}

#[test]
fn a_second_record_is_a_duplicate_and_not_reordered() {
    let mut history = History::right(5, 4);
    history.publish(0);
    history.publish(0);
    assert_eq!(counts(&history.check()), [0, 0, 2, 0, 0]);
}

#[test]
fn a_replayed_suffix_is_duplicates_only() {
    let mut history = History::right(5, 4);
    (10..20).for_each(|index| history.publish(index));
    assert_eq!(counts(&history.check()), [0, 0, 10, 0, 0]);
}

#[test]
fn two_swapped_events_of_a_key_are_reordered() {
    let mut history = History::right(5, 4);
    // Rows 3 and 8 are consecutive events of key 3.
    history.swap_offsets(3, 8);
    let verdict = history.check();
    assert_eq!(counts(&verdict), [0, 0, 0, 1, 0], "{verdict}");
}

#[test]
fn order_between_keys_is_not_promised() {
    let mut history = History::right(6, 4);
    // Keys 0 and 3 share partition 0; row 0 and row 3 are both the first of their key.
    history.swap_offsets(0, 3);
    assert!(history.check().is_right());
}

#[test]
fn a_key_in_two_partitions_is_reordered() {
    let mut history = History::right(5, 4);
    history.records[19].partition = (history.records[19].partition + 1) % 3;
    history.records[19].offset = 1_000;
    assert_eq!(counts(&history.check()), [0, 0, 0, 1, 0]);
}

#[test]
fn a_changed_record_is_corrupted() {
    type Fault = (&'static str, fn(&mut Record));
    let faults: [Fault; 7] = [
        ("value", |record| record.value.as_mut().unwrap()[3] ^= 1),
        ("value", |record| record.value = None),
        ("key", |record| record.key = Some(b"key-".to_vec())),
        ("key", |record| record.key = None),
        ("ce_type", |record| set_header(record, "ce_type", "load.written.v2")),
        ("load-key", |record| record.headers.retain(|(name, _)| name != "load-key")),
        ("topic", |record| record.topic = "outbox.event.other".into()),
    ];
    for (what, fault) in faults {
        let mut history = History::right(5, 4);
        // The only record of its partition order that the fault could disturb is the last of its key.
        fault(history.records.last_mut().unwrap());
        let verdict = history.check();
        assert_eq!(counts(&verdict), [0, 0, 0, 0, 1], "{what}: {verdict}");
        assert!(verdict.corrupted.examples[0].fault.contains(what), "{what}: {verdict}");
    }
}

#[test]
fn indeterminate_rows_may_be_there_or_not() {
    let mut history = History::right(5, 4);
    history.rows[18].fate = Fate::Indeterminate;
    history.write(2, 99, Fate::Indeterminate);
    let verdict = history.check();
    assert!(verdict.is_right(), "{verdict}");
    assert_eq!((verdict.indeterminate_present, verdict.indeterminate_absent), (1, 1));
}

#[test]
fn an_indeterminate_row_must_not_be_there_twice_or_changed() {
    let mut history = History::right(5, 4);
    history.rows[18].fate = Fate::Indeterminate;
    history.publish(18);
    history.records[18].value = Some(b"{}".to_vec());
    assert_eq!(counts(&history.check()), [0, 0, 1, 0, 1]);
}

#[test]
fn the_table_names_counts_and_a_few_examples() {
    let mut history = History::right(5, 40);
    history.records.truncate(100);
    let text = history.check().to_string();
    assert!(text.contains("lost                   100  <-"), "{text}");
    assert!(text.contains("and 95 more"), "{text}");
    assert!(text.ends_with("WRONG"), "{text}");
}

proptest! {
    /// A right history of any shape, with rolled-back and indeterminate rows among it, passes; with one fault
    /// anywhere in it, exactly that fault is found.
    #[test]
    fn one_fault_is_exactly_that_finding(
        keys in 1usize..12,
        each in 2usize..12,
        fates in prop::collection::vec(0u8..10, 144),
        fault in 0usize..5,
        place in any::<prop::sample::Index>(),
    ) {
        let mut history = History::default();
        for number in 0..each {
            for key in 0..keys {
                let (fate, published) = match fates[number * keys + key] {
                    0 => (Fate::RolledBack, false),
                    1 => (Fate::Indeterminate, false),
                    2 => (Fate::Indeterminate, true),
                    _ => (Fate::Committed, true),
                };
                history.write(key, i64::try_from(number).unwrap(), fate);
                if published {
                    history.publish(history.rows.len() - 1);
                }
            }
        }
        // At least two neighbours of one key, so that every fault has a place.
        for key_seq in 1_000..1_002 {
            history.write(0, key_seq, Fate::Committed);
            history.publish(history.rows.len() - 1);
        }
        prop_assert_eq!(counts(&history.check()), [0; 5]);

        let mut expected = [0; 5];
        expected[fault] = 1;
        let committed = |history: &History, record: &Record| {
            history.rows.iter().any(|row| Some(row.id) == record.event_id() && row.fate == Fate::Committed)
        };
        match fault {
            0 => {
                let candidates: Vec<usize> =
                    (0..history.records.len()).filter(|&i| committed(&history, &history.records[i])).collect();
                history.records.remove(candidates[place.index(candidates.len())]);
            }
            1 => {
                let index = place.index(history.records.len());
                let id = history.records[index].event_id();
                history.rows.retain(|row| Some(row.id) != id);
            }
            2 => {
                let id = history.records[place.index(history.records.len())].event_id();
                let index = history.rows.iter().position(|row| Some(row.id) == id).unwrap();
                history.publish(index);
            }
            3 => {
                let neighbours: Vec<(usize, usize)> = (0..history.records.len())
                    .filter_map(|a| {
                        let key = &history.records[a].key;
                        let after = &history.records[a + 1..];
                        Some((a, a + 1 + after.iter().position(|record| record.key == *key)?))
                    })
                    .collect();
                let (a, b) = neighbours[place.index(neighbours.len())];
                history.swap_offsets(a, b);
            }
            _ => {
                let index = place.index(history.records.len());
                let value = history.records[index].value.as_mut().unwrap();
                let byte = place.index(value.len());
                value[byte] = value[byte].wrapping_add(1);
            }
        }
        prop_assert_eq!(counts(&history.check()), expected);
    }
}
