//! Looking into Kafka: which topics exist, where partitions end, and which of our records they hold.
//!
//! All calls block; the session runs them on threads where that is allowed. They go on through an outage of Kafka
//! until they succeed or the session ends.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use outbox::{Position, header};
use rdkafka::admin::AdminClient;
use rdkafka::client::DefaultClientContext;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{BorrowedMessage, Headers, Message};
use rdkafka::{Offset, TopicPartitionList};

use crate::config::Sink;
use crate::failpoint::{self, Boundary};
use crate::kafka::client::{Distrust, client_config, reader_config};
use crate::kafka::error::reason_of_kafka;
use crate::progress::high_mark::{Hole, Searched};
use crate::progress::lineage::Lineage;
use crate::topics::partitions::Floor;
use crate::topics::settings::TopicSettings;
use crate::trouble::Reason;

/// One poll; also how soon the end of a session is noticed.
pub(crate) const POLL: Duration = Duration::from_millis(100);
/// One request for metadata or watermarks.
pub(crate) const REQUEST: Duration = Duration::from_secs(5);
/// A broker that is connected answers within this.
const ANOTHER_WITHIN: Duration = Duration::from_secs(1);
/// How long a partition that gives nothing keeps others that wait from being read: its leader may be away. Each turn of one
/// reading lasts twice as long as the one before, because the connection may only be slow, and what was under way is
/// fetched again.
const FIRST_TURN: Duration = Duration::from_secs(2);
/// Pause before a request that failed is made again.
const PAUSE: Duration = Duration::from_millis(200);

/// Why a look into Kafka gave nothing.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SearchError {
    /// Records that were acknowledged are gone.
    #[error("{topic}/{partition}: {what}")]
    Lost {
        /// Topic.
        topic: String,
        /// Partition number.
        partition: i32,
        /// What is there instead of them.
        what: String,
    },
    /// A broker and this process do not trust each other.
    #[error("{0}")]
    Distrusted(String),
    /// The session is over.
    #[error("the search was given up, because the session ended")]
    Cancelled,
    /// Kafka refused.
    #[error("Kafka refused a search: {0}")]
    Refused(KafkaError),
}

/// Whether Kafka can be reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reach {
    /// Nobody answers.
    Away,
    /// It answers.
    There,
    /// It answers, and a client of the session has no broker left to ask. A broker that has just come back, and that the
    /// controller still takes for dead, answers with an empty list of brokers; librdkafka forgets all it had then, and asks
    /// nobody any more (confluentinc/librdkafka#5301).
    NotByOurClients,
}

/// A topic as it is in Kafka.
#[derive(Debug)]
pub struct FoundTopic {
    /// Number of partitions.
    pub partitions: i32,
    /// partition -> where its next record goes: nothing before it is ours.
    pub ends: BTreeMap<i32, Floor>,
    /// Its settings, where they may be read.
    pub settings: Option<TopicSettings>,
}

/// Records of ours at positions the server's log never went through.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Phantoms {
    /// How many.
    pub count: u64,
    /// Event ids of the first of them.
    pub ids: Vec<String>,
    /// Some lie on the server's own timeline, beyond the end of its log: it was put back without a new timeline, so
    /// positions are being used a second time.
    pub ahead: bool,
}

impl Phantoms {
    /// Ids kept for a person to look at; an outage may have made thousands of phantoms.
    pub const MAX_IDS: usize = 100;

    /// Adds what another search found.
    pub fn add(&mut self, other: Phantoms) {
        self.count += other.count;
        self.ids.extend(other.ids);
        self.ids.truncate(Self::MAX_IDS);
        self.ahead |= other.ahead;
    }
}

/// Looks into Kafka on behalf of one session.
pub struct Searcher {
    /// One for all questions: to end it takes a tenth of a second.
    pub(crate) admin: AdminClient<DefaultClientContext>,
    pub(crate) consumer: BaseConsumer<Distrust>,
    sink: Sink,
    /// Held by whoever reads records: there is one assignment.
    reading: Mutex<()>,
    /// How many want to.
    waiting: AtomicUsize,
    source: String,
    lineage: Lineage,
    cancelled: AtomicBool,
}

impl Searcher {
    /// A searcher for records whose `ce_source` is `source`, of the past that is `lineage`.
    pub fn new(sink: &Sink, source: String, lineage: Lineage) -> Result<Searcher, KafkaError> {
        let consumer: BaseConsumer<Distrust> = reader_config(sink, "search")
            .set("auto.offset.reset", "error")
            // A record of an open transaction of somebody else must not hide ours behind it.
            .set("isolation.level", "read_uncommitted")
            .set("fetch.wait.max.ms", "10")
            // Memory of a search, whatever the length of the range.
            .set("queued.max.messages.kbytes", "2048")
            .set("fetch.message.max.bytes", "1048576")
            .create_with_context(Distrust::default())?;
        let (reading, waiting, cancelled) = (Mutex::new(()), AtomicUsize::new(0), AtomicBool::new(false));
        let admin = client_config(sink).create()?;
        Ok(Searcher { admin, consumer, sink: sink.clone(), reading, waiting, source, lineage, cancelled })
    }

