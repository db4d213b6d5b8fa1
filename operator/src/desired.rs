//! What should be there: pure functions of the resource and what its Secrets hold.

pub mod configuration;
pub mod configuration_file;
pub mod files;
pub mod naming;
pub mod pod;
mod pod_overrides;
pub mod workload;
