//! Everything that talks to Kafka.
//!
//! [`client`] is how every client is made. Records go out through [`sink`]. Questions block, so [`jobs`] asks them on the
//! threads of [`lanes`]: what a partition holds ([`search`], [`scan`], [`gaps`]), whether Kafka still is what is remembered
//! of it ([`inspect`]), and why a partition acknowledges nothing ([`health`]). [`watchdog`] notices producers that are
//! stuck, [`credentials`] files that changed; [`error`] says what an error code means.

mod call_pool;
pub mod client;
pub mod credentials;
pub mod diagnosis;
pub mod error;
mod offset_gaps;
pub mod producers;
pub mod queries;
pub mod scan;
pub mod scanner;
pub mod verify;
pub mod watchdog;
