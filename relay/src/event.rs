//! One event: the [`row`] it is in the outbox, and the [`record`] it becomes in Kafka. Pure.

pub mod column_type;
pub mod record;
pub mod row;
pub mod value;
