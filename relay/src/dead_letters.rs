//! Rows that cannot become the record they were meant to be, and what becomes of them with
//! `delivery.onPoison: DeadLetter`: a record of the dead-letter topic that says why.
//!
//! A dead letter takes the way of any record: it has the row's position, lies in the partition its key selects,
//! is in the ledger, and so is there exactly once after a crash. It always fits: what does not is left out and named
//! in a header, with the table that has it.
//!
//! [`reader`] reads dead letters back, [`replay`] sends them again, whole again where [`restore`] finds their rows.

pub mod reader;
pub mod replay;
pub mod restore;
