//! How things look in a terminal: colour where the terminal has it and NO_COLOR is not set.

use std::io::IsTerminal;
use std::sync::OnceLock;

use crate::Failure;

fn colours() -> bool {
    static COLOURS: OnceLock<bool> = OnceLock::new();
    *COLOURS.get_or_init(|| {
        std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|v| v.is_empty())
    })
}

fn painted(code: &str, text: &str) -> String {
    if colours() { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
}

/// A heading.
pub fn heading(text: &str) -> String {
    format!("\n{}", painted("1", text))
}

/// Something good.
pub fn good(text: &str) -> String {
    painted("32", text)
}

/// Something bad.
pub fn bad(text: &str) -> String {
    painted("31", text)
}

/// Something to look at.
pub fn notable(text: &str) -> String {
    painted("36", text)
}

/// Something less important.
pub fn faint(text: &str) -> String {
    painted("2", text)
}

/// An error with its sources, a line each.
pub fn failure(failure: &Failure) -> String {
    let mut text = format!("{} {failure}", bad("error:"));
    let mut source = failure.source();
    while let Some(cause) = source {
        text.push_str(&format!("\n  because: {cause}"));
        source = cause.source();
    }
    text
}
