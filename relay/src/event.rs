//! One event: the [`row`] it is in the outbox, and the [`record`] it becomes in Kafka. Pure.

pub mod column_type;
pub mod dead_letter;
pub mod decoded_row;
pub mod poison;
pub mod record;
pub mod row;
pub mod value;
