//! What an audit found, for people and for machines.

use std::collections::BTreeMap;
use std::fmt::Write;

use chrono::{DateTime, SecondsFormat, Utc};
use serde::Serialize;

use super::compared_rows::{MissingRow, Period};
use super::comparison::{Counts, FoundRecord};
use super::topic_records::ReadTopic;
use crate::error::excerpt;

/// Rows and records of one kind that are shown to people; all of them are in the JSON.
const SHOWN: usize = 10;

/// A row without a record, and why that proves nothing.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub struct UnverifiableRow {
    #[serde(flatten)]
    pub row: MissingRow,
    pub reason: String,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Report {
    #[serde(flatten)]
    pub period: Period,
    #[serde(flatten)]
    pub counts: Counts,
    /// A later row with the same id was written.
    pub republished: u64,
    pub missing: Vec<MissingRow>,
    pub duplicates: Vec<FoundRecord>,
    pub phantoms: Vec<FoundRecord>,
    pub out_of_order: Vec<FoundRecord>,
    pub unverifiable: Vec<UnverifiableRow>,
    pub topics: BTreeMap<String, ReadTopic>,
}

impl Report {
    /// Whether every confirmed row was found once, in order, and nothing else.
    pub fn is_clean(&self) -> bool {
        self.missing.is_empty()
            && self.unverifiable.is_empty()
            && self.duplicates.is_empty()
            && self.phantoms.is_empty()
            && self.out_of_order.is_empty()
    }

    pub fn text(&self) -> String {
        let mut text = String::new();
        let mut line = |what: &str, value: String| {
            // Writing to a String cannot fail.
            let _ = writeln!(text, "{what:<13} {value}");
        };
        let Report { period, counts, topics, .. } = self;
        line("period", format!("{} to {}", shown(period.since), shown(period.until)));
        for (name, topic) in topics {
            line("topic", topic.text(name));
        }
        line("rows", counts.rows.to_string());
        line("delivered", counts.delivered.to_string());
        for (what, count) in [
            ("dead letters", counts.dead_letters),
            ("republished", self.republished),
            ("waiting", counts.waiting),
        ] {
            if count > 0 {
                line(what, count.to_string());
            }
        }
        list("missing", &self.missing, MissingRow::text, &mut line);
        list("duplicates", &self.duplicates, FoundRecord::text, &mut line);
        list("phantoms", &self.phantoms, FoundRecord::text, &mut line);
        list("out of order", &self.out_of_order, FoundRecord::text, &mut line);
        if !self.unverifiable.is_empty() {
            let text = |found: &UnverifiableRow| format!("{}: {}", found.row.text(), found.reason);
            list("unverifiable", &self.unverifiable, text, &mut line);
        }
        text.truncate(text.trim_end().len());
        text
    }
}

fn list<T>(what: &str, found: &[T], text: impl Fn(&T) -> String, line: &mut impl FnMut(&str, String)) {
    line(what, found.len().to_string());
    for found in found.iter().take(SHOWN) {
        line("", text(found));
    }
    if found.len() > SHOWN {
        line("", format!("and {} more: --json shows all", found.len() - SHOWN));
    }
}

pub fn shown(time: DateTime<Utc>) -> String {
    time.to_rfc3339_opts(SecondsFormat::AutoSi, true)
}

impl ReadTopic {
    fn text(&self, name: &str) -> String {
        if self.partitions == 0 {
            return format!("{name} does not exist");
        }
        let mut text = format!("{name}: {} records in {} partitions", self.records, self.partitions);
        if let Some(since) = self.complete_since {
            text.push_str(&format!("; retention has removed records from before {}", shown(since)));
        }
        if self.compacted {
            text.push_str("; compacted");
        }
        text
    }
}

impl MissingRow {
    fn text(&self) -> String {
        // Escaped, so that it stays on one line.
        let text = |value: &Option<String>| {
            value.as_ref().map_or("NULL".to_owned(), |value| excerpt(value).escape_debug().to_string())
        };
        let MissingRow { seq, id, occurred_at, event_type, key, .. } = self;
        let (event_type, key) = (text(event_type), text(key));
        format!("{id} of {}, seq {seq}, type {event_type}, key {key}", shown(*occurred_at))
    }
}

impl FoundRecord {
    fn text(&self) -> String {
        format!("{} of {}: {}", self.id.escape_debug(), shown(self.time), self.location)
    }
}
