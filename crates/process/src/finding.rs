//! The findings of `doctor`: one line for each check, with a remedy.

use std::error::Error;
use std::io::Write;

use serde::Serialize;
use serde_json::json;

use crate::EXIT_UNAVAILABLE;

/// The result of a check.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Grade {
    /// No problem.
    Ok,
    /// The program works, but the finding deserves attention.
    Warn,
    /// The program cannot work.
    Problem,
}

/// A result with its explanation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// The name of the check.
    pub check: &'static str,
    pub result: Grade,
    pub message: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub remedy: Option<String>,
}

impl Finding {
    /// No problem.
    pub fn ok(check: &'static str, message: impl Into<String>) -> Finding {
        Finding { check, result: Grade::Ok, message: message.into(), remedy: None }
    }

    /// Deserves attention.
    pub fn warn(check: &'static str, message: impl Into<String>, remedy: impl Into<String>) -> Finding {
        Finding { check, result: Grade::Warn, message: message.into(), remedy: Some(remedy.into()) }
    }

    /// Has to be corrected.
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

/// Prints the findings, as lines or as JSON. Returns the exit code: [`EXIT_UNAVAILABLE`] if there is a problem,
/// otherwise 0.
pub fn report(findings: &[Finding], json: bool) -> i32 {
    let well = is_ok(findings);
    let lines = if json {
        vec![json!({"well": well, "findings": findings}).to_string()]
    } else {
        findings.iter().map(Finding::line).collect()
    };
    let mut out = std::io::stdout().lock();
    // The reader may have closed the pipe (`| head`); the exit code still counts.
    let _ = lines.iter().try_for_each(|line| writeln!(out, "{line}"));
    if well { 0 } else { EXIT_UNAVAILABLE }
}

/// The innermost source of an error, which tells the reader of a finding most.
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
    fn a_line_has_check_result_and_remedy_and_a_warning_is_no_problem() {
        let warn = Finding::warn("wal", "there is no limit", "set one");
        assert_eq!(warn.line(), "warn     wal                  there is no limit; set one");
        assert!(is_ok(&[warn, Finding::ok("a", "b")]));
        assert!(!is_ok(&[Finding::problem("a", "b", "c")]));
    }
}
