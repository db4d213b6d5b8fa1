//! What is safely in Kafka. Pure: no clock, no socket, no file.
//!
//! [`ledger`] tracks the stream's transactions, [`snapshot_cursor`] the rows of the initial snapshot,
//! [`partition_dedup`] the rows of one partition. [`fingerprints`] identify events that were seen in Kafka or in the
//! stream. [`lineage`] decides which positions belong to the server's timelines; [`phantoms`] are records at other
//! positions. [`offset`] has the types of offsets in a partition.

pub mod fingerprints;
pub mod ledger;
pub mod lineage;
pub mod offset;
pub mod partition_dedup;
pub mod phantoms;
pub mod snapshot_cursor;
