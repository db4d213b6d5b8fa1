//! One event: the outbox [`row`] it is read from and the Kafka [`record`] it becomes. Pure.

pub mod column_type;
pub mod dead_letter;
pub mod decoded_row;
pub mod poison;
pub mod record;
pub mod row;
pub mod value;
