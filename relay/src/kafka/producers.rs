//! The idempotent producers, and the queue of their acknowledgements.
//!
//! Nothing here decides anything: a failed delivery is reported like a successful one. It ends the session, because
//! after a failed record a partition must receive nothing before that record was sent again.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use rdkafka::config::{ClientConfig, RDKafkaLogLevel};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{DeliveryResult, Message, OwnedHeaders};
use rdkafka::metadata::Metadata;
use rdkafka::producer::{BaseRecord, Producer, ProducerContext, PurgeConfig, ThreadedProducer};
use rdkafka::{ClientContext, util::Timeout};
use tokio::sync::Notify;

use crate::config::Sink;
use crate::failpoint::{self, Boundary};
use crate::kafka::client::{self, AuthErrors, client_config};
use crate::progress::ledger::EntryId;
use crate::progress::offset::Offset;
use crate::topics::kafka_time::KafkaTime;
use crate::topics::partitions::{PartitionId, PartitionNumber};

/// A request without a response within this time is retried. It is shorter than librdkafka's 30 s, so that a leader
/// change is noticed sooner.
const REQUEST_TIMEOUT_MS: &str = "10000";
/// The largest value that librdkafka allows.
const LARGEST_QUEUE_KBYTES: &str = "2147483647";
/// librdkafka's default, a little below the brokers' default limit.
const LARGEST_BATCH: usize = 1_000_000;
/// Time allowed for a disconnected producer to reconnect: its longest backoff is 2 s, and authentication takes a while.
const BROKER_WITHIN: Duration = Duration::from_secs(5);
/// Time allowed for producers to complete the requests in flight before they are dropped.
const SETTLE_WITHIN: Duration = Duration::from_secs(5);

/// Identifies a record in flight: its ledger entry and its partition, in the one integer that librdkafka carries with
/// each record. So an acknowledgement needs no allocation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tag(usize);

impl Tag {
    const PARTITION_BITS: u32 = 20;
    /// The last possible entry.
    const REPLAY: EntryId = EntryId((1 << 44) - 1);

    /// Packs both. Ledger entries get 44 bits, more than a process will ever use. The other 20 bits are enough for a
    /// million partitions, more than a Kafka cluster has.
    pub fn new(entry: EntryId, partition: PartitionId) -> Tag {
        Tag((entry.0 as usize) << Self::PARTITION_BITS | partition.0 as usize)
    }

    /// The tag of a replayed dead letter, which has no ledger entry.
    pub fn replay(partition: PartitionId) -> Tag {
        Tag::new(Self::REPLAY, partition)
    }

    /// Whether this is the tag of a replayed dead letter.
    pub fn is_replay(self) -> bool {
        self.entry() == Self::REPLAY
    }

    pub fn entry(self) -> EntryId {
        EntryId((self.0 >> Self::PARTITION_BITS) as u64)
    }

    pub fn partition(self) -> PartitionId {
        PartitionId((self.0 & ((1 << Self::PARTITION_BITS) - 1)) as u32)
    }
}

/// The outcome of one record.
#[derive(Debug)]
pub struct Ack {
    /// The record.
    pub tag: Tag,
    /// Its offset, or why it may not be in Kafka.
    pub outcome: Result<Offset, RDKafkaErrorCode>,
}

/// Passes acknowledgements from librdkafka's threads to the event loop.
pub struct AckQueue {
    acks: Mutex<Vec<Ack>>,
    arrived: Notify,
    brokers_down: AtomicBool,
    failed: AtomicBool,
    auth_errors: AuthErrors,
    last_connection_error: Mutex<Option<String>>,
}

impl AckQueue {
    pub fn new(sink: &Sink) -> AckQueue {
        AckQueue {
            acks: Mutex::default(),
            arrived: Notify::default(),
            brokers_down: AtomicBool::default(),
            failed: AtomicBool::default(),
            auth_errors: AuthErrors::new(sink),
            last_connection_error: Mutex::default(),
        }
    }

