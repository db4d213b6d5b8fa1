//! `replay --missing`: the running relay sends the rows that an audit does not find in Kafka.

use std::collections::BTreeMap;
use std::fmt::Write;

use chrono::{DateTime, Utc};
use serde_json::{Value, json};

use super::{ROWS_PATH, Replay, ReplayError, follow, print_row, print_would_be_sent};
use crate::cli::audit::{AuditError, MissingRow, Period, Report, Scope, UnverifiableRow, examine, shown};
use crate::cli::{Format, print};
use crate::config::Config;
use crate::replay::from_table::{FoundRow, Selection};

/// Number of rows in one request, which limits its size.
const ROWS_PER_REQUEST: usize = 500;

/// What to do with the rows that are found.
#[derive(Clone, Copy, Debug)]
pub struct Choice {
    /// Rows of which it is not known whether they were delivered count as missing.
    pub include_unverifiable: bool,
    /// Nothing is sent.
    pub dry_run: bool,
}

/// Sends the missing rows of `scope` that have the type and the key of `selection`, with its name and its rate. If one
/// audit cannot compare so many, it does so in parts, from the oldest rows on.
pub async fn replay_missing(
    config: &Config,
    scope: &Scope,
    selection: &Selection,
    choice: Choice,
    format: Format,
) -> Result<(), ReplayError> {
    let (mut all, mut part) = (Replay::default(), scope.clone());
    loop {
        let report = match examine(config, &part).await {
            Err(AuditError::TooDifferent(until)) if until > part.since => {
                part.until = Some(until);
                continue;
            }
            examined => examined?,
        };
        let found = Found::of(report, &part, selection);
        print(format, || found.text(choice), || found.json());
        let rows = found.into_rows(choice);
        all.not_sent += rows.len() as u64;
        if !choice.dry_run {
            send(config, &rows, selection, format, &mut all)?;
        } else if !rows.iter().all(|row| print_row(&row.into(), format)) {
            return Ok(());
        }
        match part.until {
            Some(until) if all.summary.error.is_none() && part.until != scope.until => {
                part = Scope { since: until, ..scope.clone() };
            }
            _ => break,
        }
    }
    if choice.dry_run {
        print_would_be_sent(all.not_sent, format);
        return Ok(());
    }
    all.conclude(format)
}

/// Has the relay send rows, and adds what it reports to `all`, until an error. Blocks: nothing else runs in this process
/// meanwhile.
fn send(
    config: &Config,
    rows: &[MissingRow],
    selection: &Selection,
    format: Format,
    all: &mut Replay,
) -> Result<(), ReplayError> {
    for rows in rows.chunks(ROWS_PER_REQUEST) {
        let (name, rate) = (selection.name.clone(), selection.rate);
        let seqs = rows.iter().map(|row| row.seq).collect();
        let part = Selection { name, rate, seqs, ..Selection::default() };
        let Replay { summary, .. } = follow(config, ROWS_PATH, &json!(part).to_string(), format)?;
        all.summary.sent += summary.sent;
        all.summary.refused += summary.refused;
        all.not_sent -= summary.sent;
        if summary.error.is_some() {
            all.summary.error = summary.error;
            break;
        }
    }
    Ok(())
}

impl From<&MissingRow> for FoundRow {
    fn from(row: &MissingRow) -> Self {
        let MissingRow { seq, id, event_type, key, .. } = row.clone();
        FoundRow { seq, id: Some(id), event_type, key }
    }
}

/// What an audit found of the selected rows, and what it cannot know.
struct Found {
    period: Period,
    /// Retention has removed rows of the requested time, up to this one.
    rows_since: Option<DateTime<Utc>>,
    missing: Vec<MissingRow>,
    unverifiable: Vec<UnverifiableRow>,
    /// All rows that the checkpoint does not count as delivered.
    waiting: u64,
}

impl Found {
    fn of(report: Report, scope: &Scope, selection: &Selection) -> Found {
        let Report { period, counts, mut missing, mut unverifiable, .. } = report;
        let is = |wanted: &Option<String>, value: &Option<String>| wanted.is_none() || wanted == value;
        let is_selected =
            |row: &MissingRow| is(&selection.event_type, &row.event_type) && is(&selection.key, &row.key);
        missing.retain(is_selected);
        unverifiable.retain(|found| is_selected(&found.row));
        let rows_since = (period.since > scope.since).then_some(period.since);
        Found { period, rows_since, missing, unverifiable, waiting: counts.waiting }
    }

    /// The rows to send, in the order of `seq`.
    fn into_rows(self, choice: Choice) -> Vec<MissingRow> {
        let mut rows = self.missing;
        if choice.include_unverifiable {
            rows.extend(self.unverifiable.into_iter().map(|found| found.row));
            rows.sort_by_key(|row| row.seq);
        }
        rows
    }

