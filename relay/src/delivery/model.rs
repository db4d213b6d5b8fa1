//! Properties of delivery: the real [`Delivery`](super::Delivery) between a stream and Kafka in memory, in processes
//! that may die at any step.

mod crashes;
mod memory_kafka;
mod outbox_stream;
mod process;
mod routing_changes;

pub(super) use self::memory_kafka::MemoryKafka;
