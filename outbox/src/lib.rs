//! The contract between the services that write an outbox table and the relay that carries its rows to Kafka.
//!
//! - [`Event`]: one row, checked when it is made, so that what was committed can be delivered.
//! - [`append`] (feature `sqlx`): writes events in the caller's transaction; [`push_insert`] makes them part of the
//!   statement that changes the state. No function writes an event alone, because then state and event could differ.
//! - [`column`] and [`header`]: the names both sides agree on. The columns are those of Debezium's outbox event
//!   router and four more; the headers are the CloudEvents Kafka binding's.
//! - [`attribute`]: what CloudEvents allows as the value of an attribute.
//! - [`Position`]: where an event stands in the history of its database, carried by every Kafka record.

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
