//! `doctor`: looks whether a relay with this configuration could deliver, and says of each thing whether it is right,
//! and what to do if it is not. It changes nothing: the slot is not taken, nothing is created, nothing is produced.
//!
//! A check is a small function that returns a finding. What the relay itself checks is asked in the relay's own words,
//! so that both say the same.

mod database;
mod kafka;

use std::collections::BTreeMap;

use serde::Serialize;

use crate::config::Config;
use crate::trouble::Trouble;

/// topic -> number of partitions that were written to.
type Topics = BTreeMap<String, i32>;

/// How a check ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Grade {
    /// As it should be.
    Ok,
    /// The relay works, but something is worth a look.
    Warn,
    /// The relay cannot deliver.
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
    fn ok(check: &'static str, message: impl Into<String>) -> Finding {
        Finding { check, result: Grade::Ok, message: message.into(), remedy: None }
    }

    fn warn(check: &'static str, message: impl Into<String>, remedy: impl Into<String>) -> Finding {
        Finding { check, result: Grade::Warn, message: message.into(), remedy: Some(remedy.into()) }
    }

    fn problem(check: &'static str, message: impl Into<String>, remedy: impl Into<String>) -> Finding {
        Finding { check, result: Grade::Problem, message: message.into(), remedy: Some(remedy.into()) }
    }

    fn trouble(check: &'static str, trouble: &Trouble) -> Finding {
        Finding::problem(check, trouble.what.clone(), trouble.reason.remedy())
    }

    /// One line.
    pub fn line(&self) -> String {
        let result = match self.result {
            Grade::Ok => "ok",
            Grade::Warn => "warn",
            Grade::Problem => "problem",
        };
        let remedy = self.remedy.as_ref().map_or_else(String::new, |remedy| format!("; {remedy}"));
        format!("{result:<8} {:<20} {}{remedy}", self.check, self.message)
    }
}

/// What a check found, where asking may fail.
fn found(check: &'static str, looked: Result<Finding, Trouble>) -> Finding {
    looked.unwrap_or_else(|trouble| Finding::trouble(check, &trouble))
}

/// Makes every check that can be made.
pub async fn examine(config: &Config) -> Vec<Finding> {
    let mut findings = vec![Finding::ok("configuration", format!("relay '{}' is well-formed", config.name))];
    let examined = database::examine(config).await;
    findings.extend(examined.findings);
    findings.extend(kafka::examine(config, examined.topics).await);
    findings
}

/// Whether a relay could deliver.
pub fn is_well(findings: &[Finding]) -> bool {
    findings.iter().all(|finding| finding.result != Grade::Problem)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_says_what_how_and_what_to_do_and_a_warning_is_no_problem() {
        let warn = Finding::warn("wal", "there is no limit", "set one");
        assert_eq!(warn.line(), "warn     wal                  there is no limit; set one");
        assert!(is_well(&[warn, Finding::ok("a", "b")]));
        assert!(!is_well(&[Finding::problem("a", "b", "c")]));
    }
}
