//! How things look in a terminal: colour where the terminal has it and NO_COLOR is not set, or where `CLICOLOR_FORCE` asks for it.

use std::io::IsTerminal;
use std::sync::OnceLock;

use crate::Failure;

/// Environment variable that asks for colours where there is no terminal (bixense.com/clicolors).
pub const FORCED: &str = "CLICOLOR_FORCE";

/// SGR code of a heading: bold.
pub const HEADING: &str = "1";
/// Of something good: green.
pub const GOOD: &str = "32";
/// Of something bad: red.
pub const BAD: &str = "31";
/// Of something to look at: cyan.
pub const NOTABLE: &str = "36";
/// Of something less important.
pub const FAINT: &str = "2";

fn colours() -> bool {
    static COLOURS: OnceLock<bool> = OnceLock::new();
    let value = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty());
    *COLOURS.get_or_init(|| match value(FORCED) {
        Some(forced) if forced != "0" => true,
        _ => std::io::stdout().is_terminal() && value("NO_COLOR").is_none(),
    })
}

fn painted(code: &str, text: &str) -> String {
    if colours() { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
}

/// A heading.
pub fn heading(text: &str) -> String {
    format!("\n{}", painted(HEADING, text))
}

/// Something good.
pub fn good(text: &str) -> String {
    painted(GOOD, text)
}

/// Something bad.
pub fn bad(text: &str) -> String {
    painted(BAD, text)
}

/// Something to look at.
pub fn notable(text: &str) -> String {
    painted(NOTABLE, text)
}

/// Something less important.
pub fn faint(text: &str) -> String {
    painted(FAINT, text)
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
