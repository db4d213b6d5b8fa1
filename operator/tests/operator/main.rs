//! The operator against what people apply.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test that meets the unexpected should fail there and then"
)]

mod alerts;
mod away;
mod chart;
mod cluster;
mod conditions;
mod dashboard;
mod desired;
mod doctor;
mod drift;
mod failover;
mod gitops;
mod happy;
mod isolation;
mod kills;
mod leadership;
mod lifecycle;
mod monitoring;
mod objects;
mod openshift;
mod ownership;
mod page;
mod plain;
mod plugin;
mod references;
mod refused;
mod rendered;
mod rights;
mod rules;
mod samples;
mod scale;
mod secrets;
mod sides;
mod stage;
mod stumbling;
mod tokens;
mod topics;
mod truth;
mod values;
mod versions;
mod written;
