//! Everything that talks to Kafka.
//!
//! [`client`] is how every client is made. Records go out through [`sink`]. Questions block, so [`jobs`] has them asked on threads of their own: what a
//! partition holds ([`search`]), and whether Kafka still is what is remembered of it ([`inspect`]). [`watchdog`]
//! notices producers that are stuck, [`credentials`] files that changed; [`error`] says what an error code means.

pub mod client;
pub mod credentials;
pub mod error;
pub mod inspect;
pub mod jobs;
pub mod search;
pub mod sink;
pub mod watchdog;
