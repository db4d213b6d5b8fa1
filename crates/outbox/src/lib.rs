#![cfg_attr(feature = "sqlx", doc = include_str!("../README.md"))]
#![cfg_attr(
    not(feature = "sqlx"),
    doc = "The contract between the writers of an outbox table and the relay that reads it."
)]
#![warn(missing_docs)]

#[cfg(feature = "sqlx")]
mod append;
pub mod attribute;
pub mod column;
mod event;
pub mod header;
mod position;

#[cfg(feature = "sqlx")]
pub use append::{AppendError, append, push_insert};
pub use event::{
    Event, InvalidEvent, MAX_AGGREGATE_ID_BYTES, MAX_PAYLOAD_BYTES, MAX_TYPE_BYTES, TraceContext,
};
pub use position::{ParsePositionError, Position};
