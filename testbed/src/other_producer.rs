//! Another application that writes to the topics of a relay. Its records are not CloudEvents and carry [`MARK`].

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use rdkafka::ClientConfig;
use rdkafka::error::KafkaError;
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::{BaseRecord, Producer, ThreadedProducer};

use crate::Error;

/// The header by which a reader knows these records.
pub const MARK: &str = "other-producer";
/// How often a few records are written.
const TICK: Duration = Duration::from_millis(20);

/// Writes until it is stopped or dropped.
pub struct OtherProducer {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<Result<u64, KafkaError>>>,
}

impl OtherProducer {
    /// Writes `per_second` records into the partitions of `topic`.
    ///
    /// # Errors
    /// The Kafka client cannot be created.
    pub fn start(bootstrap: &str, topic: &str, per_second: u32) -> Result<OtherProducer, Error> {
        let producer = ClientConfig::new()
            .set("bootstrap.servers", bootstrap)
            .set("sticky.partitioning.linger.ms", "0")
            .create()
            .map_err(|error| Error::Kafka {
                doing: "creating a producer".into(),
                detail: error.to_string(),
            })?;
        let stop = Arc::new(AtomicBool::new(false));
        let (stopped, topic) = (Arc::clone(&stop), topic.to_owned());
        let thread = std::thread::spawn(move || write(&producer, &topic, per_second, &stopped));
        Ok(OtherProducer { stop, thread: Some(thread) })
    }

    /// Stops, and returns how many records are in Kafka.
    ///
    /// # Errors
    /// A record was refused.
    pub fn stop(mut self) -> Result<u64, Error> {
        self.stop.store(true, Ordering::Relaxed);
        let failed = |detail: String| Error::Kafka { doing: "writing as another producer".into(), detail };
        let written = self.thread.take().map_or(Ok(Ok(0)), JoinHandle::join);
        written.map_err(|_| failed("it panicked".into()))?.map_err(|error| failed(error.to_string()))
    }
}

impl Drop for OtherProducer {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

fn write(
    producer: &ThreadedProducer<rdkafka::producer::DefaultProducerContext>,
    topic: &str,
    per_second: u32,
    stop: &AtomicBool,
) -> Result<u64, KafkaError> {
    let (mut written, mut due) = (0, 0.0);
    while !stop.load(Ordering::Relaxed) {
        due += f64::from(per_second) * TICK.as_secs_f64();
        while (written as f64) < due {
            let headers = OwnedHeaders::new().insert(Header { key: MARK, value: Some("1") });
            let record: BaseRecord<'_, str, str> =
                BaseRecord::to(topic).headers(headers).payload("not an event");
            producer.send(record).map_err(|(error, _)| error)?;
            written += 1;
        }
        std::thread::sleep(TICK);
    }
    producer.flush(Duration::from_secs(30))?;
    Ok(written)
}
