//! The source database over SQL. The rows of the stream do not come this way: they arrive through `pg_replication`.
//!
//! [`connection`] connects. [`preconditions`], [`columns`], [`publication`] and [`table`] check that the relay can work
//! and that the stream carries every row of the table. [`slot_holder`] finds who holds the slot,
//! [`blocking_transactions`] what its creation waits for, [`failover`] what a promoted standby would have of it, and
//! [`grants`] the role's privileges. [`checkpoint`] stores the relay's progress, with the [`delivered_snapshots`] that say
//! which rows may be dropped, and [`missing_rows`] which ones may be missing in Kafka after a gap. [`initial_rows`] checks
//! the rows from before the slot, and [`backfill`] reads them. [`whole_row`] reads whole rows for a replay. [`heartbeat`] writes heartbeats.

pub mod backfill;
pub mod blocking_transactions;
pub mod checkpoint;
pub mod columns;
pub mod connection;
pub mod delivered_snapshots;
pub mod failover;
pub mod grants;
pub mod heartbeat;
pub mod initial_rows;
pub mod missing_rows;
pub mod preconditions;
pub mod publication;
pub mod slot;
pub mod slot_holder;
mod sql_over_tls;
pub mod table;
pub mod whole_row;
