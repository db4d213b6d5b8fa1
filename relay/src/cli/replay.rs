//! `replay` and `dead-letters replay`: the running relay sends events again.

pub mod missing;

use serde_json::json;

use super::admin_client::{RequestError, request};
use super::audit::AuditError;
use super::{Format, print};
use crate::config::Config;
use crate::error::RelayError;
use crate::replay::from_table::{DeliveredRows, FoundRow};
use crate::replay::lines::{ReplayLine, ReplayOutcome, Replayed, Summary};
use crate::replay::{from_dead_letters, from_table};

/// Path of the admin listener that replays dead letters.
pub const DEAD_LETTERS_PATH: &str = "/dead-letters/replay";
/// Path of the admin listener that replays rows.
pub const ROWS_PATH: &str = "/replay";

/// Why a command failed.
#[derive(Debug, thiserror::Error)]
pub enum ReplayError {
    /// The running relay rejected the replay.
    #[error("{0}; the running relay sends events again, because it knows their topics")]
    Ask(#[from] RequestError),
    #[error(
        "the response ended early: the results printed above are final, and more events may have been sent"
    )]
    BrokeOff,
    #[error("{0} of them were not sent")]
    Refused(u64),
    #[error("not all were considered: {0}")]
    Incomplete(String),
    #[error("{0}")]
    Database(RelayError),
    #[error(transparent)]
    Audit(#[from] AuditError),
}

impl From<RelayError> for ReplayError {
    fn from(error: RelayError) -> Self {
        ReplayError::Database(error)
    }
}

/// Has the running relay replay dead letters, and prints the result of each.
pub fn replay_dead_letters(
    config: &Config,
    selection: &from_dead_letters::Selection,
    format: Format,
) -> Result<(), ReplayError> {
    follow(config, DEAD_LETTERS_PATH, &json!(selection).to_string(), format)?.conclude(format)
}

/// Has the running relay replay rows, and prints the result of each.
pub fn replay_rows(
    config: &Config,
    selection: &from_table::Selection,
    format: Format,
) -> Result<(), ReplayError> {
    follow(config, ROWS_PATH, &json!(selection).to_string(), format)?.conclude(format)
}

/// Prints the rows that a replay would send. Needs no running relay.
pub async fn list_rows(
    config: &Config,
    selection: &from_table::Selection,
    format: Format,
) -> Result<(), ReplayError> {
    let mut rows = DeliveredRows::open(config, selection).await?;
    let mut count: u64 = 0;
    loop {
        let page = rows.next_page().await?;
        if page.is_empty() {
            print_would_be_sent(count, format);
            return Ok(());
        }
        for row in page {
            count += 1;
            if !print_row(&row, format) {
                return Ok(());
            }
        }
    }
}

/// What the relay reported.
#[derive(Default)]
struct Replay {
    summary: Summary,
    /// The number of selected events that are not in Kafka.
    not_sent: u64,
}

/// Has the running relay replay a selection, and prints the result of each event.
fn follow(config: &Config, path: &str, selection: &str, format: Format) -> Result<Replay, ReplayError> {
    let mut not_sent = 0;
    for line in request(config.admin.listen, "POST", path, selection)? {
        let line = line.map_err(|_| ReplayError::BrokeOff)?;
        let line: ReplayLine = serde_json::from_str(&line).map_err(|_| ReplayError::BrokeOff)?;
        let replayed = match line {
            ReplayLine::Replayed(replayed) => replayed,
            ReplayLine::Summary(summary) => return Ok(Replay { summary, not_sent }),
        };
        if !print(format, || text(&replayed), || json!(replayed)) {
            // The reader of the output is gone. The relay stops when this process does.
            return Err(ReplayError::BrokeOff);
        }
        if !matches!(replayed.outcome, ReplayOutcome::Sent { .. }) {
            not_sent += 1;
        }
    }
    // The summary is the last line.
    Err(ReplayError::BrokeOff)
}

impl Replay {
    /// Prints the summary, and fails unless all selected events are in Kafka.
    fn conclude(self, format: Format) -> Result<(), ReplayError> {
        let Replay { summary, not_sent } = self;
        let text = || format!("{} sent, {} refused", summary.sent, summary.refused);
        print(format, text, || json!(summary));
        match summary.error {
            Some(error) => Err(ReplayError::Incomplete(error)),
            None if not_sent > 0 => Err(ReplayError::Refused(not_sent)),
            None => Ok(()),
        }
    }
}

fn print_row(row: &FoundRow, format: Format) -> bool {
    print(format, || text_of_row(row), || json!(row))
}

fn print_would_be_sent(count: u64, format: Format) {
    print(format, || format!("{count} events would be sent"), || json!({"wouldBeSent": count}));
}

fn text_of_row(row: &FoundRow) -> String {
    // Escaped, so that it stays on one line.
    let shown = |value: &Option<String>| value.as_deref().unwrap_or("NULL").escape_debug().to_string();
    let FoundRow { seq, id, event_type, key } = row;
    format!("would send {} (seq {seq}, type {}, key {})", shown(id), shown(event_type), shown(key))
}

fn text(replayed: &Replayed) -> String {
    let id = replayed.id.as_deref().unwrap_or("-");
    match &replayed.outcome {
        ReplayOutcome::Sent { topic, partition } => format!("sent     {id} to {topic}/{partition}"),
        ReplayOutcome::Refused { error } => format!("refused  {id}: {error}"),
        ReplayOutcome::Missing { error } => format!("missing  {id}: {error}"),
        ReplayOutcome::Unknown { error } => format!("unknown  {id}: {error}"),
    }
}
