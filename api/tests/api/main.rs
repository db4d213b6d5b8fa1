//! The service as its clients meet it: the real program, over real HTTP, on a real PostgreSQL.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test that meets the unexpected should fail there and then"
)]

mod alerts;
mod audit;
mod chart;
mod commands;
mod connections;
mod contract;
mod doctor;
mod errors;
mod housekeeping;
mod idempotency;
mod items;
mod limits;
mod lists;
mod memory;
mod migrations;
mod options;
mod outages;
mod privileges;
mod service;
mod stored;
mod tokens;
mod wire;
