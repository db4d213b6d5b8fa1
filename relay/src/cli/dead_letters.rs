//! `dead-letters list`.

use std::ops::ControlFlow;

use chrono::{DateTime, Utc};

use super::{Format, print};
use crate::config::Config;
use crate::dead_letters::reader::Reader;
use crate::kafka::topic_reader::ReadError;

/// Why the command failed.
#[derive(Debug, thiserror::Error)]
pub enum ListError {
    #[error("delivery.deadLetterTopic is not set: this relay has no dead letters")]
    NoTopic,
    #[error(transparent)]
    Read(#[from] ReadError),
}

/// Prints the dead letters now in the topic.
pub fn list(
    config: &Config,
    since: Option<DateTime<Utc>>,
    limit: Option<usize>,
    format: Format,
) -> Result<(), ListError> {
    let topic = config.delivery.dead_letter_topic.as_deref().ok_or(ListError::NoTopic)?;
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
