//! Carries committed outbox rows from Postgres to Kafka: no loss, no duplicates after a crash, commit order per
//! key, bounded memory.
//!
//! One direction, one file each:
//!
//! | step | module |
//! |---|---|
//! | take the slot, judge what was found | [`session`], [`verdict`], [`lineage`], [`publication`] |
//! | what was in the table before the slot | [`start`], [`backfill`], [`cursor`] |
//! | own the stream, confirm to Postgres | [`pump`] |
//! | message to row | [`row`] |
//! | row to topic and partition | [`routing`], [`partitions`] |
//! | is it in Kafka already? | [`high_mark`], [`search`] |
//! | row to record, record to Kafka | [`record`], [`sink`] |
//! | what cannot be delivered | [`dead_letter`] |
//! | what is safely there | [`ledger`], [`checkpoint`], [`delivered`] |
//!
//! [`watchdog`] notices producers that are stuck, [`tenure`] that the slot may be somebody else's, and [`heartbeat`]
//! goes through all of it. [`delivery`] strings the middle together. [`trouble`] is the table of what can go wrong;
//! [`status`] and [`metrics`] are what people see, and [`observer`] keeps them true while the stream is away.
//! [`maintenance`] has partitions made and dropped. At a [`failpoint`] a test makes the process die.

pub mod backfill;
pub mod checkpoint;
pub mod cli;
pub mod config;
pub mod credentials;
pub mod cursor;
pub mod dead_letter;
pub mod delivered;
pub mod delivery;
pub mod doctor;
pub mod failpoint;
pub mod heartbeat;
pub mod high_mark;
pub mod inspect;
pub mod jobs;
pub mod kafka_error;
pub mod ledger;
pub mod lineage;
pub mod maintenance;
pub mod mapping;
pub mod metrics;
#[cfg(test)]
mod model;
pub mod observer;
pub mod partitions;
pub mod publication;
pub mod pump;
pub mod record;
pub mod relay;
pub mod routing;
pub mod row;
pub mod search;
pub mod session;
pub mod sink;
pub mod source;
pub mod start;
pub mod status;
pub mod tenure;
pub mod topic_settings;
pub mod topic_watch;
pub mod trouble;
pub mod verdict;
pub mod watchdog;
