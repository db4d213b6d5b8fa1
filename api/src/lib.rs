//! The basket service around the `basket` crate: [`http`] accepts requests, [`postgres`] persists their results,
//! [`config`] reads the settings, [`service`] and [`bus`] wire the parts together, and [`doctor`] checks whether the
//! service can work.

pub mod auth;
pub mod bus;
pub mod config;
pub mod doctor;
pub mod housekeeping;
pub mod http;
pub mod metrics;
pub mod postgres;
pub mod server;
pub mod service;
pub mod spans;
