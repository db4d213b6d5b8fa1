//! Reads what is in Kafka, as any consumer would see it.
//!
//! Every partition is assigned from its first offset, with no consumer group: nothing is committed anywhere, so
//! reading changes nothing, and two readers see the same records. Aborted transactions are left out.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use rdkafka::consumer::{BaseConsumer, Consumer, StreamConsumer};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{BorrowedMessage, Headers, Message};
use rdkafka::{ClientConfig, Offset, TopicPartitionList};
use uuid::Uuid;

/// How long one request to the brokers may take.
pub(crate) const REQUEST_DEADLINE: Duration = Duration::from_secs(30);
/// A read that gets nothing for this long has stalled: brokers of one machine answer in milliseconds, and one that
/// restarts is back within this time.
pub(crate) const STALLED_AFTER: Duration = Duration::from_secs(60);
/// How often a read looks whether it has stalled.
pub(crate) const POLL: Duration = Duration::from_millis(200);

/// One Kafka record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// Topic it lies in.
    pub topic: String,
    /// Partition of the topic.
    pub partition: i32,
    /// Offset in the partition.
    pub offset: i64,
    /// Milliseconds since 1970, when the record has a timestamp.
    pub timestamp: Option<i64>,
    /// The key's bytes.
    pub key: Option<Vec<u8>>,
    /// The value's bytes; `None` is a tombstone.
    pub value: Option<Vec<u8>>,
    /// Headers in their order.
    pub headers: Vec<(String, Option<Vec<u8>>)>,
}

impl Record {
    /// The first header of that name as text; `None` when it is absent, null or not UTF-8.
    pub fn header(&self, name: &str) -> Option<&str> {
        let (_, value) = self.headers.iter().find(|(header, _)| header == name)?;
        std::str::from_utf8(value.as_deref()?).ok()
    }

    /// The event's id: header `ce_id`, or `id` where records follow Debezium's format. Debezium Server writes it as JSON, in quotes.
    pub fn event_id(&self) -> Option<Uuid> {
        Uuid::parse_str(self.header("ce_id").or_else(|| self.header("id"))?.trim_matches('"')).ok()
    }

    fn from_message(message: &BorrowedMessage<'_>) -> Record {
        let headers = message.headers().map(|headers| {
            headers.iter().map(|header| (header.key.to_owned(), header.value.map(<[u8]>::to_vec))).collect()
        });
        Record {
            topic: message.topic().to_owned(),
            partition: message.partition(),
            offset: message.offset(),
            timestamp: message.timestamp().to_millis(),
            key: message.key().map(<[u8]>::to_vec),
            value: message.payload().map(<[u8]>::to_vec),
            headers: headers.unwrap_or_default(),
        }
    }
}

/// Kafka could not be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// A request failed or no connection came about.
    #[error("Kafka at {bootstrap} could not be read ({doing}); is the broker running?")]
    Kafka {
        /// The brokers asked.
        bootstrap: String,
        /// What was being done.
        doing: String,
        /// What librdkafka says.
        source: Box<KafkaError>,
    },
    /// The topic is not there.
    #[error("topic '{topic}' does not exist; create it before reading it")]
    NoSuchTopic {
        /// Its name.
        topic: String,
    },
    /// Nothing came for a minute although the end was not reached.
    #[error(
        "reading topic '{topic}' stalled with {partitions} partition(s) not at their end; look at the broker's log"
    )]
    Stalled {
        /// Its name.
        topic: String,
        /// How many partitions are unfinished.
        partitions: usize,
    },
    /// The reading thread ended unexpectedly.
    #[error("the thread reading Kafka broke off: {0}")]
    Thread(String),
}

/// Every record that `topics` hold at the time of the call, topic by topic, each partition in offset order.
///
/// # Errors
/// A topic that does not exist, brokers that cannot be reached, or a read that stalls for a minute.
pub async fn read_all(bootstrap: &str, topics: &[&str]) -> Result<Vec<Record>, ReadError> {
    let bootstrap = bootstrap.to_owned();
    let topics: Vec<String> = topics.iter().map(|topic| (*topic).to_owned()).collect();
    let reading = tokio::task::spawn_blocking(move || {
        let mut records = Vec::new();
        for topic in &topics {
            read_topic(&bootstrap, topic, &mut records)?;
        }
        Ok(records)
    });
    reading.await.map_err(|error| ReadError::Thread(error.to_string()))?
}

/// One consumer per topic, because the end-of-partition event names the partition only.
fn read_topic(bootstrap: &str, topic: &str, records: &mut Vec<Record>) -> Result<(), ReadError> {
    let failed = |doing: &str, source: KafkaError| ReadError::Kafka {
        bootstrap: bootstrap.to_owned(),
        doing: format!("{doing} '{topic}'"),
        source: Box::new(source),
    };
    let consumer: BaseConsumer = settings(bootstrap).create().map_err(|error| failed("opening", error))?;
    let partitions = partitions(&consumer, bootstrap, topic)?;
    // End of each partition now: a writer that never rests must not keep the read from ending.
    let mut ends = HashMap::new();
    for &partition in &partitions {
        let (_, end) = consumer
            .fetch_watermarks(topic, partition, REQUEST_DEADLINE)
            .map_err(|error| failed("asking for the end of", error))?;
        ends.insert(partition, end);
    }
    consumer
        .assign(&from_the_start(topic, &partitions).map_err(|error| failed("assigning", error))?)
        .map_err(|error| failed("assigning", error))?;

    let mut progress = Instant::now();
    while !ends.is_empty() {
        match consumer.poll(POLL) {
            Some(Ok(message)) => {
                progress = Instant::now();
                let Some(&end) = ends.get(&message.partition()) else { continue };
                if message.offset() < end {
                    records.push(Record::from_message(&message));
                }
                if message.offset() + 1 >= end {
                    ends.remove(&message.partition());
                }
            }
            // Sent again after a reconnect, and the only sign when the last offsets hold no record.
            Some(Err(KafkaError::PartitionEOF(partition))) => {
                ends.remove(&partition);
            }
            Some(Err(error)) if !passes(&error) => return Err(failed("reading", error)),
            Some(Err(_)) | None if progress.elapsed() > STALLED_AFTER => {
                return Err(ReadError::Stalled { topic: topic.to_owned(), partitions: ends.len() });
            }
            Some(Err(_)) | None => {}
        }
    }
    Ok(())
}