    /// Waits for an acknowledgement or a failure.
    pub async fn arrived(&self) {
        self.arrived.notified().await;
    }

    /// Moves all acknowledgements into `drained`, which must be empty. Its memory is reused between calls.
    pub fn take(&self, drained: &mut Vec<Ack>) {
        std::mem::swap(&mut *self.acks.lock().unwrap_or_else(PoisonError::into_inner), drained);
    }

    /// Whether librdkafka has reported since the last call that all brokers are down. It also does so when a broker
    /// closes an idle connection, so this is only a reason to query Kafka.
    pub fn take_brokers_down(&self) -> bool {
        self.brokers_down.swap(false, Ordering::Relaxed)
    }

    /// Whether a producer has failed permanently and sends nothing any more.
    pub fn producer_failed(&self) -> bool {
        self.failed.load(Ordering::Relaxed)
    }

    /// The TLS and SASL errors that librdkafka reported.
    pub fn auth_errors(&self) -> &AuthErrors {
        &self.auth_errors
    }

    /// The last connection error that librdkafka logged. It may be stale: use it only to explain a failure that is
    /// still ongoing.
    pub fn last_connection_error(&self) -> Option<String> {
        self.last_connection_error.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn put(&self, ack: Ack) {
        let mut acks = self.acks.lock().unwrap_or_else(PoisonError::into_inner);
        acks.push(ack);
        let first = acks.len() == 1;
        drop(acks);
        if first {
            self.arrived.notify_one();
        }
    }
}

struct DeliveryReports(Arc<AckQueue>);

impl ClientContext for DeliveryReports {
    /// Reads failed connections from the log, because librdkafka does not report all of them as errors.
    fn log(&self, level: RDKafkaLogLevel, facility: &str, line: &str) {
        if kafka_admin::is_halt(line) {
            return;
        }
        if facility == "FAIL" {
            // The message follows the name of a thread.
            let message = line.split_once("]: ").map_or(line, |(_, message)| message);
            let mut last = self.0.last_connection_error.lock().unwrap_or_else(PoisonError::into_inner);
            *last = Some(message.to_owned());
        }
        tracing::info!(target: "librdkafka", ?level, facility, "{line}");
    }

    fn error(&self, error: KafkaError, reason: &str) {
        match error.rdkafka_error_code() {
            Some(RDKafkaErrorCode::AllBrokersDown) => self.0.brokers_down.store(true, Ordering::Relaxed),
            Some(RDKafkaErrorCode::Fatal) => {
                self.0.failed.store(true, Ordering::Relaxed);
                self.0.arrived.notify_one();
            }
            _ if self.0.auth_errors.record(&error, reason) => self.0.arrived.notify_one(),
            _ => {}
        }
        tracing::debug!(%error, reason, "Kafka client");
    }
}

impl ProducerContext for DeliveryReports {
    type DeliveryOpaque = usize;

    fn delivery(&self, result: &DeliveryResult<'_>, tag: usize) {
        failpoint::pass(Boundary::InCallback);
        let outcome = match result {
            Ok(message) if message.offset() >= 0 => Ok(Offset(message.offset())),
            // librdkafka infers this delivery from the acknowledgement of a later record (`rd_kafka_dr_implicit_ack`).
            // But a broker that had no state of this producer may have refused this record and appended the later one.
            Ok(_) => Err(RDKafkaErrorCode::NoOffset),
            Err((error, _)) => Err(error.rdkafka_error_code().unwrap_or(RDKafkaErrorCode::Unknown)),
        };
        self.0.put(Ack { tag: Tag(tag), outcome });
    }
}

#[derive(Debug)]
pub struct ProducerRecord<'a> {
    pub topic: &'a str,
    pub partition: PartitionNumber,
    pub key: Option<&'a [u8]>,
    /// Value; `None` is a tombstone.
    pub value: Option<&'a [u8]>,
    pub headers: OwnedHeaders,
    pub timestamp: KafkaTime,
}

