//! The source database over plain SQL. Rows of the stream are not among it: they come through `pg_replication`.
//!
//! How it is connected to ([`connection`]), what is true of it ([`source`], [`columns`], [`publication`]), whether the stream has
//! all of the table's rows ([`table`]), who holds the slot ([`holder`]) and whom its creation waits for ([`awaited`]), what the
//! relay may do there ([`grants`]), what the relay stores in it ([`checkpoint`], with the snapshot
//! that says what may be dropped, [`delivered`]), and the two things done to the table: its old rows are read
//! ([`backfill`]), its partitions are made and dropped ([`maintenance`]).

pub mod backfill;
pub mod blocking_transactions;
pub mod checkpoint;
pub mod columns;
pub mod connection;
pub mod delivered_snapshots;
pub mod grants;
pub mod preconditions;
pub mod publication;
pub mod slot;
pub mod slot_holder;
mod sql_over_tls;
pub mod table;
