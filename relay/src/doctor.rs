//! `doctor`: looks whether a relay with this configuration could deliver, and says of each thing whether it is right,
//! and what to do if it is not. It changes nothing: the slot is not taken, nothing is created, nothing is produced.
//!
//! A check is a small function that returns a finding. What the relay itself checks is asked in the relay's own words,
//! so that both say the same.

mod database;
mod kafka;
mod walsender;

use std::collections::BTreeMap;

use admin::Finding;

use crate::config::Config;
use crate::error::RelayError;

/// topic -> number of partitions that were written to.
type Topics = BTreeMap<String, i32>;

/// Makes every check that can be made.
pub async fn examine(config: &Config) -> Vec<Finding> {
    let mut findings = vec![Finding::ok("configuration", format!("relay '{}' is well-formed", config.name))];
    let examined = database::examine(config).await;
    findings.extend(examined.findings);
    findings.extend(kafka::examine(config, examined.topics).await);
    findings
}

/// What a check found, where asking may fail.
fn found(check: &'static str, looked: Result<Finding, RelayError>) -> Finding {
    looked.unwrap_or_else(|error| problem(check, &error))
}

fn problem(check: &'static str, error: &RelayError) -> Finding {
    Finding::problem(check, error.detail.clone(), error.kind.remedy())
}
