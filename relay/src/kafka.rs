//! Everything that talks to Kafka.
//!
//! [`client`] is how every client is made. Records go out through [`sink`]. Questions block, so [`jobs`] asks them on the
//! threads of [`lanes`]: what a partition holds ([`search`], [`scan`], [`gaps`]), whether Kafka still is what is remembered
//! of it ([`inspect`]), and why a partition acknowledges nothing ([`health`]). [`watchdog`] notices producers that are
//! stuck, [`credentials`] files that changed; [`error`] says what an error code means.

pub mod client;
pub mod credentials;
pub mod error;
mod gaps;
pub mod health;
pub mod inspect;
pub mod jobs;
mod lanes;
pub mod scan;
pub mod search;
pub mod sink;
pub mod watchdog;
