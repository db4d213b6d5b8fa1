//! The topics events are written to, as the relay knows them: their [`partitions`] and high marks, the [`settings`]
//! that matter to a record, and what becomes of them while it runs ([`watch`]). Nothing here asks Kafka.

pub mod partitions;
pub mod settings;
pub mod watch;
