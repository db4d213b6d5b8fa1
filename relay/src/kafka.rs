//! All communication with Kafka.
//!
//! [`client`] creates every client, and [`tokens`] supplies those that authenticate with tokens. [`producers`] send
//! records. A [`query`] blocks, so [`queries`] runs it on the
//! threads of [`call_pool`]: what a partition contains ([`scanner`], [`scan`], [`offset_gaps`]), whether topics and
//! partitions still match the checkpoint ([`verify`]), and why a partition acknowledges nothing ([`diagnosis`]).
//! [`partition_reader`] polls one partition for all of them, and [`topic_reader`] reads a topic back for commands.
//! [`own_records`] tells this outbox's records from those of other producers, and [`evidence`] collects their events
//! for a refill.
//! [`watchdog`] detects producers that are stuck, [`credentials`] changed files. [`error_codes`] explains error codes.

mod call_pool;
pub mod client;
pub mod credentials;
pub mod diagnosis;
pub mod error_codes;
pub mod evidence;
mod offset_gaps;
pub mod own_records;
pub(crate) mod partition_reader;
pub mod producers;
pub mod queries;
pub mod query;
pub mod scan;
pub mod scanner;
pub mod tokens;
pub mod topic_reader;
pub mod verify;
pub mod watchdog;
