//! `doctor`: checks whether a relay with this configuration could deliver, and reports each problem with a remedy. It
//! changes nothing: it does not acquire the slot, creates nothing and produces nothing.
//!
//! A check is a small function that returns a finding. What the relay checks too is checked with the relay's own code,
//! so that both report the same.

mod database;
mod kafka;
mod walsender;

use std::collections::BTreeMap;

use process::Finding;

use crate::config::Config;
use crate::error::RelayError;

/// topic -> number of partitions that the checkpoint remembers.
type Topics = BTreeMap<String, i32>;

/// Runs every check that can be run.
pub async fn examine(config: &Config) -> Vec<Finding> {
    let mut findings = vec![Finding::ok("configuration", format!("relay '{}' is well-formed", config.name))];
    let examined = database::examine(config).await;
    findings.extend(examined.findings);
    findings.extend(kafka::examine(config, examined.topics).await);
    findings
}

/// The finding, or the error of the query as a finding.
fn found(check: &'static str, looked: Result<Finding, RelayError>) -> Finding {
    looked.unwrap_or_else(|error| problem(check, &error))
}

fn problem(check: &'static str, error: &RelayError) -> Finding {
    Finding::problem(check, error.detail.clone(), error.kind.remedy())
}
