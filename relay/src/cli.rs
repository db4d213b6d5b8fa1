//! The commands besides `run`. They change nothing, except `dead-letters replay`, which asks the running relay to send.

pub mod admin_client;
pub mod dead_letters;
pub mod lag;
pub mod locate;

use std::io::Write;

use serde_json::Value;

/// Output format of a command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// Lines for people.
    Text,
    /// JSON for machines.
    Json,
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
