//! `doctor`: prints what was found.

use serde_json::json;

use super::{Format, print};
use crate::config::Config;
use crate::doctor;

/// Looks, prints, and answers whether a relay could deliver.
pub async fn doctor(config: &Config, format: Format) -> bool {
    let findings = doctor::examine(config).await;
    let well = doctor::is_well(&findings);
    match format {
        Format::Json => {
            print(format, String::new, || json!({"well": well, "findings": findings}));
        }
        Format::Text => {
            for finding in &findings {
                print(format, || finding.line(), || json!(finding));
            }
        }
    }
    well
}
