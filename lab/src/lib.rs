//! What `cargo xtask` runs, for people and CI.
//!
//! Every command does its own set-up, shows what it does, and leaves nothing running.

pub mod asyncapi;
pub mod audit;
pub mod bench;
pub mod build;
pub mod charts;
pub mod cluster;
pub mod contract;
pub mod crds;
pub mod demo;
pub mod images;
pub mod openapi;
pub mod paint;
pub mod recording;
pub mod sbom;
pub mod shop;
pub mod site;
pub mod soak;
pub mod stack;
pub mod test;
pub mod up;

/// Why a command gave up. The chain is shown to a person, once.
pub type Failure = Box<dyn std::error::Error + Send + Sync>;
