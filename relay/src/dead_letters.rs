//! Rows that cannot become their record, and what happens to them with `delivery.onPoison: DeadLetter`: each becomes a
//! record of the dead-letter topic that says why.
//!
//! A dead letter is sent like any other record: it has the row's position, goes to the partition its key selects, and
//! is in the ledger, so it exists exactly once after a crash. It always fits: columns that do not fit are omitted and
//! listed in a header, together with the table that has them.
//!
//! [`reader`] reads dead letters back, and [`restore`] adds the omitted columns from the table while the row still exists.
//! [`replay`](crate::replay) sends them again.

pub mod reader;
pub mod restore;
