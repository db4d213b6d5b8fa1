//! Carries committed outbox rows from Postgres to Kafka: no loss, no duplicates after a crash, commit order per
//! key, bounded memory.
//!
//! A folder is one concern. docs/ARCHITECTURE.md shows which names which, and follows one event through them.
//!
//! | folder | concern | in it |
//! |---|---|---|
//! | [`relay`], [`session`] | sessions one after another; each judges what it finds, takes the slot and pumps the stream | [`session::decision`], [`session::bootstrap`], [`session::event_loop`], [`session::slot_guard`] |
//! | [`delivery`] | strings the middle together: message to record, acknowledgement to progress | |
//! | [`dead_letter`] | what cannot be delivered | |
//! | [`kafka`] | I/O: records out, questions about what Kafka has | [`kafka::producers`], [`kafka::scanner`], [`kafka::verify`], [`kafka::queries`], [`kafka::watchdog`] |
//! | [`postgres`] | I/O: what is true of the database, what is stored in it, rows from before the slot | [`postgres::preconditions`], [`postgres::publication`], [`postgres::checkpoint`], [`postgres::delivered_snapshots`], [`postgres::backfill`], [`postgres::maintenance`] |
//! | [`topics`] | pure: topics and partitions as the relay knows them | [`topics::partitions`], [`topics::settings`], [`topics::watch`] |
//! | [`progress`] | pure: what is safely in Kafka | [`progress::ledger`], [`progress::partition_dedup`], [`progress::snapshot_cursor`], [`progress::lineage`] |
//! | [`event`], [`routing`] | pure: row to record; row to topic and partition | [`event::row`], [`event::record`], [`routing::mapping`], [`routing::router`] |
//! | [`status`] | what people see | [`status::metrics`], [`status::observer`], [`status::heartbeat`] |
//! | [`trouble`], [`config`] | what can go wrong, and what to do; what is configured | |
//! | [`cli`], [`doctor`] | the commands besides `run` | |
//!
//! At a [`failpoint`] a test makes the process die.

pub mod cli;
pub mod config;
pub mod dead_letter;
pub mod delivery;
pub mod doctor;
pub mod error;
pub mod event;
pub mod failpoint;
pub mod kafka;
#[cfg(test)]
mod model;
pub mod postgres;
pub mod progress;
pub mod routing;
pub mod session;
pub mod status;
pub mod supervisor;
pub mod topics;