    /// The reasons why rows are unverifiable, with the number of rows.
    fn reasons(&self) -> BTreeMap<&str, usize> {
        let mut reasons = BTreeMap::new();
        for found in &self.unverifiable {
            *reasons.entry(found.reason.as_str()).or_default() += 1;
        }
        reasons
    }

    fn text(&self, choice: Choice) -> String {
        let mut text = String::new();
        let mut line = |what: &str, value: String| {
            // Writing to a String cannot fail.
            let _ = writeln!(text, "{what:<13} {value}");
        };
        let Period { since, until } = self.period;
        line("period", format!("{} to {}", shown(since), shown(until)));
        if let Some(since) = self.rows_since {
            line(
                "",
                format!(
                    "the table has no rows from before {}: whether Kafka lacks any is not known",
                    shown(since)
                ),
            );
        }
        line("missing", self.missing.len().to_string());
        line(
            "unverifiable",
            match (self.unverifiable.len(), choice.include_unverifiable) {
                (0, _) => "0".to_owned(),
                (count, true) => format!("{count}, included"),
                (count, false) => format!("{count}, not sent without --include-unverifiable"),
            },
        );
        for (reason, count) in self.reasons() {
            line("", format!("{count}: {reason}"));
        }
        if self.waiting > 0 {
            line("waiting", format!("{}: the checkpoint does not count them as delivered yet", self.waiting));
        }
        text.truncate(text.trim_end().len());
        text
    }

    fn json(&self) -> Value {
        let Period { since, until } = self.period;
        json!({
            "since": since,
            "until": until,
            "rowsSince": self.rows_since,
            "missing": self.missing.len(),
            "unverifiable": self.unverifiable.len(),
            "reasons": self.reasons(),
            "waiting": self.waiting,
        })
    }
}

#[cfg(test)]
mod tests {
    use chrono::TimeDelta;

    use super::*;
    use crate::cli::audit::Counts;

    fn row(seq: i64, key: &str) -> MissingRow {
        MissingRow {
            seq,
            id: format!("e-{seq}"),
            occurred_at: DateTime::UNIX_EPOCH,
            event_type: Some("t.v1".into()),
            key: Some(key.into()),
            route: None,
            is_republished: false,
        }
    }

    fn found(selection: &Selection) -> Found {
        let unverifiable = |seq, key| UnverifiableRow { row: row(seq, key), reason: "compacted".into() };
        let epoch = DateTime::UNIX_EPOCH;
        let report = Report {
            period: Period { since: epoch + TimeDelta::days(2), until: epoch + TimeDelta::days(3) },
            counts: Counts { waiting: 5, ..Counts::default() },
            republished: 0,
            missing: vec![row(1, "a"), row(3, "b"), row(4, "a")],
            duplicates: Vec::new(),
            phantoms: Vec::new(),
            out_of_order: Vec::new(),
            unverifiable: vec![unverifiable(2, "a"), unverifiable(5, "b")],
            topics: BTreeMap::new(),
        };
        let scope = Scope { since: epoch, until: None, topics: Vec::new() };
        Found::of(report, &scope, selection)
    }

    #[test]
    fn the_rows_of_a_key_are_sent_in_their_order_and_doubtful_ones_only_when_asked_for() {
        let of_a = Selection { key: Some("a".into()), ..Selection::default() };
        let seqs = |include_unverifiable| {
            let rows = found(&of_a).into_rows(Choice { include_unverifiable, dry_run: false });
            rows.iter().map(|row| row.seq).collect::<Vec<_>>()
        };
        assert_eq!((seqs(false), seqs(true)), (vec![1, 4], vec![1, 2, 4]));
        let other = Selection { event_type: Some("other.v1".into()), ..Selection::default() };
        assert!(found(&other).missing.is_empty() && found(&other).unverifiable.is_empty());
    }

    #[test]
    fn what_is_not_known_is_said() {
        let found = found(&Selection::default());
        let text = found.text(Choice { include_unverifiable: false, dry_run: true });
        let lines: Vec<&str> = text.lines().map(str::trim).collect();
        let expected = [
            "period        1970-01-03T00:00:00Z to 1970-01-04T00:00:00Z",
            "the table has no rows from before 1970-01-03T00:00:00Z: whether Kafka lacks any is not known",
            "missing       3",
            "unverifiable  2, not sent without --include-unverifiable",
            "2: compacted",
            "waiting       5: the checkpoint does not count them as delivered yet",
        ];
        assert_eq!(lines, expected);
        assert_eq!(found.json()["reasons"], json!({"compacted": 2}));
    }
}
