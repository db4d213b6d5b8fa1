//! The topics that events are written to, as the relay knows them: the [`registry`] of topics and of their
//! [`partitions`] with the deduplication state, the [`settings`] that matter to a record and to its [`kafka_time`], and
//! changes while the relay runs ([`watch`]). Pure: nothing here queries Kafka.

pub mod kafka_time;
pub mod partitions;
pub mod registry;
pub mod settings;
pub mod watch;
