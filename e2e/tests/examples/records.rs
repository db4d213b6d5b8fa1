//! Records that no relay sends: copies, and ones that are no events. And what a consumer group has committed.

use std::time::Duration;

use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};
use rdkafka::{ClientConfig, Offset};
use testbed::records::Record;

use crate::TIMEOUT;
use crate::env::Env;

const REQUEST_DEADLINE: Duration = Duration::from_secs(30);

/// Appends records, each to the partition of its original.
pub fn produce(env: &Env, records: &[Record]) {
    let producer: BaseProducer =
        ClientConfig::new().set("bootstrap.servers", &env.bootstrap).create().unwrap();
    for record in records {
        let headers = record.headers.iter().fold(OwnedHeaders::new(), |headers, (key, value)| {
            headers.insert(Header { key, value: value.as_ref() })
        });
        let mut copy: BaseRecord<'_, [u8], [u8]> =
            BaseRecord::to(&record.topic).partition(record.partition).headers(headers);
        copy.key = record.key.as_deref();
        copy.payload = record.value.as_deref();
        producer.send(copy).map_err(|(error, _)| error).unwrap();
    }
    producer.flush(TIMEOUT).unwrap();
}

/// A copy with another value of a header.
pub fn with_header(record: &Record, name: &str, value: &str) -> Record {
    let mut copy = record.clone();
    copy.headers.retain(|(header, _)| header != name);
    copy.headers.push((name.to_owned(), Some(value.as_bytes().to_vec())));
    copy
}

/// Records of the topic that the consumer group has still to read, by its committed offsets.
pub fn uncommitted(env: &Env) -> i64 {
    let consumer: BaseConsumer = ClientConfig::new()
        .set("bootstrap.servers", &env.bootstrap)
        .set("group.id", &env.group)
        .create()
        .unwrap();
    let mut partitions = rdkafka::TopicPartitionList::new();
    let metadata = consumer.fetch_metadata(Some(&env.topic), REQUEST_DEADLINE).unwrap();
    for partition in metadata.topics()[0].partitions() {
        partitions.add_partition(&env.topic, partition.id());
    }
    let committed = consumer.committed_offsets(partitions, REQUEST_DEADLINE).unwrap();
    let left = committed.elements().into_iter().map(|partition| {
        let (_, end) =
            consumer.fetch_watermarks(&env.topic, partition.partition(), REQUEST_DEADLINE).unwrap();
        match partition.offset() {
            Offset::Offset(offset) => end - offset,
            _ => end,
        }
    });
    left.sum()
}
