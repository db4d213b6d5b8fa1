//! Reads from Kafka: which topics exist, where partitions end, and which records of this outbox they contain.
//!
//! All calls block, but return soon: within a request timeout, or when they yield to another scan.
//! [`queries`](super::queries) makes the calls, and retries those without a response.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use outbox::Position;
use rdkafka::admin::AdminClient;
use rdkafka::client::DefaultClientContext;
use rdkafka::consumer::{BaseConsumer, Consumer, ConsumerContext, DefaultConsumerContext};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};

use crate::config::Sink;
use crate::error::ErrorKind;
use crate::failpoint::{self, Boundary};
use crate::kafka::client::{self, AuthErrors, client_config, reader_config};
use crate::kafka::error_codes::reason_of_kafka;
use crate::kafka::own_records::OwnRecords;
use crate::kafka::partition_reader::{self, Polled};
use crate::kafka::scan::{Scan, Step};
use crate::progress::offset::{Offset, OffsetRange};
use crate::topics::partitions::{PartitionNumber, ScanStart};
use crate::topics::settings::TopicSettings;

/// Timeout of a metadata or watermark request.
pub(crate) const REQUEST: Duration = Duration::from_secs(5);
/// A connected broker responds within this time.
const SECOND_BROKER_WITHIN: Duration = Duration::from_secs(1);
/// Timeout of a request that only the leader of a partition can serve.
const LEADER_REQUEST: Duration = Duration::from_secs(3);
/// A scan that receives nothing for this long yields to waiting scans; its leader may be down. The time doubles at each
/// yield, because the connection may merely be slow, and data in flight is fetched again.
const FIRST_TURN: Duration = Duration::from_secs(2);
const LONGEST_TURN: Duration = Duration::from_secs(8);
/// The largest response that is accepted. Another producer's record may be larger than librdkafka's default of 100 MB,
/// and a scan that refused it would never get past it.
const LARGEST_RESPONSE: &str = "2147483647";

/// Why a query to Kafka failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum QueryError {
    /// Records that were acknowledged are gone.
    #[error("{topic}/{partition}: {what}")]
    Lost {
        topic: String,
        partition: PartitionNumber,
        /// What was found instead.
        what: String,
    },
    /// A partition ends with a record of this outbox beyond the end of the server's WAL.
    #[error(
        "{topic}/{partition}: offset {offset} has the event at {position}, beyond the end of the server's WAL"
    )]
    Ahead {
        topic: String,
        partition: PartitionNumber,
        /// The last offset of the partition.
        offset: Offset,
        /// The position of the record there.
        position: Position,
        /// The record was written while this server was running, so another server wrote it.
        by_another_server: bool,
    },
    /// Kafka does not have all records that may prove which rows were delivered.
    #[error("{topic}/{partition}: {what}")]
    EvidenceIncomplete {
        topic: String,
        partition: PartitionNumber,
        /// What is missing.
        what: String,
    },
    /// TLS or SASL with a broker failed.
    #[error("{0}")]
    AuthenticationFailed(String),
    #[error("the query was cancelled, because the session ended")]
    Cancelled,
    #[error("Kafka refused a query: {0}")]
    Refused(KafkaError),
    /// Kafka did not respond. The call is retried.
    #[error("Kafka did not respond: {0}")]
    NoResponse(KafkaError),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reachability {
    /// No broker responds.
    Down,
    /// Kafka responds.
    Up,
    /// Kafka responds, but a client of the session knows no broker to query. A broker that has just restarted, and that
    /// the controller still considers down, returns an empty broker list. librdkafka then drops all brokers it knew,
    /// and never connects again (confluentinc/librdkafka#5301).
    ClientStranded,
}

#[derive(Debug)]
pub struct FoundTopic {
    pub partitions: i32,
    /// The end offset of each partition. No record before it is from this outbox.
    pub ends: BTreeMap<PartitionNumber, ScanStart>,
    /// The topic's settings, if the relay may read them.
    pub settings: Option<TopicSettings>,
}

/// Reads from Kafka for one session.
pub struct PartitionScanner {
    /// One client for all queries, because closing a client takes a tenth of a second.
    pub(crate) admin: Arc<AdminClient<DefaultClientContext>>,
    pub(crate) consumer: Arc<BaseConsumer<AuthErrors>>,
    sink: Sink,
    /// Held by the scan that reads records, because the consumer has one assignment.
    reading: Mutex<()>,
    /// The number of scans that wait to read records.
    pub(crate) waiting: AtomicUsize,
    pub(crate) own: OwnRecords,
    cancelled: AtomicBool,
}

