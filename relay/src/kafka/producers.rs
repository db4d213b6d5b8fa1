//! The Kafka side: idempotent producers, and the queue their acknowledgements come back through.
//!
//! Nothing here decides anything: a failed delivery is handed up like a good one, and the session is then ended and
//! started anew, because a partition may get nothing more after a failed record but a replay that starts with it.

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
use crate::kafka::client::{AuthErrors, client_config};
use crate::progress::ledger::EntryId;
use crate::topics::partitions::PartitionId;

/// A request that a broker has not answered within this is sent again; a leader change is noticed sooner than with
/// librdkafka's 30 s.
const REQUEST_TIMEOUT_MS: &str = "10000";
/// As large as librdkafka allows.
const LARGEST_QUEUE_KBYTES: &str = "2147483647";
/// librdkafka's own default; a little below the brokers' default limit.
const LARGEST_BATCH: usize = 1_000_000;
/// How long a producer that was cut off may take to be connected again: its longest pause is 2 s, and a login takes a
/// while.
const BROKER_WITHIN: Duration = Duration::from_secs(5);
/// How long producers may take to settle what they have sent before they are thrown away.
const SETTLE_WITHIN: Duration = Duration::from_secs(5);

/// Names a record in flight: its ledger entry and its partition, in the one integer librdkafka carries for us, so
/// that a record costs no allocation for its acknowledgement.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tag(usize);

impl Tag {
    const PARTITION_BITS: u32 = 20;
    /// The last entry there could be.
    const REPLAY: EntryId = (1 << 44) - 1;

    /// Packs both. Ledger entries get 44 bits, more than a process will ever read; a million partitions are more
    /// than a Kafka cluster has.
    pub fn new(entry: EntryId, partition: PartitionId) -> Tag {
        Tag((entry as usize) << Self::PARTITION_BITS | partition.0 as usize)
    }

    /// Names a dead letter that is sent again: it has no ledger entry.
    pub fn replay(partition: PartitionId) -> Tag {
        Tag::new(Self::REPLAY, partition)
    }

    /// Whether it was made by [`Tag::replay`].
    pub fn is_replay(self) -> bool {
        self.entry() == Self::REPLAY
    }

    /// The ledger entry.
    pub fn entry(self) -> EntryId {
        (self.0 >> Self::PARTITION_BITS) as EntryId
    }

    /// The partition.
    pub fn partition(self) -> PartitionId {
        PartitionId((self.0 & ((1 << Self::PARTITION_BITS) - 1)) as u32)
    }
}

/// What became of one record.
#[derive(Debug)]
pub struct Ack {
    /// Which record.
    pub tag: Tag,
    /// Its offset, or why it may not be in Kafka.
    pub outcome: Result<i64, RDKafkaErrorCode>,
}

/// Acknowledgements on their way from librdkafka's threads to the one task that keeps the ledger.
#[derive(Default)]
pub struct AckQueue {
    acks: Mutex<Vec<Ack>>,
    arrived: Notify,
    brokers_down: AtomicBool,
    failed: AtomicBool,
    distrust: AuthErrors,
    complaint: Mutex<Option<String>>,
}

impl AckQueue {
    /// Waits until there is something to take.
    pub async fn arrived(&self) {
        self.arrived.notified().await;
    }

    /// Takes all there is into `taken`, which must be empty and keeps its memory between calls.
    pub fn take(&self, taken: &mut Vec<Ack>) {
        std::mem::swap(&mut *self.acks.lock().unwrap_or_else(PoisonError::into_inner), taken);
    }

    /// Whether librdkafka has said since the last call that it lost all brokers. It says so of idle connections that a
    /// broker has closed, too: a reason to ask, not an answer.
    pub fn take_brokers_down(&self) -> bool {
        self.brokers_down.swap(false, Ordering::Relaxed)
    }

    /// Whether a producer has given up for good: it sends nothing any more.
    pub fn producer_failed(&self) -> bool {
        self.failed.load(Ordering::Relaxed)
    }

    /// Why a broker and this process do not trust each other, in librdkafka's words.
    pub fn auth_errors(&self) -> &AuthErrors {
        &self.distrust
    }

