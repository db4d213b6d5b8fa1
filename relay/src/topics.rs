//! The topics that events are written to, as the relay knows them: their [`partitions`] with the deduplication state,
//! the [`settings`] that matter to a record, and changes while the relay runs ([`watch`]). Pure: nothing here queries
//! Kafka.

pub mod partitions;
pub mod settings;
pub mod watch;
