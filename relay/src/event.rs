//! One event: the [`row`] it is in the outbox, and the [`record`] it becomes in Kafka. Pure.

pub mod record;
pub mod row;