    /// What librdkafka said last of a connection that failed. It may be over; it is for the words beside a fault that is
    /// not.
    pub fn last_connection_error(&self) -> Option<String> {
        self.complaint.lock().unwrap_or_else(PoisonError::into_inner).clone()
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
    /// Not every failed connection is an error to librdkafka; its log has them all.
    fn log(&self, level: RDKafkaLogLevel, facility: &str, line: &str) {
        if kafka_admin::is_halt(line) {
            return;
        }
        if facility == "FAIL" {
            // Behind the name of a thread.
            let line = line.split_once("]: ").map_or(line, |(_, line)| line);
            *self.0.complaint.lock().unwrap_or_else(PoisonError::into_inner) = Some(line.to_owned());
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
            _ if self.0.distrust.record(&error, reason) => self.0.arrived.notify_one(),
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
            Ok(message) if message.offset() >= 0 => Ok(message.offset()),
            // librdkafka concludes it from the acknowledgement of a later record (`rd_kafka_dr_implicit_ack`). A broker
            // that had no state of this producer may have refused this record and appended the later one.
            Ok(_) => Err(RDKafkaErrorCode::NoOffset),
            Err((error, _)) => Err(error.rdkafka_error_code().unwrap_or(RDKafkaErrorCode::Unknown)),
        };
        self.0.put(Ack { tag: Tag(tag), outcome });
    }
}

/// One record to send.
#[derive(Debug)]
pub struct ProducerRecord<'a> {
    /// Topic.
    pub topic: &'a str,
    /// Partition number.
    pub partition: i32,
    /// Key.
    pub key: Option<&'a [u8]>,
    /// Value; `None` is a tombstone.
    pub value: Option<&'a [u8]>,
    /// Headers.
    pub headers: OwnedHeaders,
    /// Milliseconds since 1970.
    pub timestamp: i64,
}

/// The producers of one session.
pub struct Producers {
    producers: Vec<Arc<ThreadedProducer<DeliveryReports>>>,
    largest_batch: usize,
}

/// Producers that can be asked a question where blocking is allowed.
pub struct ProducerHandles(Vec<Arc<ThreadedProducer<DeliveryReports>>>);

impl ProducerHandles {
    /// Whether each of them knows so many partitions of a topic. What a producer is told, it keeps.
    pub fn know_partitions(&self, topic: &str, partitions: i32) -> bool {
        let expected = usize::try_from(partitions).unwrap_or(0);
        self.0.iter().all(|producer| {
            let told = producer.client().fetch_metadata(Some(topic), BROKER_WITHIN);
            let count = |told: &Metadata| told.topics().iter().map(|topic| topic.partitions().len()).max();
            told.ok().as_ref().and_then(count).is_some_and(|count| count >= expected)
        })
    }

    /// Whether one of them knows no broker that it could ask. A broker that only answers late is another error, and one
    /// whose connection breaks meanwhile gives the same error, but earlier.
    pub fn has_no_broker(&self) -> bool {
        self.0.iter().any(|producer| {
            let began = Instant::now();
            let asked = producer.client().fetch_metadata(None, BROKER_WITHIN);
            let no_broker = asked.is_err_and(|error| {
                error.rdkafka_error_code() == Some(RDKafkaErrorCode::BrokerTransportFailure)
            });
            no_broker && began.elapsed() >= BROKER_WITHIN
        })
    }
}

impl Producers {
    /// Makes `sink.producers` producers whose acknowledgements go to `acks`. Does not connect yet. No batch will be
    /// larger than `limit`, the smallest of the topics': a topic's limit is one on batches, so that small records
    /// together would be refused as well.
    pub fn new(
        sink: &Sink,
        max_in_flight: usize,
        limit: Option<usize>,
        acks: &Arc<AckQueue>,
    ) -> Result<Producers, KafkaError> {
        let largest_batch = limit.unwrap_or(LARGEST_BATCH).min(LARGEST_BATCH);
        let mut config = producer_config(sink, max_in_flight);
        config.set("batch.size", largest_batch.to_string());
        let producers = (0..sink.producers)
            .map(|_| config.create_with_context(DeliveryReports(Arc::clone(acks))).map(Arc::new));
        Ok(Producers { producers: producers.collect::<Result<_, _>>()?, largest_batch })
    }

    /// Whether these producers keep to a topic's limit.
    pub fn keep_to(&self, limit: usize) -> bool {
        self.largest_batch <= limit
    }

    /// Why one of them has failed for good.
    pub fn failure(&self) -> Option<(RDKafkaErrorCode, String)> {
        self.producers.iter().find_map(|producer| producer.client().fatal_error())
    }

    /// The same producers, or the one that sends to `partition`, to be asked a question.
    pub fn handles(&self, partition: Option<i32>) -> ProducerHandles {
        let of_one = partition.map(|partition| self.of(partition).cloned().into_iter().collect());
        ProducerHandles(of_one.unwrap_or_else(|| self.producers.clone()))
    }

    /// The producer of a partition, so that order within a partition holds.
    fn of(&self, partition: i32) -> Option<&Arc<ThreadedProducer<DeliveryReports>>> {
        self.producers.get(partition.unsigned_abs() as usize % self.producers.len().max(1))
    }

    /// Hands a record over to the producer of its partition.
    pub fn send(&self, record: ProducerRecord<'_>, tag: Tag) -> Result<(), KafkaError> {
        let producer = self.of(record.partition).ok_or(KafkaError::Canceled)?;
        let mut message = BaseRecord::<[u8], [u8], usize>::with_opaque_to(record.topic, tag.0)
            .partition(record.partition)
            .headers(record.headers)
            .timestamp(record.timestamp);
        if let Some(key) = record.key {
            message = message.key(key);
        }
        if let Some(value) = record.value {
            message = message.payload(value);
        }
        producer.send(message).map_err(|(error, _)| error)
    }

