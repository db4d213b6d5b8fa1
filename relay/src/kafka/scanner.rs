//! Looking into Kafka: which topics exist, where partitions end, and which of our records they hold.
//!
//! All calls block, and end soon: within a request's time, or at the end of a turn. [`jobs`](super::queries) makes them, and
//! repeats those that Kafka did not answer.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use outbox::{Position, header};
use rdkafka::admin::AdminClient;
use rdkafka::client::DefaultClientContext;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{BorrowedMessage, Headers, Message};
use rdkafka::{Offset, TopicPartitionList};

use crate::config::Sink;
use crate::error::ErrorKind;
use crate::failpoint::{self, Boundary};
use crate::kafka::client::{AuthErrors, client_config, reader_config};
use crate::kafka::error::reason_of_kafka;
use crate::kafka::scan::{Scan, Step};
use crate::progress::lineage::Lineage;
use crate::topics::partitions::ScanStart;
use crate::topics::settings::TopicSettings;

/// One poll; also how soon the end of a session is noticed.
pub(crate) const POLL: Duration = Duration::from_millis(100);
/// One request for metadata or watermarks.
pub(crate) const REQUEST: Duration = Duration::from_secs(5);
/// A broker that is connected answers within this.
const SECOND_BROKER_WITHIN: Duration = Duration::from_secs(1);
/// A request that only the leader of a partition can answer.
const LEADER_REQUEST: Duration = Duration::from_secs(3);
/// How long a partition that gives nothing keeps others that wait from being read: its leader may be away. Each turn of one
/// reading lasts twice as long as the one before, because the connection may only be slow, and what was in flight is
/// fetched again.
const FIRST_TURN: Duration = Duration::from_secs(2);
const LONGEST_TURN: Duration = Duration::from_secs(8);
/// The largest answer that is taken. Another producer's record may be larger than librdkafka's default of 100 MB, and a
/// reader that refuses it never gets past it.
const LARGEST_ANSWER: &str = "2147483647";

/// Why a look into Kafka gave nothing.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum QueryError {
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
    /// A partition ends with a record of ours beyond the end of the server's log.
    #[error("{topic}/{partition}: offset {offset} holds an event at {position}")]
    Ahead {
        /// Topic.
        topic: String,
        /// Partition number.
        partition: i32,
        /// Its last offset.
        offset: i64,
        /// The position of the record there.
        position: Position,
        /// It was written while this server was running.
        by_another_server: bool,
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
    /// Kafka did not answer: the call is made again.
    #[error("Kafka did not answer: {0}")]
    Unanswered(KafkaError),
}

/// Whether Kafka can be reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reachability {
    /// Nobody answers.
    Down,
    /// It answers.
    Up,
    /// It answers, and a client of the session has no broker left to ask. A broker that has just come back, and that the
    /// controller still takes for dead, answers with an empty list of brokers; librdkafka forgets all it had then, and asks
    /// nobody any more (confluentinc/librdkafka#5301).
    ClientStranded,
}

/// A topic as it is in Kafka.
#[derive(Debug)]
pub struct FoundTopic {
    /// Number of partitions.
    pub partitions: i32,
    /// partition -> where its next record goes: nothing before it is ours.
    pub ends: BTreeMap<i32, ScanStart>,
    /// Its settings, where they may be read.
    pub settings: Option<TopicSettings>,
}

/// Looks into Kafka on behalf of one session.
pub struct PartitionScanner {
    /// One for all questions: to end it takes a tenth of a second.
    pub(crate) admin: AdminClient<DefaultClientContext>,
    pub(crate) consumer: BaseConsumer<AuthErrors>,
    sink: Sink,
    /// Held by whoever reads records: there is one assignment.
    reading: Mutex<()>,
    /// How many want to read records.
    pub(crate) waiting: AtomicUsize,
    source: String,
    pub(crate) lineage: Lineage,
    /// When the database server was started, in milliseconds since 1970.
    server_started: i64,
    cancelled: AtomicBool,
}

impl PartitionScanner {
    /// A searcher for records whose `ce_source` is `source`, of the past that is `lineage`, of a database server that was
    /// started at `server_started`, in milliseconds since 1970.
    pub fn new(
        sink: &Sink,
        source: String,
        lineage: Lineage,
        server_started: i64,
    ) -> Result<PartitionScanner, KafkaError> {
        let consumer: BaseConsumer<AuthErrors> = reader_config(sink, "search")
            .set("auto.offset.reset", "error")
            // A record of an open transaction of another producer must not hide ours behind it.
            .set("isolation.level", "read_uncommitted")
            .set("fetch.wait.max.ms", "10")
            // Memory of a search, whatever the length of the range; a single larger record is fetched all the same.
            .set("queued.max.messages.kbytes", "2048")
            .set("fetch.message.max.bytes", "1048576")
            .set("receive.message.max.bytes", LARGEST_ANSWER)
            .create_with_context(AuthErrors::default())?;
        let (reading, waiting, cancelled) = (Mutex::new(()), AtomicUsize::new(0), AtomicBool::new(false));
        let admin = client_config(sink).create()?;
        Ok(PartitionScanner {
            admin,
            consumer,
            sink: sink.clone(),
            reading,
            waiting,
            source,
            lineage,
            server_started,
            cancelled,
        })
    }

