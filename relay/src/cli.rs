//! The commands besides `run`: they look, and change nothing, but `dead-letters replay`, which asks the running relay
//! to send.

pub mod admin_client;
pub mod dead_letters;
pub mod lag;

use std::io::Write;

use serde_json::Value;

/// How a command answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// Lines for people.
    Text,
    /// JSON for machines.
    Json,
}

/// Prints one line: `text` for people, `json` for machines. Whoever read them may have gone (`| head`): then nothing
/// is left to do, and `false` is the answer.
fn print(format: Format, text: impl FnOnce() -> String, json: impl FnOnce() -> Value) -> bool {
    let line = match format {
        Format::Text => text(),
        Format::Json => json().to_string(),
    };
    let mut out = std::io::stdout().lock();
    writeln!(out, "{line}").and_then(|()| out.flush()).is_ok()
}
