//! `dead-letters list` and `dead-letters replay`.

use std::ops::ControlFlow;

use chrono::{DateTime, Utc};
use serde_json::json;

use super::admin_client::{RequestError, request};
use super::{Format, print};
use crate::config::Config;
use crate::dead_letters::reader::Reader;
use crate::dead_letters::replay::{ReplayLine, ReplayOutcome, Replayed, Selection, Summary};
use crate::kafka::topic_reader::ReadError;

/// Path of the admin listener that replays dead letters.
pub const REPLAY_PATH: &str = "/dead-letters/replay";

/// Why a command failed.
#[derive(Debug, thiserror::Error)]
pub enum CommandError {
    /// No dead-letter topic is configured.
    #[error("delivery.deadLetterTopic is not set: this relay has no dead letters")]
    NoTopic,
    /// The topic cannot be read.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// The running relay rejected the replay.
    #[error("{0}; the running relay replays dead letters, because it knows their topics")]
    Ask(#[from] RequestError),
    /// The response ended early.
    #[error(
        "the response ended early: the results printed above are final, and more dead letters may have been sent"
    )]
    BrokeOff,
    /// Some could not be delivered.
    #[error("{0} of them were not sent")]
    Refused(u64),
    /// The topic could not be read to its end.
    #[error("not all were considered: {0}")]
    Incomplete(String),
}

/// Prints the dead letters now in the topic.
pub fn list(
    config: &Config,
    since: Option<DateTime<Utc>>,
    limit: Option<usize>,
    format: Format,
) -> Result<(), CommandError> {
    let topic = config.delivery.dead_letter_topic.as_deref().ok_or(CommandError::NoTopic)?;
    let mut left = limit.unwrap_or(usize::MAX);
    if left == 0 {
        return Ok(());
    }
    Reader::new(&config.sink, topic)?.read(since, |letter| {
        left -= 1;
        let printed = print(format, || letter.line(), || letter.json());
        if printed && left > 0 { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
    })?;
    Ok(())
}

/// Has the running relay replay dead letters, and prints the result of each.
pub fn replay(config: &Config, selection: &Selection, format: Format) -> Result<(), CommandError> {
    let selection = json!(selection).to_string();
    let mut refused = 0;
    for line in request(config.admin.listen, "POST", REPLAY_PATH, &selection)? {
        let line = line.map_err(|_| CommandError::BrokeOff)?;
        let line: ReplayLine = serde_json::from_str(&line).map_err(|_| CommandError::BrokeOff)?;
        print(format, || text(&line), || json!(line));
        match line {
            ReplayLine::Replayed(Replayed { outcome: ReplayOutcome::Sent { .. }, .. }) => {}
            ReplayLine::Replayed(_) => refused += 1,
            ReplayLine::Summary(Summary { error: Some(error), .. }) => {
                return Err(CommandError::Incomplete(error));
            }
            ReplayLine::Summary(_) if refused > 0 => return Err(CommandError::Refused(refused)),
            ReplayLine::Summary(_) => return Ok(()),
        }
    }
    // The summary is the last line.
    Err(CommandError::BrokeOff)
}

fn text(line: &ReplayLine) -> String {
    let (id, outcome) = match line {
        ReplayLine::Summary(summary) => return format!("{} sent, {} refused", summary.sent, summary.refused),
        ReplayLine::Replayed(Replayed { id, outcome }) => (id.as_deref().unwrap_or("-"), outcome),
    };
    match outcome {
        ReplayOutcome::Sent { topic, partition } => format!("sent     {id} to {topic}/{partition}"),
        ReplayOutcome::Refused { error } => format!("refused  {id}: {error}"),
        ReplayOutcome::Missing { error } => format!("missing  {id}: {error}"),
        ReplayOutcome::Unknown { error } => format!("unknown  {id}: {error}"),
    }
}