    /// Gives up what was not sent, and what would have to be sent again: a record behind one that was given up must not
    /// be appended.
    pub fn purge_queued(&self) {
        for producer in &self.producers {
            kafka_admin::halt(producer.client());
            producer.purge(PurgeConfig::default().queue());
        }
    }

    /// Gives up what was sent, too: nothing of it is sent again.
    pub fn purge_all(&self) {
        for producer in &self.producers {
            kafka_admin::halt(producer.client());
            producer.purge(PurgeConfig::default().queue().inflight());
        }
    }

    /// Ends the producers. What was sent gets a little time to be answered, so that a search that follows sees
    /// it. Blocks: call it where blocking is allowed.
    pub fn close(self) {
        let deadline = Instant::now() + SETTLE_WITHIN;
        loop {
            // What is refused for the moment is back in the queue.
            self.purge_queued();
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

/// librdkafka settings. The ones that carry a promise:
/// - `enable.idempotence`, `acks=all`: a retry is not a second record, an acknowledgement is a replicated record.
/// - `enable.gapless.guarantee`: nothing is appended behind a failed record; high marks rest on it.
/// - `message.timeout.ms=0`: a record never expires in the queue, which would leave a hole; an outage is waited out.
/// - `allow.auto.create.topics=false`: a typing error must not create a topic.
fn producer_config(sink: &Sink, max_in_flight: usize) -> ClientConfig {
    let mut config = client_config(sink);
    config
        // With failed connections, for the words beside an outage.
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
        // The budget is ours, in records and bytes; librdkafka's own must never be the one that is full.
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

    proptest! {
        #[test]
        fn a_tag_gives_back_what_it_was_made_of(entry in 0u64..1 << 44, partition in 0u32..1 << 20) {
            let tag = Tag::new(entry, PartitionId(partition));
            prop_assert_eq!((tag.entry(), tag.partition()), (entry, PartitionId(partition)));
        }
    }

    #[test]
    fn the_settings_that_carry_the_promises_are_set() {
        let sink: Sink = serde_json::from_value(serde_json::json!({"bootstrapServers": "k:1"})).unwrap();
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
    fn the_largest_budget_that_can_be_configured_is_taken() {
        let sink: Sink = serde_json::from_value(serde_json::json!({"bootstrapServers": "k:1"})).unwrap();
        assert!(Producers::new(&sink, 1_000_000, None, &Arc::default()).is_ok());
        let queue: u64 = LARGEST_QUEUE_KBYTES.parse().unwrap();
        // `delivery.maxInFlightBytes` is at most this.
        assert!(queue * 1024 > 1 << 32);
    }

    /// A broker that answers requests for metadata: with itself, and once it is fenced with no broker at all.
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
        // A long name: librdkafka reserves memory for an answer by its length, and has none for a very short one.
        response.extend([0, 0, 0, 1, 0, 0, 0, 200]);
        response.extend([b't'; 200]);
        response.extend([0, 0, 0, 1]);
        response.extend([0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0, 1]);
        stream.write_all(&u32::try_from(response.len()).unwrap().to_be_bytes())?;
        stream.write_all(&response)
    }

    /// When this fails because the client has found its way back, [`Reachability::ClientStranded`] can go.
    #[test]
    fn a_client_that_was_told_of_no_broker_has_nobody_to_ask() {
        let fenced = Arc::new(AtomicBool::new(false));
        let mut config = ClientConfig::new();
        config.set("bootstrap.servers", format!("127.0.0.1:{}", broker(&fenced)));
        // Without the question which versions there are.
        config.set("api.version.request", "false").set("broker.version.fallback", "0.9.0.1");
        let acks = Arc::new(AckQueue::default());
        let producer: ThreadedProducer<DeliveryReports> =
            config.create_with_context(DeliveryReports(acks)).unwrap();
        let producer = Arc::new(producer);
        let roster = ProducerHandles(vec![Arc::clone(&producer)]);
        let brokers =
            || producer.client().fetch_metadata(None, Duration::from_secs(30)).unwrap().brokers().len();
        // It goes on by the bootstrap server while it still holds that beside the broker it has learnt of.
        let deadline = Instant::now() + Duration::from_secs(60);
        loop {
            assert_eq!(brokers(), 1);
            assert!(!roster.has_no_broker());
            fenced.store(true, Ordering::Relaxed);
            assert_eq!(brokers(), 0);
            fenced.store(false, Ordering::Relaxed);
            if roster.has_no_broker() {
                return;
            }
            assert!(Instant::now() < deadline, "told of no broker again and again, it always had one to ask");
        }
    }
}