    /// Makes every call return soon.
    pub fn cancel(&self) {
        self.cancelled.store(true, Ordering::Relaxed);
    }

    /// Whether Kafka answers: this client, or else one that is made for the question. A client that asked a broker which
    /// does not answer, because it is suspended for example, has others to ask; one that waited all the time for a broker to
    /// ask has none.
    pub fn reachability(&self) -> Result<Reachability, QueryError> {
        let began = Instant::now();
        let Err(error) = self.consumer.fetch_metadata(None, REQUEST) else { return Ok(Reachability::Up) };
        let no_broker = error.rdkafka_error_code() == Some(RDKafkaErrorCode::BrokerTransportFailure);
        let waited = began.elapsed() >= REQUEST;
        self.check_trust()?;
        let another: Result<BaseConsumer, _> = reader_config(&self.sink, "search").create();
        let answered = another.and_then(|client| client.fetch_metadata(None, REQUEST)).is_ok();
        Ok(match answered {
            false => Reachability::Down,
            true if no_broker && waited => Reachability::ClientStranded,
            true => Reachability::Up,
        })
    }

    /// Whether it is a lack of trust that a request failed for. One broker with a bad certificate or login is like one that
    /// is away: while others answer, the session goes on for their partitions.
    fn check_trust(&self) -> Result<(), QueryError> {
        // Whoever reads records meanwhile gets the errors.
        if let Ok(_reading) = self.reading.try_lock() {
            while self.consumer.poll(Duration::ZERO).is_some() {}
        }
        let Some(why) = self.consumer.context().take() else { return Ok(()) };
        match self.consumer.fetch_metadata(None, SECOND_BROKER_WITHIN) {
            Ok(_) => Ok(()),
            Err(_) => Err(QueryError::Distrusted(why)),
        }
    }

    /// How many partitions a topic has; 0 if it does not exist.
    pub fn partition_count(&self, name: &str) -> Result<i32, QueryError> {
        self.ask(|| {
            let metadata = self.consumer.fetch_metadata(Some(name), REQUEST)?;
            let topic = metadata.topics().iter().find(|topic| topic.name() == name);
            let count = topic.map_or(Ok(0), |topic| match topic.error().map(RDKafkaErrorCode::from) {
                None => Ok(topic.partitions().len()),
                Some(code) if reason_of_kafka(code) == ErrorKind::TopicMissing => Ok(0),
                Some(code) => Err(KafkaError::MetadataFetch(code)),
            })?;
            Ok(i32::try_from(count).unwrap_or(i32::MAX))
        })
    }

    /// First and last offset of a partition.
    pub fn watermarks(&self, topic: &str, partition: i32) -> Result<(i64, i64), QueryError> {
        self.ask(|| self.consumer.fetch_watermarks(topic, partition, LEADER_REQUEST))
    }

    /// The id of the cluster, where its brokers tell it.
    pub fn cluster_id(&self) -> Option<String> {
        self.consumer.client().fetch_cluster_id(REQUEST)
    }

    /// Makes a request once.
    pub(crate) fn ask<T>(&self, request: impl FnOnce() -> Result<T, KafkaError>) -> Result<T, QueryError> {
        if self.is_cancelled() {
            return Err(QueryError::Cancelled);
        }
        let error = match request() {
            Ok(answer) => return Ok(answer),
            Err(error) if is_refusal(&error) => return Err(QueryError::Refused(error)),
            Err(error) => error,
        };
        self.check_trust()?;
        Err(QueryError::Unanswered(error))
    }

    /// Runs `read` with the consumer at an offset.
    pub(crate) fn reading_from<T>(
        &self,
        topic: &str,
        partition: i32,
        start: i64,
        read: impl FnOnce() -> Result<T, QueryError>,
    ) -> Result<T, QueryError> {
        if self.is_cancelled() {
            return Err(QueryError::Cancelled);
        }
        let _reading = self.reading.lock().unwrap_or_else(PoisonError::into_inner);
        let mut assignment = TopicPartitionList::new();
        assignment
            .add_partition_offset(topic, partition, Offset::Offset(start))
            .map_err(QueryError::Refused)?;
        self.consumer.assign(&assignment).map_err(QueryError::Refused)?;
        let found = read();
        drop(self.consumer.unassign());
        found
    }

    /// Reads on in a partition, for one turn at most.
    pub fn scan(&self, scan: &mut Scan, turn: &FairShare) -> Result<Step, QueryError> {
        let topic = Arc::clone(&scan.topic);
        self.reading_from(&topic, scan.partition, scan.end(), || self.read(scan, turn))
    }

