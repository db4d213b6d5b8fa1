//! What the checker found, and how it says so.

use std::fmt;

use uuid::Uuid;

use crate::load::Written;
use crate::records::Record;

/// Enough examples to start looking; a million lost rows are one fault, not a million.
const EXAMPLES: usize = 5;

/// The result of a check.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Verdict {
    /// Rows whose COMMIT returned.
    pub committed: usize,
    /// Rows rolled back on purpose or by the server.
    pub rolled_back: usize,
    /// Records read from Kafka.
    pub records: usize,
    /// Rows with a lost COMMIT reply that are in Kafka.
    pub indeterminate_present: usize,
    /// Rows with a lost COMMIT reply that are not.
    pub indeterminate_absent: usize,
    /// Committed, but not in Kafka.
    pub lost: Findings,
    /// In Kafka, but never committed.
    pub phantom: Findings,
    /// Second and later records of an event.
    pub duplicate: Findings,
    /// Behind a later event of its key, or in another partition than its key.
    pub reordered: Findings,
    /// Another topic, key, value or header than was written.
    pub corrupted: Findings,
}

impl Verdict {
    /// Whether nothing was found. A check of nothing is not right: it would pass where nothing was written.
    pub fn is_right(&self) -> bool {
        self.committed > 0 && self.findings().iter().all(|(_, findings)| findings.count == 0)
    }

    /// Each kind of fault with its findings.
    pub fn findings(&self) -> [(&'static str, &Findings); 5] {
        [
            ("lost", &self.lost),
            ("phantom", &self.phantom),
            ("duplicate", &self.duplicate),
            ("reordered", &self.reordered),
            ("corrupted", &self.corrupted),
        ]
    }
}

/// How many findings of a kind there are, with the first few.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Findings {
    /// All of them.
    pub count: usize,
    /// The first few.
    pub examples: Vec<Finding>,
}

impl Findings {
    pub(super) fn add(&mut self, finding: impl FnOnce() -> Finding) {
        self.count += 1;
        if self.examples.len() < EXAMPLES {
            self.examples.push(finding());
        }
    }
}

/// One fault: which event, where, and what is wrong with it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// The event's id, when it has one.
    pub id: Option<Uuid>,
    /// The topic it is in, or belongs in when it is lost.
    pub topic: String,
    /// Its key as text.
    pub key: String,
    /// Partition and offset; `None` when it is lost.
    pub place: Option<(i32, i64)>,
    /// What is wrong.
    pub fault: String,
}

impl Finding {
    pub(super) fn of(record: &Record, fault: &str) -> Finding {
        let key = record.key.as_deref().map(String::from_utf8_lossy);
        Finding {
            id: record.event_id(),
            topic: record.topic.clone(),
            key: key.map_or_else(|| "(null)".to_owned(), Into::into),
            place: Some((record.partition, record.offset)),
            fault: fault.to_owned(),
        }
    }

    pub(super) fn of_row(row: &Written, fault: &str) -> Finding {
        Finding {
            id: Some(row.id),
            topic: row.topic.to_string(),
            key: format!("{} (number {})", row.key, row.key_seq),
            place: None,
            fault: fault.to_owned(),
        }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.id {
            Some(id) => write!(f, "{id}")?,
            None => write!(f, "(no id)")?,
        }
        write!(f, " key {} in {}", self.key, self.topic)?;
        if let Some((partition, offset)) = self.place {
            write!(f, "[{partition}]@{offset}")?;
        }
        write!(f, ": {}", self.fault)
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut line = |label: &str, count: usize, note: &str| writeln!(f, "  {label:<16}{count:>10}{note}");
        line("committed", self.committed, "")?;
        line("rolled back", self.rolled_back, "")?;
        if self.indeterminate_present + self.indeterminate_absent > 0 {
            line("indeterminate", self.indeterminate_present, "  in Kafka (COMMIT's reply was lost)")?;
            line("", self.indeterminate_absent, "  not in Kafka")?;
        }
        line("records", self.records, "")?;
        for (kind, findings) in self.findings() {
            line(kind, findings.count, if findings.count == 0 { "" } else { "  <-" })?;
        }
        for (kind, findings) in self.findings() {
            for example in &findings.examples {
                writeln!(f, "  {kind}: {example}")?;
            }
            let more = findings.count - findings.examples.len();
            if more > 0 {
                writeln!(f, "  {kind}: and {more} more")?;
            }
        }
        if self.committed == 0 {
            writeln!(f, "  nothing was committed, so nothing is proved")?;
        }
        write!(
            f,
            "  {}",
            if self.is_right() { "right: every committed event once, in order" } else { "WRONG" }
        )
    }
}
