//! Looking into Kafka: which topics exist, where partitions end, and which of our records they hold.
//!
//! All calls block; the session runs them on threads where that is allowed. They go on through an outage of Kafka
//! until they succeed or the session ends.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use outbox::{Position, header};
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{BorrowedMessage, Headers, Message};
use rdkafka::{Offset, TopicPartitionList};

use crate::config::Sink;
use crate::high_mark::Searched;
use crate::sink::client_config;

/// One poll; also how soon the end of a session is noticed.
const POLL: Duration = Duration::from_millis(100);
/// One request for metadata or watermarks.
const REQUEST: Duration = Duration::from_secs(5);
/// Pause before a request that failed is made again.
const PAUSE: Duration = Duration::from_millis(200);

/// Why a look into Kafka gave nothing.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SearchError {
    /// The partition ends before an offset that was acknowledged.
    #[error("{topic}/{partition} ends at offset {end}, but {expected} was reached before")]
    EndsEarly {
        /// Topic.
        topic: String,
        /// Partition number.
        partition: i32,
        /// Its end.
        end: i64,
        /// The offset that was reached.
        expected: i64,
    },
    /// The session is over.
    #[error("the search was given up, because the session ended")]
    Cancelled,
    /// Kafka refused.
    #[error("Kafka refused a search: {0}")]
    Refused(KafkaError),
}

/// A topic as it is in Kafka.
#[derive(Debug)]
pub struct FoundTopic {
    /// Number of partitions.
    pub partitions: i32,
    /// partition -> the offset its next record gets.
    pub ends: BTreeMap<i32, i64>,
}

/// Looks into Kafka on behalf of one session.
pub struct Searcher {
    consumer: Mutex<BaseConsumer>,
    source: String,
    timeline: u32,
    cancelled: AtomicBool,
}

impl Searcher {
    /// A searcher for records whose `ce_source` is `source`, on `timeline`.
    pub fn new(sink: &Sink, source: String, timeline: u32) -> Result<Searcher, KafkaError> {
        let consumer: BaseConsumer = client_config(sink)
            // Never joined: a consumer cannot be made without the name of a group.
            .set("group.id", "outbox-relay-search")
            .set("enable.auto.commit", "false")
            .set("enable.partition.eof", "true")
            .set("auto.offset.reset", "error")
            // A record of an open transaction of somebody else must not hide ours behind it.
            .set("isolation.level", "read_uncommitted")
            .set("fetch.wait.max.ms", "10")
            // Memory of a search, whatever the length of the range.
            .set("queued.max.messages.kbytes", "2048")
            .set("fetch.message.max.bytes", "1048576")
            .create()?;
        Ok(Searcher { consumer: Mutex::new(consumer), source, timeline, cancelled: AtomicBool::new(false) })
    }

    /// Makes every call return soon.
    pub fn cancel(&self) {
        self.cancelled.store(true, Ordering::Relaxed);
    }

    /// Whether Kafka answers.
    pub fn is_reachable(&self) -> bool {
        let consumer = self.consumer.lock().unwrap_or_else(PoisonError::into_inner);
        consumer.fetch_metadata(None, REQUEST).is_ok()
    }

    /// Partition count and ends of a topic; `None` while it does not exist.
    pub fn topic(&self, name: &str) -> Result<Option<FoundTopic>, SearchError> {
        let consumer = self.consumer.lock().unwrap_or_else(PoisonError::into_inner);
        let partitions = self.persist(|| {
            let metadata = consumer.fetch_metadata(Some(name), REQUEST)?;
            let topic = metadata.topics().iter().find(|topic| topic.name() == name);
            let count =
                topic.filter(|topic| topic.error().is_none()).map_or(0, |topic| topic.partitions().len());
            Ok(i32::try_from(count).unwrap_or(i32::MAX))
        })?;
        if partitions == 0 {
            return Ok(None);
        }
        let mut ends = BTreeMap::new();
        for partition in 0..partitions {
            let (_, end) = self.persist(|| consumer.fetch_watermarks(name, partition, REQUEST))?;
            ends.insert(partition, end);
        }
        Ok(Some(FoundTopic { partitions, ends }))
    }

