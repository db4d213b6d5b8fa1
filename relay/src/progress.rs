//! What is safely in Kafka. Pure: nothing here reads a clock, a socket or a file.
//!
//! [`ledger`] knows it of the stream's transactions, [`cursor`] of rows that are copied, [`high_mark`] of one partition.
//! [`found`] which events were seen. [`lineage`] says which positions are of the server's own past.

pub mod fingerprints;
pub mod ledger;
pub mod lineage;
pub mod partition_dedup;
pub mod phantoms;
pub mod snapshot_cursor;