impl PartitionScanner {
    /// A scanner for this outbox's records.
    pub fn new(sink: &Sink, own: OwnRecords) -> Result<PartitionScanner, KafkaError> {
        let mut config = reader_config(sink, "search");
        config
            .set("auto.offset.reset", "error")
            .set("fetch.wait.max.ms", "10")
            .set("receive.message.max.bytes", LARGEST_RESPONSE);
        let consumer = client::create(sink, &config, AuthErrors::new(sink))?;
        let (reading, waiting, cancelled) = (Mutex::new(()), AtomicUsize::new(0), AtomicBool::new(false));
        let admin = client::create(sink, &client_config(sink), DefaultClientContext)?;
        Ok(PartitionScanner { admin, consumer, sink: sink.clone(), reading, waiting, own, cancelled })
    }

    /// Makes all running calls return soon.
    pub fn cancel(&self) {
        self.cancelled.store(true, Ordering::Relaxed);
    }

    /// Whether Kafka responds to this client or, if not, to a new one. If this client queried a broker that does not
    /// respond, for example because it is suspended, it still knows other brokers. If it waited the whole time for a
    /// broker to query, it knows none.
    pub fn reachability(&self) -> Result<Reachability, QueryError> {
        let began = Instant::now();
        let Err(error) = self.consumer.fetch_metadata(None, REQUEST) else { return Ok(Reachability::Up) };
        let no_broker = error.rdkafka_error_code() == Some(RDKafkaErrorCode::BrokerTransportFailure);
        let waited = began.elapsed() >= REQUEST;
        self.check_authentication()?;
        let new_client: Result<Arc<BaseConsumer>, _> =
            client::create(&self.sink, &reader_config(&self.sink, "search"), DefaultConsumerContext);
        let responded = new_client.and_then(|client| client.fetch_metadata(None, REQUEST)).is_ok();
        Ok(match responded {
            false => Reachability::Down,
            true if no_broker && waited => Reachability::ClientStranded,
            true => Reachability::Up,
        })
    }

    /// Whether a request failed because of TLS or SASL. A broker that fails authentication is treated like one that is
    /// down: while others respond, the session continues with their partitions.
    fn check_authentication(&self) -> Result<(), QueryError> {
        // If a scan is reading records, it polls the errors.
        if let Ok(_reading) = self.reading.try_lock() {
            while self.consumer.poll(Duration::ZERO).is_some() {}
        }
        let Some(why) = self.consumer.context().take() else { return Ok(()) };
        match self.consumer.fetch_metadata(None, SECOND_BROKER_WITHIN) {
            Ok(_) => Ok(()),
            Err(_) => Err(QueryError::AuthenticationFailed(why)),
        }
    }

    /// The number of partitions of a topic; 0 if it does not exist.
    pub fn partition_count(&self, name: &str) -> Result<i32, QueryError> {
        self.request(|| partition_count(&*self.consumer, name, REQUEST))
    }

    pub fn watermarks(&self, topic: &str, partition: PartitionNumber) -> Result<OffsetRange, QueryError> {
        let (low, high) =
            self.request(|| self.consumer.fetch_watermarks(topic, partition.0, LEADER_REQUEST))?;
        Ok(OffsetRange { from: Offset(low), until: Offset(high) })
    }

    /// Makes a request once.
    pub(crate) fn request<T>(
        &self,
        request: impl FnOnce() -> Result<T, KafkaError>,
    ) -> Result<T, QueryError> {
        if self.is_cancelled() {
            return Err(QueryError::Cancelled);
        }
        let error = match request() {
            Ok(response) => return Ok(response),
            Err(error) if is_refusal(&error) => return Err(QueryError::Refused(error)),
            Err(error) => error,
        };
        self.check_authentication()?;
        Err(QueryError::NoResponse(error))
    }

    /// Runs `read` with the consumer assigned at an offset.
    pub(crate) fn reading_from<T>(
        &self,
        topic: &str,
        partition: PartitionNumber,
        start: Offset,
        read: impl FnOnce() -> Result<T, QueryError>,
    ) -> Result<T, QueryError> {
        if self.is_cancelled() {
            return Err(QueryError::Cancelled);
        }
        let _reading = self.reading.lock().unwrap_or_else(PoisonError::into_inner);
        partition_reader::assign(&self.consumer, topic, partition, rdkafka::Offset::Offset(start.0))
            .map_err(QueryError::Refused)?;
        let found = read();
        drop(self.consumer.unassign());
        found
    }

