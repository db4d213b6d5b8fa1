//! Carries committed outbox rows from PostgreSQL to Kafka: no loss, no duplicates after a crash, commit order per key,
//! bounded memory.
//!
//! A folder is one concern. docs/ARCHITECTURE.md shows which names which, and follows one event through them.
//!
//! | folder | concern | start with |
//! |---|---|---|
//! | [`supervisor`], [`session`] | one session after another: decide how to start, take the slot, run the event loop | [`session::decision`], [`session::bootstrap`], [`session::event_loop`], [`session::slot_guard`] |
//! | [`delivery`] | the pipeline: stream messages become records, acknowledgements become progress | |
//! | [`dead_letters`] | dead letters read back | [`dead_letters::reader`] |
//! | [`replay`] | dead letters and rows of the table sent again | [`replay::rows`], [`replay::dead_letters`] |
//! | [`monitor`] | tasks beside the sessions: the observer, partition maintenance | [`monitor::observer`], [`monitor::maintenance`] |
//! | [`kafka`] | I/O: records out, queries about what Kafka holds | [`kafka::producers`], [`kafka::scanner`], [`kafka::verify`], [`kafka::queries`], [`kafka::watchdog`] |
//! | [`postgres`] | I/O: preconditions, publication, slot, checkpoint, the initial snapshot | [`postgres::preconditions`], [`postgres::publication`], [`postgres::checkpoint`], [`postgres::delivered_snapshots`], [`postgres::backfill`] |
//! | [`status`] | what users see: `/status`, `/readyz`, metrics | [`status::metrics`], [`status::heartbeat`] |
//! | [`topics`] | pure: topics and partitions as the relay knows them | [`topics::partitions`], [`topics::settings`], [`topics::watch`] |
//! | [`config`] | the configuration file | |
//! | [`routing`], [`event`] | pure: row to topic and partition; row to record | [`routing::mapping`], [`routing::router`], [`event::row`], [`event::record`] |
//! | [`progress`] | pure: what is safely in Kafka | [`progress::ledger`], [`progress::partition_dedup`], [`progress::snapshot_cursor`], [`progress::lineage`] |
//! | [`error`] | every error kind with its action and remedy | |
//! | [`cli`], [`doctor`] | the commands besides `run` | |
//!
//! At a [`failpoint`] a test makes the process die.

#[macro_use]
mod named;

pub mod cli;
pub mod config;
pub mod dead_letters;
pub mod delivery;
pub mod doctor;
pub mod error;
pub mod event;
pub mod failpoint;
pub mod kafka;
pub mod monitor;
pub mod postgres;
pub mod progress;
pub mod replay;
pub mod routing;
pub mod session;
pub mod status;
pub mod supervisor;
#[cfg(test)]
mod testing;
pub mod topics;
