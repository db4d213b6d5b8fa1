//! The source database over plain SQL. Rows of the stream are not among it: they come through `pg_replication`.
//!
//! How it is connected to ([`connection`]), what is true of it ([`source`], [`columns`], [`publication`]), whether the stream has
//! all of the table's rows ([`table`]), who holds the slot ([`holder`]) and whom its creation waits for ([`awaited`]), what the
//! relay may do there ([`grants`]), what the relay stores in it ([`checkpoint`], with the snapshot
//! that says what may be dropped, [`delivered`]), and the two things done to the table: its old rows are read
//! ([`backfill`]), its partitions are made and dropped ([`maintenance`]).

pub mod awaited;
pub mod backfill;
pub mod checkpoint;
pub mod columns;
pub mod connection;
pub mod delivered;
mod encrypted;
pub mod grants;
pub mod holder;
pub mod maintenance;
pub mod publication;
pub mod source;
pub mod table;