    /// Continues a scan, until it is complete or has to yield.
    pub fn scan(&self, scan: &mut Scan, share: &FairShare) -> Result<Step, QueryError> {
        let topic = Arc::clone(&scan.topic);
        self.reading_from(&topic, scan.partition, scan.end(), || self.read(scan, share))
    }

    fn read(&self, scan: &mut Scan, share: &FairShare) -> Result<Step, QueryError> {
        let (began, mut last_record) = (Instant::now(), Instant::now());
        while !self.is_cancelled() {
            if share.must_yield(self, began, last_record) {
                return Ok(Step::Yielded);
            }
            match partition_reader::poll(&self.consumer, &scan.topic, scan.partition) {
                Polled::Nothing => {}
                Polled::Record(message) => {
                    failpoint::pass(Boundary::InSearch);
                    last_record = Instant::now();
                    if scan.on_record(&self.own, &message) {
                        return Ok(Step::Done);
                    }
                }
                Polled::End => {
                    let end = self.read_up_to(&scan.topic, scan.partition);
                    return Ok(scan.on_partition_end(end));
                }
                Polled::OutOfRange => return Ok(Step::OutOfRange),
                Polled::Refused(error) => return Err(QueryError::Refused(error)),
            }
        }
        Err(QueryError::Cancelled)
    }

    /// The offset after everything that the consumer received, including control records.
    fn read_up_to(&self, topic: &str, partition: PartitionNumber) -> Option<Offset> {
        let positions = self.consumer.position().ok()?;
        let offset = positions.find_partition(topic, partition.0)?.offset().to_raw()?;
        (offset >= 0).then_some(Offset(offset))
    }

    pub(crate) fn is_cancelled(&self) -> bool {
        self.cancelled.load(Ordering::Relaxed)
    }
}

/// The number of partitions of a topic; 0 if it does not exist. Another error than that decides nothing.
pub fn partition_count<C: ConsumerContext>(
    consumer: &BaseConsumer<C>,
    name: &str,
    within: Duration,
) -> Result<i32, KafkaError> {
    let metadata = consumer.fetch_metadata(Some(name), within)?;
    let topic = metadata.topics().iter().find(|topic| topic.name() == name);
    let count = topic.map_or(Ok(0), |topic| match topic.error().map(RDKafkaErrorCode::from) {
        None => Ok(topic.partitions().len()),
        Some(code) if reason_of_kafka(code) == ErrorKind::TopicMissing => Ok(0),
        Some(code) => Err(KafkaError::MetadataFetch(code)),
    })?;
    Ok(i32::try_from(count).unwrap_or(i32::MAX))
}

/// How long a scan may continue while others wait.
#[derive(Clone, Copy, Debug)]
pub struct FairShare {
    /// Without receiving a record.
    quiet: Duration,
    /// In total.
    total: Option<Duration>,
}

impl FairShare {
    /// For a scan that rows wait for.
    pub fn first() -> Self {
        FairShare { quiet: FIRST_TURN, total: None }
    }

    /// For a scan that no row waits for.
    pub fn brief(total: Duration) -> Self {
        FairShare { quiet: FIRST_TURN, total: Some(total) }
    }

    /// For the same scan, after it has yielded.
    #[must_use]
    pub fn longer(self) -> Self {
        FairShare { quiet: (self.quiet * 2).min(LONGEST_TURN), ..self }
    }

    /// Whether a scan must yield that began at `began` and received its last record at `last_record`.
    pub(crate) fn must_yield(
        &self,
        scanner: &PartitionScanner,
        began: Instant,
        last_record: Instant,
    ) -> bool {
        let quiet = last_record.elapsed() >= self.quiet;
        let used_up = self.total.is_some_and(|total| began.elapsed() >= total);
        (quiet || used_up) && scanner.waiting.load(Ordering::Relaxed) > 0
    }
}

/// Whether retrying cannot resolve the error.
pub(crate) fn is_refusal(error: &KafkaError) -> bool {
    let code = error.rdkafka_error_code();
    code.is_some_and(|code| {
        matches!(
            reason_of_kafka(code),
            ErrorKind::KafkaPermissionDenied | ErrorKind::KafkaAuthenticationFailed
        )
    })
}
