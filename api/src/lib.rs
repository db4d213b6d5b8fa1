//! The basket service around the `basket` crate: [`http`] brings wishes in, [`postgres`] keeps what comes of them,
//! [`config`] says where and how, [`service`] wires it all together, and [`doctor`] looks whether it can work.

pub mod auth;
pub mod config;
pub mod doctor;
pub mod housekeeping;
pub mod http;
pub mod metrics;
pub mod postgres;
pub mod server;
pub mod service;
pub mod spans;
