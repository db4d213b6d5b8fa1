//! How many records were appended to topics, and when the first and the last of them. Nothing else is read, because a reader would take
//! from the brokers what is being measured.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::KafkaError;
use rdkafka::message::Message;
use rdkafka::{Offset, TopicPartitionList};

use crate::records::{POLL, REQUEST_DEADLINE, ReadError, STALLED_AFTER, partitions, passes, settings};

type Partition = (String, i32);

/// When records were appended, by the brokers' clocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Appended {
    /// The first one.
    pub first: SystemTime,
    /// The middle one of each partition, on average.
    pub middle: SystemTime,
    /// The last one.
    pub last: SystemTime,
}

/// The logs of some topics, from when this was opened.
#[derive(Clone)]
pub struct LogEnds {
    consumer: Arc<BaseConsumer>,
    partitions: Arc<[Partition]>,
    /// The next offset of each partition when this was opened.
    begins: Arc<[i64]>,
    bootstrap: String,
}

impl LogEnds {
    /// Of topics that exist; partitions added later are not seen.
    ///
    /// # Errors
    /// A topic that does not exist, or brokers that cannot be reached.
    pub async fn open(bootstrap: &str, topics: &[String]) -> Result<LogEnds, ReadError> {
        let (bootstrap, topics) = (bootstrap.to_owned(), topics.to_owned());
        blocking(move || {
            let mut settings = settings(&bootstrap);
            // One record of each partition is wanted, not what follows it.
            settings.set("fetch.message.max.bytes", "65536").set("queued.max.messages.kbytes", "1024");
            let consumer: BaseConsumer =
                settings.create().map_err(|source| failed(&bootstrap, "opening a consumer", source))?;
            let mut found = Vec::new();
            for topic in topics {
                let numbers = partitions(&consumer, &bootstrap, &topic)?;
                found.extend(numbers.into_iter().map(|number| (topic.clone(), number)));
            }
            let mut logs = LogEnds {
                consumer: Arc::new(consumer),
                partitions: found.into(),
                begins: Arc::new([]),
                bootstrap,
            };
            logs.begins = logs.ends()?.into();
            Ok(logs)
        })
        .await
    }

    /// How many records were appended since this was opened.
    ///
    /// # Errors
    /// Brokers that cannot be reached.
    pub async fn records(&self) -> Result<u64, ReadError> {
        let logs = self.clone();
        blocking(move || {
            let ends = logs.ends()?;
            Ok(logs.begins.iter().zip(&ends).map(|(begin, end)| end - begin).sum::<i64>().unsigned_abs())
        })
        .await
    }

    /// When these records were appended; `None` without a record. The topics' `message.timestamp.type` has to be `LogAppendTime`.
    ///
    /// # Errors
    /// Brokers that cannot be reached.
    pub async fn appended(&self) -> Result<Option<Appended>, ReadError> {
        let logs = self.clone();
        blocking(move || {
            let ends = logs.ends()?;
            let ranges = logs.partitions.iter().zip(logs.begins.iter().zip(ends));
            let filled: Vec<(&Partition, i64, i64)> = ranges
                .filter(|(_, (begin, end))| *begin < end)
                .map(|(partition, (begin, end))| (partition, *begin, end))
                .collect();
            let times = |offset: fn(i64, i64) -> i64| {
                let records =
                    filled.iter().map(|(partition, begin, end)| ((*partition).clone(), offset(*begin, *end)));
                logs.timestamps(&records.collect::<Vec<_>>())
            };
            let first = times(|begin, _| begin)?.into_iter().min();
            let middle = mean(&times(|begin, end| begin + (end - begin) / 2)?);
            let last = times(|_, end| end - 1)?.into_iter().max();
            Ok(first.zip(last).map(|(first, last)| Appended { first, middle, last }))
        })
        .await
    }

    /// The next offset of each partition. Leaders may change meanwhile, most of all those of topics that were just created.
    fn ends(&self) -> Result<Vec<i64>, ReadError> {
        let asked = Instant::now();
        loop {
            match self.ask_ends() {
                Err(error) if passes(&error) && asked.elapsed() < STALLED_AFTER => std::thread::sleep(POLL),
                answered => return answered.map_err(|source| self.failed(source)),
            }
        }
    }

    /// One request to each broker.
    fn ask_ends(&self) -> Result<Vec<i64>, KafkaError> {
        let mut wanted = TopicPartitionList::new();
        for (topic, number) in self.partitions.iter() {
            wanted.add_partition_offset(topic, *number, Offset::End)?;
        }
        let answered = self.consumer.offsets_for_times(wanted, REQUEST_DEADLINE)?;
        let offset = |(topic, number): &Partition| {
            let found = answered.find_partition(topic, *number)?;
            found.error().ok().and(found.offset().to_raw())
        };
        let offsets: Option<Vec<i64>> = self.partitions.iter().map(offset).collect();
        offsets.ok_or(KafkaError::NoMessageReceived)
    }

    /// The timestamps of single records.
    fn timestamps(&self, records: &[(Partition, i64)]) -> Result<Vec<SystemTime>, ReadError> {
        let mut wanted = TopicPartitionList::new();
        for ((topic, number), offset) in records {
            wanted
                .add_partition_offset(topic, *number, Offset::Offset(*offset))
                .map_err(|source| self.failed(source))?;
        }
        self.consumer.assign(&wanted).map_err(|source| self.failed(source))?;
        let mut missing: HashSet<Partition> =
            records.iter().map(|(partition, _)| partition.clone()).collect();
        let (mut timestamps, mut progress) = (Vec::new(), Instant::now());
        while !missing.is_empty() {
            match self.consumer.poll(POLL) {
                Some(Ok(message)) => {
                    if missing.remove(&(message.topic().to_owned(), message.partition())) {
                        progress = Instant::now();
                        let millis = message.timestamp().to_millis().unwrap_or_default().unsigned_abs();
                        timestamps.push(SystemTime::UNIX_EPOCH + Duration::from_millis(millis));
                    }
                }
                Some(Err(error)) if !passes(&error) => return Err(self.failed(error)),
                Some(Err(_)) | None => {}
            }
            if progress.elapsed() > STALLED_AFTER {
                let topic = missing.iter().next().map(|(topic, _)| topic.clone()).unwrap_or_default();
                return Err(ReadError::Stalled { topic, partitions: missing.len() });
            }
        }
        self.consumer.assign(&TopicPartitionList::new()).map_err(|source| self.failed(source))?;
        Ok(timestamps)
    }

    fn failed(&self, source: KafkaError) -> ReadError {
        failed(&self.bootstrap, "asking where logs end", source)
    }
}

/// The epoch without a time.
fn mean(times: &[SystemTime]) -> SystemTime {
    let since_epoch = times.iter().filter_map(|time| time.duration_since(SystemTime::UNIX_EPOCH).ok());
    SystemTime::UNIX_EPOCH
        + since_epoch.sum::<Duration>() / u32::try_from(times.len().max(1)).unwrap_or(u32::MAX)
}

fn failed(bootstrap: &str, doing: &str, source: KafkaError) -> ReadError {
    ReadError::Kafka { bootstrap: bootstrap.to_owned(), doing: doing.to_owned(), source: Box::new(source) }
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, ReadError> + Send + 'static,
) -> Result<T, ReadError> {
    tokio::task::spawn_blocking(work).await.map_err(|error| ReadError::Thread(error.to_string()))?
}