/// The records that producers drop when they stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purge {
    /// Those that are not in flight, including those that would have to be retried: a record after a dropped one must
    /// not be appended.
    Queued,
    /// Those in flight as well, so that none of them is retried.
    All,
}

/// The producers of one session.
pub struct Producers {
    producers: Vec<Arc<ThreadedProducer<DeliveryReports>>>,
}

/// Producers to query, where blocking is allowed.
pub struct ProducerHandles(Vec<Arc<ThreadedProducer<DeliveryReports>>>);

impl ProducerHandles {
    /// Whether every producer knows this many partitions of a topic. The query updates the producer's metadata.
    pub fn know_partitions(&self, topic: &str, partitions: i32) -> bool {
        let expected = usize::try_from(partitions).unwrap_or(0);
        self.0.iter().all(|producer| {
            let metadata = producer.client().fetch_metadata(Some(topic), BROKER_WITHIN);
            let count =
                |metadata: &Metadata| metadata.topics().iter().map(|topic| topic.partitions().len()).max();
            metadata.ok().as_ref().and_then(count).is_some_and(|count| count >= expected)
        })
    }

    /// Whether one of the producers knows no broker that it can query. A broker that responds late causes another
    /// error. A connection that breaks during the query causes the same error, but earlier.
    pub fn has_no_broker(&self) -> bool {
        self.0.iter().any(|producer| {
            let began = Instant::now();
            let metadata = producer.client().fetch_metadata(None, BROKER_WITHIN);
            let no_broker = metadata.is_err_and(|error| {
                error.rdkafka_error_code() == Some(RDKafkaErrorCode::BrokerTransportFailure)
            });
            no_broker && began.elapsed() >= BROKER_WITHIN
        })
    }
}

/// The size of the producers' batches in bytes. None is larger than `limit`, the smallest limit of the topics: a topic's
/// limit applies to batches, so a broker would also refuse a batch of small records.
pub fn largest_batch(limit: Option<usize>) -> usize {
    limit.unwrap_or(LARGEST_BATCH).min(LARGEST_BATCH)
}

impl Producers {
    /// Creates `sink.producers` producers whose acknowledgements go to `acks`. Does not connect yet. `limit` is the
    /// smallest limit of the topics, see [`largest_batch`].
    pub fn new(
        sink: &Sink,
        max_in_flight: usize,
        limit: Option<usize>,
        acks: &Arc<AckQueue>,
    ) -> Result<Producers, KafkaError> {
        let mut config = producer_config(sink, max_in_flight);
        config.set("batch.size", largest_batch(limit).to_string());
        let producers =
            (0..sink.producers).map(|_| client::create(sink, &config, DeliveryReports(Arc::clone(acks))));
        Ok(Producers { producers: producers.collect::<Result<_, _>>()? })
    }

    /// Why one of the producers has failed permanently, if one has.
    pub fn failure(&self) -> Option<(RDKafkaErrorCode, String)> {
        self.producers.iter().find_map(|producer| producer.client().fatal_error())
    }

    /// Handles to query these producers, or only the one that sends to `partition`.
    pub fn handles(&self, partition: Option<PartitionNumber>) -> ProducerHandles {
        let of_one = partition.map(|partition| self.of(partition).cloned().into_iter().collect());
        ProducerHandles(of_one.unwrap_or_else(|| self.producers.clone()))
    }

    /// The producer of a partition. It is always the same one, which keeps the order within the partition.
    fn of(&self, partition: PartitionNumber) -> Option<&Arc<ThreadedProducer<DeliveryReports>>> {
        self.producers.get(partition.0.unsigned_abs() as usize % self.producers.len().max(1))
    }