    /// Makes every call return soon.
    pub fn cancel(&self) {
        self.cancelled.store(true, Ordering::Relaxed);
    }

    /// Whether Kafka answers: this client, or else one that is made for the question.
    pub fn reach(&self) -> Result<Reach, SearchError> {
        if self.consumer.fetch_metadata(None, REQUEST).is_ok() {
            return Ok(Reach::There);
        }
        self.trusted()?;
        let another: Result<BaseConsumer, _> = reader_config(&self.sink, "search").create();
        let answered = another.and_then(|client| client.fetch_metadata(None, REQUEST)).is_ok();
        Ok(if answered { Reach::NotByOurClients } else { Reach::Away })
    }

    /// Whether it is a lack of trust that a request failed for. One broker with a bad certificate or login is like one that
    /// is away: while others answer, the session goes on for their partitions.
    fn trusted(&self) -> Result<(), SearchError> {
        // Whoever reads records meanwhile gets the errors.
        if let Ok(_reading) = self.reading.try_lock() {
            while self.consumer.poll(Duration::ZERO).is_some() {}
        }
        let Some(why) = self.consumer.context().take() else { return Ok(()) };
        match self.consumer.fetch_metadata(None, ANOTHER_WITHIN) {
            Ok(_) => Ok(()),
            Err(_) => Err(SearchError::Distrusted(why)),
        }
    }

    /// Whether a topic exists.
    pub fn exists(&self, name: &str) -> Result<bool, SearchError> {
        Ok(self.partition_count(name)? > 0)
    }

    fn partition_count(&self, name: &str) -> Result<i32, SearchError> {
        self.persist(|| {
            let metadata = self.consumer.fetch_metadata(Some(name), REQUEST)?;
            let topic = metadata.topics().iter().find(|topic| topic.name() == name);
            let count = topic.map_or(Ok(0), |topic| match topic.error().map(RDKafkaErrorCode::from) {
                None => Ok(topic.partitions().len()),
                Some(code) if reason_of_kafka(code) == Reason::TopicMissing => Ok(0),
                Some(code) => Err(KafkaError::MetadataFetch(code)),
            })?;
            Ok(i32::try_from(count).unwrap_or(i32::MAX))
        })
    }

    /// Partition count, ends and settings of a topic that exists.
    pub fn topic(&self, name: &str) -> Result<FoundTopic, SearchError> {
        let mut partitions = self.partition_count(name)?;
        // A topic that was just made is not known to every broker yet.
        while partitions == 0 {
            self.sleep(PAUSE)?;
            partitions = self.partition_count(name)?;
        }
        let mut ends = BTreeMap::new();
        for partition in 0..partitions {
            let (_, search) = self.watermarks(name, partition)?;
            ends.insert(partition, Floor { search, last: None });
        }
        Ok(FoundTopic { partitions, ends, settings: self.describe(name) })
    }

    /// Reads a partition from `from` to its end, or a hole, and reports our own records.
    ///
    /// To its end means: what was there before this session. What is in a hole was appended during it, by a process
    /// that may know more of the log than the server had at the session's beginning.
    pub fn search(
        &self,
        topic: &str,
        partition: i32,
        from: i64,
        hole: Option<Hole>,
    ) -> Result<(Searched, Phantoms), SearchError> {
        let (low, high) = self.watermarks(topic, partition)?;
        if high < from {
            let what = format!("it ends at offset {high}, but {from} was reached before");
            return Err(SearchError::Lost { topic: topic.into(), partition, what });
        }
        // What retention has removed was there, or the partition would not begin after it.
        let mut reading = Reading {
            topic,
            partition,
            hole,
            found: Searched::nothing(from.max(low)),
            phantoms: Phantoms::default(),
        };
        let mut turn = Turn::default();
        while !self.reading_from(topic, partition, reading.found.end, || self.read(&mut reading, &turn))? {
            turn.pass(self)?;
        }
        Ok((reading.found, reading.phantoms))
    }

    /// First and last offset of a partition.
    pub(crate) fn watermarks(&self, topic: &str, partition: i32) -> Result<(i64, i64), SearchError> {
        self.persist(|| self.consumer.fetch_watermarks(topic, partition, REQUEST))
    }

    /// Runs `read` with the consumer at an offset.
    pub(crate) fn reading_from<T>(
        &self,
        topic: &str,
        partition: i32,
        start: i64,
        read: impl FnOnce() -> Result<T, SearchError>,
    ) -> Result<T, SearchError> {
        self.waiting.fetch_add(1, Ordering::Relaxed);
        let _reading = self.reading.lock().unwrap_or_else(PoisonError::into_inner);
        self.waiting.fetch_sub(1, Ordering::Relaxed);
        let mut assignment = TopicPartitionList::new();
        assignment
            .add_partition_offset(topic, partition, Offset::Offset(start))
            .map_err(SearchError::Refused)?;
        self.consumer.assign(&assignment).map_err(SearchError::Refused)?;
        let found = read();
        drop(self.consumer.unassign());
        found
    }

