//! Reads the records of one partition: what scans, verification, dead letters and `doctor` have in common.

use std::time::Duration;

use rdkafka::consumer::{BaseConsumer, Consumer, ConsumerContext};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{BorrowedMessage, Message};
use rdkafka::{Offset, TopicPartitionList};

use crate::kafka::scanner::is_refusal;
use crate::topics::partitions::PartitionNumber;

/// Timeout of one poll, and so the delay after which a reader notices that it has to stop.
const POLL: Duration = Duration::from_millis(100);

pub(crate) enum Polled<'a> {
    Record(BorrowedMessage<'a>),
    /// The partition has no more records at present.
    End,
    /// The offset no longer exists, because of retention or a DeleteRecords request.
    OutOfRange,
    /// Kafka refused the request. Retrying cannot resolve the error.
    Refused(KafkaError),
    /// Nothing yet: poll again.
    Nothing,
}

/// Starts to read a partition at an offset, and stops to read any other.
pub(crate) fn assign<C: ConsumerContext>(
    consumer: &BaseConsumer<C>,
    topic: &str,
    partition: PartitionNumber,
    from: Offset,
) -> Result<(), KafkaError> {
    let mut assignment = TopicPartitionList::new();
    assignment.add_partition_offset(topic, partition.0, from)?;
    consumer.assign(&assignment)
}

/// Polls the assigned partition. A consumer may still return what it fetched for the partition that was assigned before:
/// that is skipped.
pub(crate) fn poll<'a, C: ConsumerContext>(
    consumer: &'a BaseConsumer<C>,
    topic: &str,
    partition: PartitionNumber,
) -> Polled<'a> {
    match consumer.poll(POLL) {
        Some(Ok(message)) if message.partition() == partition.0 && message.topic() == topic => {
            Polled::Record(message)
        }
        Some(Err(KafkaError::PartitionEOF(ended))) if ended == partition.0 => Polled::End,
        Some(Ok(_) | Err(KafkaError::PartitionEOF(_))) | None => Polled::Nothing,
        Some(Err(error)) if error.rdkafka_error_code() == Some(RDKafkaErrorCode::AutoOffsetReset) => {
            Polled::OutOfRange
        }
        Some(Err(error)) if is_refusal(&error) => Polled::Refused(error),
        Some(Err(error)) => {
            tracing::debug!(%error, topic, %partition, "reading a partition");
            Polled::Nothing
        }
    }
}