    /// Passes a record to the producer of its partition.
    pub fn send(&self, record: ProducerRecord<'_>, tag: Tag) -> Result<(), KafkaError> {
        let producer = self.of(record.partition).ok_or(KafkaError::Canceled)?;
        let mut message = BaseRecord::<[u8], [u8], usize>::with_opaque_to(record.topic, tag.0)
            .partition(record.partition.0)
            .headers(record.headers)
            .timestamp(record.timestamp.0);
        if let Some(key) = record.key {
            message = message.key(key);
        }
        if let Some(value) = record.value {
            message = message.payload(value);
        }
        producer.send(message).map_err(|(error, _)| error)
    }

    /// Stops sending.
    pub fn purge(&self, purge: Purge) {
        let records = match purge {
            Purge::Queued => PurgeConfig::default().queue(),
            Purge::All => PurgeConfig::default().queue().inflight(),
        };
        for producer in &self.producers {
            kafka_admin::halt(producer.client());
            producer.purge(records);
        }
    }

    /// Closes the producers. Requests in flight get a short time to complete, so that the next scan sees their records.
    /// Blocks: call it where blocking is allowed.
    pub fn close(self) {
        let deadline = Instant::now() + SETTLE_WITHIN;
        loop {
            // A record that a broker refused temporarily is in the queue again.
            self.purge(Purge::Queued);
            let settled = self.producers.iter().all(|producer| producer.in_flight_count() == 0);
            if settled || Instant::now() >= deadline {
                break;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        for producer in &self.producers {
            producer.purge(PurgeConfig::default().queue().inflight());
            // Serves the last delivery reports, so that dropping does not wait for them.
            drop(producer.flush(Timeout::After(Duration::from_millis(100))));
        }
    }
}

/// The producers' settings in librdkafka. The relay's guarantees depend on these:
/// - `enable.idempotence`, `acks=all`: a retry does not duplicate a record; an acknowledged record is replicated.
/// - `enable.gapless.guarantee`: nothing is appended after a failed record. Deduplication depends on it.
/// - `message.timeout.ms=0`: a record never expires in the queue, because that would leave a gap. The relay waits for
///   the end of an outage.
/// - `allow.auto.create.topics=false`: a typing error must not create a topic.
fn producer_config(sink: &Sink, max_in_flight: usize) -> ClientConfig {
    let mut config = client_config(sink);
    config
        // This level includes failed connections, which explain an outage.
        .set_log_level(RDKafkaLogLevel::Info)
        .set("enable.idempotence", "true")
        .set("acks", "all")
        .set("enable.gapless.guarantee", "true")
        .set("message.timeout.ms", "0")
        .set("compression.type", sink.compression.as_str())
        .set("linger.ms", sink.linger_ms.to_string())
        .set("message.max.bytes", sink.max_message_bytes.to_string())
        .set("request.timeout.ms", REQUEST_TIMEOUT_MS)
        .set("retry.backoff.ms", "20")
        .set("retry.backoff.max.ms", "500")
        // The relay limits records and bytes itself, so librdkafka's queue must never be full.
        .set("queue.buffering.max.messages", (max_in_flight * 2 + 1000).to_string())
        .set("queue.buffering.max.kbytes", LARGEST_QUEUE_KBYTES);
    config
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::{TcpListener, TcpStream};

    use proptest::prelude::*;

    use super::*;
    use crate::config::Config;
    use crate::testing;

    proptest! {
        #[test]
        fn a_tag_returns_its_entry_and_partition(entry in 0u64..1 << 44, partition in 0u32..1 << 20) {
            let tag = Tag::new(EntryId(entry), PartitionId(partition));
            prop_assert_eq!((tag.entry(), tag.partition()), (EntryId(entry), PartitionId(partition)));
        }
    }

    #[test]
    fn the_settings_that_the_guarantees_depend_on_are_set() {
        let Config { sink, .. } = testing::config();
        let config = producer_config(&sink, 8192);
        for (key, value) in [
            ("enable.idempotence", "true"),
            ("enable.gapless.guarantee", "true"),
            ("acks", "all"),
            ("message.timeout.ms", "0"),
        ] {
            assert_eq!(config.get(key), Some(value), "{key}");
        }
    }

    #[test]
    fn librdkafka_accepts_the_largest_budget_that_can_be_configured() {
        let Config { sink, .. } = testing::config();
        assert!(Producers::new(&sink, 1_000_000, None, &Arc::new(AckQueue::new(&sink))).is_ok());
        let queue: u64 = LARGEST_QUEUE_KBYTES.parse().unwrap();
        // `delivery.maxInFlightBytes` is at most this.
        assert!(queue * 1024 > 1 << 32);
    }

    /// A broker that responds to metadata requests: with itself, and with no broker once it is fenced.
    fn broker(fenced: &Arc<AtomicBool>) -> u16 {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let fenced = Arc::clone(fenced);
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let (mut stream, fenced) = (stream.unwrap(), Arc::clone(&fenced));
                std::thread::spawn(move || while answer(&mut stream, port, &fenced).is_ok() {});
            }
        });
        port
    }

    /// Metadata, version 0: size, correlation, brokers (number, host, port), topics (error, name, partitions (error,
    /// number, leader, replicas, in sync)).
    fn answer(stream: &mut TcpStream, port: u16, fenced: &AtomicBool) -> std::io::Result<()> {
        let mut size = [0; 4];
        stream.read_exact(&mut size)?;
        let mut request = vec![0; u32::from_be_bytes(size) as usize];
        stream.read_exact(&mut request)?;
        assert_eq!(request[..4], [0, 3, 0, 0], "not a request for metadata of version 0");
        let mut response = request[4..8].to_vec();
        if fenced.load(Ordering::Relaxed) {
            response.extend([0, 0, 0, 0]);
        } else {
            response.extend([0, 0, 0, 1, 0, 0, 0, 1, 0, 9]);
            response.extend(b"127.0.0.1");
            response.extend(u32::from(port).to_be_bytes());
        }
        // A long name, because librdkafka allocates memory by the length of the response, too little for a very short
        // one.
        response.extend([0, 0, 0, 1, 0, 0, 0, 200]);
        response.extend([b't'; 200]);
        response.extend([0, 0, 0, 1]);
        response.extend([0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0, 1]);
        stream.write_all(&u32::try_from(response.len()).unwrap().to_be_bytes())?;
        stream.write_all(&response)
    }

    /// librdkafka starts again with the bootstrap server only if it notices that all brokers are down before it has
    /// removed them, which is a race that it usually loses. Here it never does.
    #[test]
    fn a_client_that_got_an_empty_broker_list_has_no_broker_to_query() {
        let fenced = Arc::new(AtomicBool::new(false));
        let mut config = ClientConfig::new();
        config.set("bootstrap.servers", format!("127.0.0.1:{}", broker(&fenced)));
        config.set("metadata.recovery.strategy", "none");
        // Without an ApiVersions request, which the broker above does not support.
        config.set("api.version.request", "false").set("broker.version.fallback", "0.9.0.1");
        let Config { sink, .. } = testing::config();
        let acks = Arc::new(AckQueue::new(&sink));
        let producer: ThreadedProducer<DeliveryReports> =
            config.create_with_context(DeliveryReports(acks)).unwrap();
        let producer = Arc::new(producer);
        let handles = ProducerHandles(vec![Arc::clone(&producer)]);
        let brokers =
            || producer.client().fetch_metadata(None, Duration::from_secs(30)).unwrap().brokers().len();
        assert_eq!(brokers(), 1);
        assert!(!handles.has_no_broker());
        fenced.store(true, Ordering::Relaxed);
        assert_eq!(brokers(), 0);
        fenced.store(false, Ordering::Relaxed);
        assert!(handles.has_no_broker());
    }
}