    /// Reads a partition from `from` to its end, or to `until`, and reports our own records.
    pub fn search(
        &self,
        topic: &str,
        partition: i32,
        from: i64,
        until: Option<i64>,
    ) -> Result<Searched, SearchError> {
        let consumer = self.consumer.lock().unwrap_or_else(PoisonError::into_inner);
        let (low, high) = self.persist(|| consumer.fetch_watermarks(topic, partition, REQUEST))?;
        if high < from {
            return Err(SearchError::EndsEarly { topic: topic.into(), partition, end: high, expected: from });
        }
        // What retention has removed was there, or the partition would not begin after it.
        let start = from.max(low);
        let mut assignment = TopicPartitionList::new();
        assignment
            .add_partition_offset(topic, partition, Offset::Offset(start))
            .map_err(SearchError::Refused)?;
        consumer.assign(&assignment).map_err(SearchError::Refused)?;
        let found = self.read(&consumer, start, until);
        drop(consumer.unassign());
        found
    }

    fn read(&self, consumer: &BaseConsumer, start: i64, until: Option<i64>) -> Result<Searched, SearchError> {
        let mut found = Searched { highest: None, own_records: 0, end: start };
        while !self.is_cancelled() {
            match consumer.poll(POLL) {
                None => {}
                Some(Ok(message)) if until.is_some_and(|until| message.offset() >= until) => {
                    return Ok(found);
                }
                Some(Ok(message)) => {
                    found.end = message.offset() + 1;
                    if let Some(position) = self.own_position(&message) {
                        found.highest = found.highest.max(Some(position));
                        found.own_records += 1;
                    }
                    if until == Some(found.end) {
                        return Ok(found);
                    }
                }
                Some(Err(KafkaError::PartitionEOF(_))) => return Ok(found),
                Some(Err(error)) if is_refusal(&error) => return Err(SearchError::Refused(error)),
                Some(Err(error)) => tracing::debug!(%error, "searching Kafka"),
            }
        }
        Err(SearchError::Cancelled)
    }

    /// The position of a record, if it is ours and of our history.
    fn own_position(&self, message: &BorrowedMessage<'_>) -> Option<Position> {
        let headers = message.headers()?;
        let value =
            |name: &str| headers.iter().find(|header| header.key == name).and_then(|header| header.value);
        if value(header::CE_SOURCE)? != self.source.as_bytes() {
            return None;
        }
        let position: Position = std::str::from_utf8(value(header::CE_SEQUENCE)?).ok()?.parse().ok()?;
        (position.timeline == self.timeline).then_some(position)
    }

    /// Makes a request until it succeeds.
    fn persist<T>(&self, mut request: impl FnMut() -> Result<T, KafkaError>) -> Result<T, SearchError> {
        loop {
            match request() {
                Ok(answer) => return Ok(answer),
                Err(error) if is_refusal(&error) => return Err(SearchError::Refused(error)),
                Err(error) => tracing::debug!(%error, "asking Kafka"),
            }
            self.sleep(PAUSE)?;
        }
    }

    /// Waits, unless the session ends.
    pub fn sleep(&self, pause: Duration) -> Result<(), SearchError> {
        let until = Instant::now() + pause;
        while Instant::now() < until {
            if self.is_cancelled() {
                return Err(SearchError::Cancelled);
            }
            std::thread::sleep(POLL.min(pause));
        }
        Ok(())
    }

    fn is_cancelled(&self) -> bool {
        self.cancelled.load(Ordering::Relaxed)
    }
}

/// Errors that asking again will not cure.
fn is_refusal(error: &KafkaError) -> bool {
    matches!(
        error.rdkafka_error_code(),
        Some(
            RDKafkaErrorCode::TopicAuthorizationFailed
                | RDKafkaErrorCode::GroupAuthorizationFailed
                | RDKafkaErrorCode::ClusterAuthorizationFailed
                | RDKafkaErrorCode::AutoOffsetReset
        )
    )
}
