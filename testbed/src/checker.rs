//! The oracle: compares what was committed with what is in Kafka.
//!
//! A pure function of the writers' [`Log`] and the [`Record`]s read from Kafka. It knows nothing of the relay; it
//! asks what a consumer would ask: is every committed event there, once, in the order of its key, unchanged, and
//! nothing else?

mod verdict;

use std::collections::{HashMap, HashSet};

use uuid::Uuid;

use crate::load::{Fate, Log, Written, digest};
use crate::records::Record;

pub use verdict::{Finding, Findings, Verdict};

/// Judges `records`, everything that the topics of the log hold, against `log`.
///
/// An event is recognised by its id (header `ce_id`, or `id`). A second record of an id is a duplicate; order is
/// judged on first occurrences only. Indeterminate rows may be there or not, but never twice, out of order or changed.
pub fn check(log: &Log, records: &[Record]) -> Verdict {
    let expected: HashMap<Uuid, &Written> = log.rows().iter().map(|row| (row.id, row)).collect();
    let mut verdict = Verdict {
        committed: log.count(Fate::Committed),
        rolled_back: log.count(Fate::RolledBack),
        records: records.len(),
        ..Verdict::default()
    };

    let mut seen = HashSet::new();
    let mut keys: HashMap<(&str, &str), KeyProgress> = HashMap::new();
    for record in in_partition_order(records) {
        let Some(id) = record.event_id() else {
            verdict.phantom.add(|| Finding::of(record, "no event id in headers ce_id or id"));
            continue;
        };
        let row = match expected.get(&id) {
            None => {
                verdict.phantom.add(|| Finding::of(record, "no writer wrote it"));
                continue;
            }
            Some(row) if row.fate == Fate::RolledBack => {
                verdict.phantom.add(|| Finding::of(record, "it was rolled back"));
                continue;
            }
            Some(row) => *row,
        };
        for difference in differences(row, record) {
            verdict.corrupted.add(|| Finding::of(record, &difference));
        }
        if !seen.insert(id) {
            verdict.duplicate.add(|| Finding::of(record, "its id is there already"));
            continue;
        }
        let progress = keys.entry((&row.topic, &row.key)).or_insert_with(|| KeyProgress::new(record));
        if let Some(fault) = progress.advance(row, record) {
            verdict.reordered.add(|| Finding::of(record, &fault));
        }
    }

    for row in log.rows() {
        match (row.fate, seen.contains(&row.id)) {
            (Fate::Committed, false) => {
                verdict.lost.add(|| Finding::of_row(row, "committed, but not in Kafka"))
            }
            (Fate::Indeterminate, true) => verdict.indeterminate_present += 1,
            (Fate::Indeterminate, false) => verdict.indeterminate_absent += 1,
            _ => {}
        }
    }
    verdict
}

/// The order consumers see; only within a partition does it mean anything.
fn in_partition_order(records: &[Record]) -> Vec<&Record> {
    let mut ordered: Vec<&Record> = records.iter().collect();
    ordered.sort_by(|a, b| (&a.topic, a.partition, a.offset).cmp(&(&b.topic, b.partition, b.offset)));
    ordered
}

/// How far the events of one key have come.
struct KeyProgress {
    partition: i32,
    last: Option<i64>,
}

impl KeyProgress {
    fn new(first: &Record) -> KeyProgress {
        KeyProgress { partition: first.partition, last: None }
    }

    /// Takes in the next record of the key, and says what is wrong with its place.
    fn advance(&mut self, row: &Written, record: &Record) -> Option<String> {
        // Order between partitions does not exist, so a key that moves has lost it.
        if record.partition != self.partition {
            return Some(format!("other events of its key are in partition {}", self.partition));
        }
        match self.last {
            Some(last) if row.key_seq <= last => {
                Some(format!("number {} of its key comes after number {last}", row.key_seq))
            }
            _ => {
                self.last = Some(row.key_seq);
                None
            }
        }
    }
}

/// Everything in which the record is not what was written. Numbers and names only: payloads are not shown.
fn differences(row: &Written, record: &Record) -> Vec<String> {
    let mut differences = Vec::new();
    if *record.topic != *row.topic {
        differences.push(format!("it belongs in topic {}", row.topic));
    }
    if record.key.as_deref() != Some(row.key.as_bytes()) {
        differences.push(format!("its key should be {}", row.key));
    }
    if record.value.as_deref().map(digest) != row.payload {
        let length =
            record.value.as_ref().map_or_else(|| "null".to_owned(), |v| format!("{} bytes", v.len()));
        differences.push(format!("its value ({length}) is not the payload that was written"));
    }
    // Absent in Debezium's format, which puts the type where the routing configuration says.
    if record.header("ce_id").is_some() && record.header("ce_type") != Some(&*row.event_type) {
        differences.push(format!("its header ce_type should be {}", row.event_type));
    }
    if let (Some(ce_id), Some(id)) = (record.header("ce_id"), record.header("id"))
        && ce_id != id
    {
        differences.push("its headers ce_id and id differ".to_owned());
    }
    for (name, value) in &row.headers {
        if record.header(name) != Some(value) {
            differences.push(format!("its header {name} is missing or changed"));
        }
    }
    differences
}

#[cfg(test)]
mod tests;
