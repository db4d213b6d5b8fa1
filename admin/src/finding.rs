//! What a program says that looks at what it needs (`doctor`): one finding a check, a line each, and what to do about it.

use std::error::Error;
use std::io::Write;

use serde::Serialize;
use serde_json::json;

use crate::EXIT_UNAVAILABLE;

/// How a check ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Grade {
    /// As it should be.
    Ok,
    /// The program works, but something is worth a look.
    Warn,
    /// The program cannot do its work.
    Problem,
}

/// What a check found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// What was looked at.
    pub check: &'static str,
    /// How it is.
    pub result: Grade,
    /// In words.
    pub message: String,
    /// What to do.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub remedy: Option<String>,
}

impl Finding {
    /// As it should be.
    pub fn ok(check: &'static str, message: impl Into<String>) -> Finding {
        Finding { check, result: Grade::Ok, message: message.into(), remedy: None }
    }

    /// Worth a look.
    pub fn warn(check: &'static str, message: impl Into<String>, remedy: impl Into<String>) -> Finding {
        Finding { check, result: Grade::Warn, message: message.into(), remedy: Some(remedy.into()) }
    }

    /// Has to be put right.
    pub fn problem(check: &'static str, message: impl Into<String>, remedy: impl Into<String>) -> Finding {
        Finding { check, result: Grade::Problem, message: message.into(), remedy: Some(remedy.into()) }
    }

    fn line(&self) -> String {
        let result = match self.result {
            Grade::Ok => "ok",
            Grade::Warn => "warn",
            Grade::Problem => "problem",
        };
        let remedy = self.remedy.as_ref().map_or_else(String::new, |remedy| format!("; {remedy}"));
        format!("{result:<8} {:<20} {}{remedy}", self.check, self.message)
    }
}

/// Prints what was found, as lines or as JSON. The exit code: [`EXIT_UNAVAILABLE`] if there is a problem, otherwise 0.
pub fn report(findings: &[Finding], json: bool) -> i32 {
    let well = is_ok(findings);
    let lines = if json {
        vec![json!({"well": well, "findings": findings}).to_string()]
    } else {
        findings.iter().map(Finding::line).collect()
    };
    let mut out = std::io::stdout().lock();
    // Whoever read them may have gone (`| head`); the exit code is for those who did not.
    let _ = lines.iter().try_for_each(|line| writeln!(out, "{line}"));
    if well { 0 } else { EXIT_UNAVAILABLE }
}

/// What lies behind an error: the words that those above it add say less to whoever reads a finding.
pub fn root_cause(error: &(dyn Error + 'static)) -> String {
    let mut innermost = error;
    while let Some(source) = innermost.source() {
        innermost = source;
    }
    innermost.to_string()
}

fn is_ok(findings: &[Finding]) -> bool {
    findings.iter().all(|finding| finding.result != Grade::Problem)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_says_what_how_and_what_to_do_and_a_warning_is_no_problem() {
        let warn = Finding::warn("wal", "there is no limit", "set one");
        assert_eq!(warn.line(), "warn     wal                  there is no limit; set one");
        assert!(is_ok(&[warn, Finding::ok("a", "b")]));
        assert!(!is_ok(&[Finding::problem("a", "b", "c")]));
    }
}
