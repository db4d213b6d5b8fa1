//! Reads records back from a topic, for commands. All calls block.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::{Duration, Instant};

use chrono::{DateTime, Utc};
use rdkafka::TopicPartitionList;
use rdkafka::consumer::{BaseConsumer, Consumer, DefaultConsumerContext};
use rdkafka::error::KafkaError;
use rdkafka::message::{BorrowedMessage, Message};

use crate::config::Sink;
use crate::kafka::client::{self, reader_config};
use crate::kafka::partition_reader::{self, Polled};
use crate::kafka::scanner::partition_count;
use crate::progress::offset::{Offset, OffsetRange};
use crate::topics::partitions::PartitionNumber;

/// Timeout of one request for metadata, watermarks or offsets.
const REQUEST: Duration = Duration::from_secs(10);
/// A read that receives nothing for this long fails: a person is waiting for it.
const STALLED_AFTER: Duration = Duration::from_secs(30);

#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// Kafka does not respond, or rejects the request.
    #[error("cannot read topic {topic}: {source}")]
    Kafka { topic: String, source: KafkaError },
    #[error("topic {0} does not exist")]
    NoSuchTopic(String),
    #[error(
        "topic {topic}: no record arrived for {STALLED_AFTER:?}, although partition {partition} has more"
    )]
    Stalled { topic: String, partition: PartitionNumber },
    /// The partition got shorter.
    #[error(
        "topic {topic}: partition {partition} ends at offset {end}, although it had records up to offset {until}; its leader \
         may have lost records"
    )]
    EndedEarly { topic: String, partition: PartitionNumber, end: Offset, until: Offset },
}

pub struct TopicReader {
    consumer: Arc<BaseConsumer>,
}

/// The offsets of a partition that a read covers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PartitionRange {
    /// The first offset that still exists. Retention has removed the records before it.
    pub low: Offset,
    pub range: OffsetRange,
}

impl TopicReader {
    /// Does not connect yet. `purpose` tells the readers of the relay apart in Kafka.
    pub fn new(sink: &Sink, purpose: &str) -> Result<TopicReader, KafkaError> {
        let mut config = reader_config(sink, purpose);
        config.set("auto.offset.reset", "earliest");
        Ok(TopicReader { consumer: client::create(sink, &config, DefaultConsumerContext)? })
    }

    /// Partitions of a topic; 0 if it does not exist.
    pub fn partitions(&self, topic: &str) -> Result<i32, ReadError> {
        partition_count(&*self.consumer, topic, REQUEST).map_err(failed(topic))
    }

    /// Passes every record now in the topic to `take`, partition by partition, until it breaks. With `since`, only
    /// those with that timestamp and those after them.
    pub fn read(
        &self,
        topic: &str,
        since: Option<DateTime<Utc>>,
        mut take: impl FnMut(&BorrowedMessage<'_>) -> ControlFlow<()>,
    ) -> Result<(), ReadError> {
        let partitions = self.partitions(topic)?;
        if partitions == 0 {
            return Err(ReadError::NoSuchTopic(topic.to_owned()));
        }
        for partition in (0..partitions).map(PartitionNumber) {
            let PartitionRange { range, .. } = self.range(topic, partition, since)?;
            if self.read_partition(topic, partition, range, &mut take)?.is_break() {
                break;
            }
        }
        Ok(())
    }

    /// The offsets that a partition has now; with `since`, from the first record with that timestamp on.
    pub fn range(
        &self,
        topic: &str,
        partition: PartitionNumber,
        since: Option<DateTime<Utc>>,
    ) -> Result<PartitionRange, ReadError> {
        self.find_range(topic, partition, since).map_err(failed(topic))
    }

    fn find_range(
        &self,
        topic: &str,
        partition: PartitionNumber,
        since: Option<DateTime<Utc>>,
    ) -> Result<PartitionRange, KafkaError> {
        let (low, high) = self.consumer.fetch_watermarks(topic, partition.0, REQUEST)?;
        let from = match since {
            None => low,
            Some(since) => {
                let mut times = TopicPartitionList::new();
                let millis = rdkafka::Offset::Offset(since.timestamp_millis());
                times.add_partition_offset(topic, partition.0, millis)?;
                let found = self.consumer.offsets_for_times(times, REQUEST)?;
                // Kafka returns no offset, or the end, if no record is that late.
                let found = found.elements().first().and_then(|element| element.offset().to_raw());
                found.filter(|from| *from >= 0).unwrap_or(high)
            }
        };
        let range = OffsetRange { from: Offset(from), until: Offset(high) };
        Ok(PartitionRange { low: Offset(low), range })
    }

    /// Passes the records of `range` to `take`, until it breaks.
    pub fn read_partition(
        &self,
        topic: &str,
        partition: PartitionNumber,
        range: OffsetRange,
        take: &mut impl FnMut(&BorrowedMessage<'_>) -> ControlFlow<()>,
    ) -> Result<ControlFlow<()>, ReadError> {
        if range.count() <= 0 {
            return Ok(ControlFlow::Continue(()));
        }
        let from = rdkafka::Offset::Offset(range.from.0);
        partition_reader::assign(&self.consumer, topic, partition, from).map_err(failed(topic))?;
        let (mut progress, mut next, mut resumed) = (Instant::now(), range.from, None);
        loop {
            match partition_reader::poll(&self.consumer, topic, partition) {
                Polled::Record(message) if message.offset() >= range.until.0 => {
                    return Ok(ControlFlow::Continue(()));
                }
                Polled::Record(message) => {
                    next = Offset(message.offset()).next();
                    let last = next >= range.until;
                    let taken = take(&message);
                    if last || taken.is_break() {
                        return Ok(taken);
                    }
                    // Not earlier: `take` may block.
                    progress = Instant::now();
                }
                // Only control records are left.
                Polled::End if resumed == Some(next) => return Ok(ControlFlow::Continue(())),
                Polled::End => {
                    self.check_end(topic, partition, range.until)?;
                    let from = rdkafka::Offset::Offset(next.0);
                    partition_reader::assign(&self.consumer, topic, partition, from)
                        .map_err(failed(topic))?;
                    resumed = Some(next);
                }
                Polled::Refused(error) => tracing::debug!(%error, "reading a topic"),
                Polled::OutOfRange | Polled::Nothing => {}
            }
            if progress.elapsed() > STALLED_AFTER {
                return Err(ReadError::Stalled { topic: topic.to_owned(), partition });
            }
        }
    }

    /// A new leader may not have, or not know yet, what the earlier one had.
    fn check_end(&self, topic: &str, partition: PartitionNumber, until: Offset) -> Result<(), ReadError> {
        let (_, high) = self.consumer.fetch_watermarks(topic, partition.0, REQUEST).map_err(failed(topic))?;
        if Offset(high) < until {
            let (topic, end) = (topic.to_owned(), Offset(high));
            return Err(ReadError::EndedEarly { topic, partition, end, until });
        }
        Ok(())
    }
}

/// The error of a request about `topic`.
pub fn failed(topic: &str) -> impl FnOnce(KafkaError) -> ReadError {
    |source| ReadError::Kafka { topic: topic.to_owned(), source }
}
