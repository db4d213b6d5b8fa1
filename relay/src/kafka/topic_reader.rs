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

/// The topic cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// Kafka does not respond, or rejects the request.
    #[error("cannot read topic {topic}: {source}")]
    Kafka {
        /// The topic's name.
        topic: String,
        /// librdkafka's error.
        source: KafkaError,
    },
    /// The topic does not exist.
    #[error("topic {0} does not exist")]
    NoSuchTopic(String),
    /// Nothing arrives before the end of the partition.
    #[error(
        "topic {topic}: no record arrived for {STALLED_AFTER:?}, although partition {partition} has more"
    )]
    Stalled { topic: String, partition: PartitionNumber },
}

/// Reads a topic.
pub struct TopicReader {
    consumer: Arc<BaseConsumer>,
    topic: String,
}

impl TopicReader {
    /// Does not connect yet. `purpose` tells the readers of the relay apart in Kafka.
    pub fn new(sink: &Sink, topic: &str, purpose: &str) -> Result<TopicReader, ReadError> {
        let failed = |source| ReadError::Kafka { topic: topic.to_owned(), source };
        let mut config = reader_config(sink, purpose);
        config.set("auto.offset.reset", "earliest");
        let consumer = client::create(sink, &config, DefaultConsumerContext).map_err(failed)?;
        Ok(TopicReader { consumer, topic: topic.to_owned() })
    }

    /// Partitions of a topic; 0 if it does not exist.
    pub fn partitions(&self, topic: &str) -> Result<i32, ReadError> {
        let failed = |source| ReadError::Kafka { topic: topic.to_owned(), source };
        partition_count(&*self.consumer, topic, REQUEST).map_err(failed)
    }

    /// Passes every record now in the topic to `take`, partition by partition, until it breaks. With `since`, only
    /// those with that timestamp and those after them.
    pub fn read(
        &self,
        since: Option<DateTime<Utc>>,
        mut take: impl FnMut(&BorrowedMessage<'_>) -> ControlFlow<()>,
    ) -> Result<(), ReadError> {
        let partitions = self.partitions(&self.topic)?;
        if partitions == 0 {
            return Err(ReadError::NoSuchTopic(self.topic.clone()));
        }
        for partition in (0..partitions).map(PartitionNumber) {
            let Some(range) = self.range(partition, since).map_err(|error| self.failed(error))? else {
                continue;
            };
            if self.read_partition(partition, range, &mut take)?.is_break() {
                break;
            }
        }
        Ok(())
    }

    /// Offsets to read; `None` if there are none.
    fn range(
        &self,
        partition: PartitionNumber,
        since: Option<DateTime<Utc>>,
    ) -> Result<Option<OffsetRange>, KafkaError> {
        let (low, high) = self.consumer.fetch_watermarks(&self.topic, partition.0, REQUEST)?;
        let from = match since {
            None => Some(low),
            Some(since) => {
                let mut times = TopicPartitionList::new();
                let millis = rdkafka::Offset::Offset(since.timestamp_millis());
                times.add_partition_offset(&self.topic, partition.0, millis)?;
                let found = self.consumer.offsets_for_times(times, REQUEST)?;
                // Kafka returns the end offset if no record is that late.
                found
                    .elements()
                    .first()
                    .and_then(|element| element.offset().to_raw())
                    .filter(|from| *from >= 0)
            }
        };
        let range = from.map(|from| OffsetRange { from: Offset(from), until: Offset(high) });
        Ok(range.filter(|range| range.count() > 0))
    }

    fn read_partition(
        &self,
        partition: PartitionNumber,
        range: OffsetRange,
        take: &mut impl FnMut(&BorrowedMessage<'_>) -> ControlFlow<()>,
    ) -> Result<ControlFlow<()>, ReadError> {
        partition_reader::assign(
            &self.consumer,
            &self.topic,
            partition,
            rdkafka::Offset::Offset(range.from.0),
        )
        .map_err(|error| self.failed(error))?;
        let mut progress = Instant::now();
        loop {
            match partition_reader::poll(&self.consumer, &self.topic, partition) {
                Polled::Record(message) if message.offset() >= range.until.0 => {
                    return Ok(ControlFlow::Continue(()));
                }
                Polled::Record(message) => {
                    let last = Offset(message.offset()).next() >= range.until;
                    let taken = take(&message);
                    if last || taken.is_break() {
                        return Ok(taken);
                    }
                    // Not earlier: `take` may block.
                    progress = Instant::now();
                }
                Polled::End => return Ok(ControlFlow::Continue(())),
                Polled::Refused(error) => tracing::debug!(%error, "reading a topic"),
                Polled::OutOfRange | Polled::Nothing => {}
            }
            if progress.elapsed() > STALLED_AFTER {
                return Err(ReadError::Stalled { topic: self.topic.clone(), partition });
            }
        }
    }

    fn failed(&self, source: KafkaError) -> ReadError {
        ReadError::Kafka { topic: self.topic.clone(), source }
    }
}