/// Records as they arrive, from the first offset on.
pub struct Tail {
    consumer: StreamConsumer,
    bootstrap: String,
}

impl Tail {
    /// Starts reading; the topics must exist, and partitions added later are not seen.
    ///
    /// # Errors
    /// A topic that does not exist, or brokers that cannot be reached.
    pub async fn start(bootstrap: &str, topics: &[&str]) -> Result<Tail, ReadError> {
        let bootstrap = bootstrap.to_owned();
        let topics: Vec<String> = topics.iter().map(|topic| (*topic).to_owned()).collect();
        // Asking for metadata blocks its thread, so it does not happen on a worker of the runtime.
        let starting = tokio::task::spawn_blocking(move || Tail::open(bootstrap, &topics));
        starting.await.map_err(|error| ReadError::Thread(error.to_string()))?
    }

    fn open(bootstrap: String, topics: &[String]) -> Result<Tail, ReadError> {
        let failed = |source: KafkaError| ReadError::Kafka {
            bootstrap: bootstrap.clone(),
            doing: format!("following {}", topics.join(", ")),
            source: Box::new(source),
        };
        // The shortest wait a broker allows: what is measured here is the relay, not the consumer.
        let consumer: StreamConsumer =
            settings(&bootstrap).set("fetch.wait.max.ms", "100").create().map_err(&failed)?;
        let mut assignment = TopicPartitionList::new();
        for topic in topics {
            for partition in partitions(&consumer, &bootstrap, topic)? {
                assignment.add_partition_offset(topic, partition, Offset::Beginning).map_err(&failed)?;
            }
        }
        consumer.assign(&assignment).map_err(&failed)?;
        Ok(Tail { consumer, bootstrap })
    }

    /// The next record, however long it takes. Outages of brokers are waited out. Cancel-safe.
    ///
    /// # Errors
    /// What no waiting cures, such as a topic deleted meanwhile.
    pub async fn next(&self) -> Result<Record, ReadError> {
        loop {
            match self.consumer.recv().await {
                Ok(message) => return Ok(Record::from_message(&message)),
                Err(KafkaError::PartitionEOF(_)) => {}
                Err(error) if passes(&error) => {}
                Err(source) => {
                    return Err(ReadError::Kafka {
                        bootstrap: self.bootstrap.clone(),
                        doing: "following topics".to_owned(),
                        source: Box::new(source),
                    });
                }
            }
        }
    }
}

pub(crate) fn settings(bootstrap: &str) -> ClientConfig {
    let mut settings = ClientConfig::new();
    settings
        .set("bootstrap.servers", bootstrap)
        // librdkafka wants a name; with `assign` and no commit the group never comes into being.
        .set("group.id", "testbed-reader")
        .set("enable.auto.commit", "false")
        .set("enable.auto.offset.store", "false")
        .set("auto.offset.reset", "earliest")
        .set("enable.partition.eof", "true")
        .set("isolation.level", "read_committed")
        .set("check.crcs", "true")
        .set("allow.auto.create.topics", "false")
        // Servers of a test come and go; half a minute of backoff would look like a lost record.
        .set("reconnect.backoff.max.ms", "1000")
        .set("log_level", "2");
    settings
}

fn from_the_start(topic: &str, partitions: &[i32]) -> Result<TopicPartitionList, KafkaError> {
    let mut list = TopicPartitionList::new();
    for &partition in partitions {
        list.add_partition_offset(topic, partition, Offset::Beginning)?;
    }
    Ok(list)
}

/// The partitions of `topic`.
pub(crate) fn partitions<C, X>(consumer: &C, bootstrap: &str, topic: &str) -> Result<Vec<i32>, ReadError>
where
    C: Consumer<X>,
    X: rdkafka::consumer::ConsumerContext,
{
    let metadata = consumer.fetch_metadata(Some(topic), REQUEST_DEADLINE).map_err(|source| {
        let doing = format!("asking for the partitions of '{topic}'");
        ReadError::Kafka { bootstrap: bootstrap.to_owned(), doing, source: Box::new(source) }
    })?;
    let found = metadata.topics().iter().find(|found| found.name() == topic && found.error().is_none());
    match found.map(|topic| topic.partitions().iter().map(|partition| partition.id()).collect::<Vec<_>>()) {
        Some(partitions) if !partitions.is_empty() => Ok(partitions),
        _ => Err(ReadError::NoSuchTopic { topic: topic.to_owned() }),
    }
}

/// Whether an error is transient: librdkafka keeps trying to reach brokers.
pub(crate) fn passes(error: &KafkaError) -> bool {
    !matches!(
        error.rdkafka_error_code(),
        Some(
            RDKafkaErrorCode::UnknownTopicOrPartition
                | RDKafkaErrorCode::UnknownTopic
                | RDKafkaErrorCode::UnknownPartition
                | RDKafkaErrorCode::TopicAuthorizationFailed
                | RDKafkaErrorCode::Authentication
                | RDKafkaErrorCode::Fatal
        )
    )
}