    fn read(&self, scan: &mut Scan, turn: &FairShare) -> Result<Step, QueryError> {
        let (began, mut heard) = (Instant::now(), Instant::now());
        while !self.is_cancelled() {
            if turn.is_over(self, began, heard) {
                return Ok(Step::GaveWay);
            }
            match self.consumer.poll(POLL) {
                None => {}
                // Left over from the partition that was read before.
                Some(Ok(message)) if !is_of(&message, &scan.topic, scan.partition) => {}
                Some(Ok(message)) => {
                    failpoint::pass(Boundary::InSearch);
                    heard = Instant::now();
                    if scan.on_record(self, &message) {
                        return Ok(Step::Done);
                    }
                }
                Some(Err(KafkaError::PartitionEOF(partition))) if partition == scan.partition => {
                    return Ok(scan.on_partition_end(self.read_up_to(&scan.topic, partition)));
                }
                Some(Err(error)) if is_out_of_range(&error) => return Ok(Step::OutOfRange),
                Some(Err(error)) if is_refusal(&error) => return Err(QueryError::Refused(error)),
                Some(Err(error)) => tracing::debug!(%error, "searching Kafka"),
            }
        }
        Err(QueryError::Cancelled)
    }

    /// The offset behind everything the consumer was given, control records included.
    fn read_up_to(&self, topic: &str, partition: i32) -> Option<i64> {
        let positions = self.consumer.position().ok()?;
        positions.find_partition(topic, partition)?.offset().to_raw().filter(|offset| *offset >= 0)
    }

    /// The position of a record, if it is ours, of whatever history.
    pub(crate) fn position(&self, message: &BorrowedMessage<'_>) -> Option<Position> {
        if value_of(message, header::CE_SOURCE)? != self.source.as_bytes() {
            return None;
        }
        position_of(message)
    }

    /// Whether a record of this time was written while the database server was running. A server that was put back to an
    /// earlier state was started after everything it has forgotten; so such a record, if it lies beyond the server's end,
    /// is another server's.
    pub(crate) fn is_of_this_run(&self, message: &BorrowedMessage<'_>) -> bool {
        message.timestamp().to_millis().is_some_and(|time| time >= self.server_started)
    }

    pub(crate) fn is_cancelled(&self) -> bool {
        self.cancelled.load(Ordering::Relaxed)
    }
}

/// How long one reading may keep others from theirs.
#[derive(Clone, Copy, Debug)]
pub struct FairShare {
    /// Without anything.
    quiet: Duration,
    /// In all.
    busy: Option<Duration>,
}

impl FairShare {
    /// For a reading that rows wait for.
    pub fn first() -> Self {
        FairShare { quiet: FIRST_TURN, busy: None }
    }

    /// For a reading that nothing waits for.
    pub fn brief(busy: Duration) -> Self {
        FairShare { quiet: FIRST_TURN, busy: Some(busy) }
    }

    /// The next turn of the same reading.
    #[must_use]
    pub fn longer(self) -> Self {
        FairShare { quiet: (self.quiet * 2).min(LONGEST_TURN), ..self }
    }

    /// Whether it is over for a reading that began at `began` and has heard nothing since `heard`.
    pub(crate) fn is_over(&self, searcher: &PartitionScanner, began: Instant, heard: Instant) -> bool {
        let quiet = heard.elapsed() >= self.quiet;
        let busy = self.busy.is_some_and(|busy| began.elapsed() >= busy);
        (quiet || busy) && searcher.waiting.load(Ordering::Relaxed) > 0
    }
}

pub(crate) fn is_of(message: &BorrowedMessage<'_>, topic: &str, partition: i32) -> bool {
    message.partition() == partition && message.topic() == topic
}

/// The position in a record, whoever wrote it.
pub(crate) fn position_of(message: &BorrowedMessage<'_>) -> Option<Position> {
    std::str::from_utf8(value_of(message, header::CE_SEQUENCE)?).ok()?.parse().ok()
}

pub(crate) fn value_of<'m>(message: &'m BorrowedMessage<'_>, name: &str) -> Option<&'m [u8]> {
    message.headers()?.iter().find(|header| header.key == name).and_then(|header| header.value)
}

/// The offset is not there any more: retention, or another's DeleteRecords, was faster.
pub(crate) fn is_out_of_range(error: &KafkaError) -> bool {
    error.rdkafka_error_code() == Some(RDKafkaErrorCode::AutoOffsetReset)
}

/// Errors that asking again will not cure.
pub(crate) fn is_refusal(error: &KafkaError) -> bool {
    let code = error.rdkafka_error_code();
    code.is_some_and(|code| {
        matches!(
            reason_of_kafka(code),
            ErrorKind::KafkaPermissionDenied | ErrorKind::KafkaAuthenticationFailed
        )
    })
}
