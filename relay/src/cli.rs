//! The commands besides `run`. They change nothing, except the two that ask the running relay to
//! send events again.

pub mod admin_client;
pub mod audit;
pub mod dead_letters;
pub mod lag;
pub mod locate;
mod present_routing;
pub mod replay;

use std::fmt::{self, Display};
use std::io::Write;

use serde::Serialize;
use serde_json::Value;

use crate::progress::offset::Offset;
use crate::topics::partitions::PartitionNumber;

/// Output format of a command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// Lines for people.
    Text,
    /// JSON for machines.
    Json,
}

/// Where a record is.
#[derive(Clone, Debug, Serialize, PartialEq, Eq)]
pub struct RecordLocation {
    pub topic: String,
    pub partition: PartitionNumber,
    pub offset: Offset,
}

impl Display for RecordLocation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{} at offset {}", self.topic, self.partition, self.offset)
    }
}

/// Prints one line: `text` for people, `json` for machines. Returns false if the reader has closed the pipe (`| head`):
/// then nothing is left to print.
fn print(format: Format, text: impl FnOnce() -> String, json: impl FnOnce() -> Value) -> bool {
    let line = match format {
        Format::Text => text(),
        Format::Json => json().to_string(),
    };
    let mut out = std::io::stdout().lock();
    writeln!(out, "{line}").and_then(|()| out.flush()).is_ok()
}