    /// Reads on, and answers whether it is done. It is not when nothing came for a while and others wait.
    fn read(&self, reading: &mut Reading<'_>, turn: &Turn) -> Result<bool, SearchError> {
        let mut heard = Instant::now();
        while !self.is_cancelled() {
            match self.consumer.poll(POLL) {
                None if turn.is_over(self, heard) => return Ok(false),
                None => {}
                // Left over from the partition that was read before.
                Some(Ok(message)) if !is_of(&message, reading.topic, reading.partition) => {}
                Some(Ok(message)) if reading.hole.is_some_and(|hole| message.offset() >= hole.until) => {
                    return Ok(true);
                }
                Some(Ok(message)) => {
                    failpoint::pass(Boundary::InSearch);
                    heard = Instant::now();
                    self.take_in(&message, reading);
                    if reading.hole.is_some_and(|hole| hole.until == reading.found.end) {
                        return Ok(true);
                    }
                }
                Some(Err(KafkaError::PartitionEOF(partition))) if partition == reading.partition => {
                    return Ok(true);
                }
                Some(Err(error)) if is_refusal(&error) => return Err(SearchError::Refused(error)),
                Some(Err(error)) => tracing::debug!(%error, "searching Kafka"),
            }
        }
        Err(SearchError::Cancelled)
    }

    fn take_in(&self, message: &BorrowedMessage<'_>, reading: &mut Reading<'_>) {
        let found = &mut reading.found;
        found.end = message.offset() + 1;
        match self.position(message) {
            None => {}
            Some(position) if self.counts(position, reading.hole.is_some()) => {
                found.highest = found.highest.max(Some(position));
                found.own_records += 1;
                let known = reading.hole.and_then(|hole| hole.known);
                found.repeated += u64::from(known.is_some_and(|known| position <= known));
            }
            Some(position) => {
                let ahead = self.lineage.is_on_line(position);
                reading.phantoms.add(Phantoms { count: 1, ids: event_id(message), ahead });
            }
        }
    }

    /// Whether a record at this position is an event of this server.
    fn counts(&self, position: Position, appended_now: bool) -> bool {
        if appended_now { self.lineage.is_on_line(position) } else { self.lineage.holds(position) }
    }

    /// The position of a record, if it is ours, of whatever history.
    pub(crate) fn position(&self, message: &BorrowedMessage<'_>) -> Option<Position> {
        if value_of(message, header::CE_SOURCE)? != self.source.as_bytes() {
            return None;
        }
        std::str::from_utf8(value_of(message, header::CE_SEQUENCE)?).ok()?.parse().ok()
    }

    /// Makes a request until it succeeds.
    pub(crate) fn persist<T>(
        &self,
        mut request: impl FnMut() -> Result<T, KafkaError>,
    ) -> Result<T, SearchError> {
        loop {
            match request() {
                Ok(answer) => return Ok(answer),
                Err(error) if is_refusal(&error) => return Err(SearchError::Refused(error)),
                Err(error) => tracing::debug!(%error, "asking Kafka"),
            }
            self.trusted()?;
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

    pub(crate) fn is_cancelled(&self) -> bool {
        self.cancelled.load(Ordering::Relaxed)
    }
}

/// How long a reading may go without anything while others wait for theirs.
pub(crate) struct Turn(Duration);

impl Default for Turn {
    fn default() -> Self {
        Turn(FIRST_TURN)
    }
}

impl Turn {
    /// Whether it is over for one that has heard nothing since `heard`.
    pub(crate) fn is_over(&self, searcher: &Searcher, heard: Instant) -> bool {
        heard.elapsed() >= self.0 && searcher.waiting.load(Ordering::Relaxed) > 0
    }

    /// Lets another go first.
    pub(crate) fn pass(&mut self, searcher: &Searcher) -> Result<(), SearchError> {
        self.0 *= 2;
        searcher.sleep(PAUSE)
    }
}

/// A partition that is being read, and what was found so far.
struct Reading<'a> {
    topic: &'a str,
    partition: i32,
    hole: Option<Hole>,
    found: Searched,
    phantoms: Phantoms,
}

pub(crate) fn is_of(message: &BorrowedMessage<'_>, topic: &str, partition: i32) -> bool {
    message.partition() == partition && message.topic() == topic
}

fn value_of<'m>(message: &'m BorrowedMessage<'_>, name: &str) -> Option<&'m [u8]> {
    message.headers()?.iter().find(|header| header.key == name).and_then(|header| header.value)
}

fn event_id(message: &BorrowedMessage<'_>) -> Vec<String> {
    value_of(message, header::CE_ID).map(|id| String::from_utf8_lossy(id).into_owned()).into_iter().collect()
}

/// Errors that asking again will not cure.
pub(crate) fn is_refusal(error: &KafkaError) -> bool {
    let code = error.rdkafka_error_code();
    code.is_some_and(|code| {
        code == RDKafkaErrorCode::AutoOffsetReset
            || matches!(
                reason_of_kafka(code),
                Reason::KafkaPermissionDenied | Reason::KafkaAuthenticationFailed
            )
    })
}
