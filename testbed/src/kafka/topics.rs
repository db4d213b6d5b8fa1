//! Topics of a cluster, as an administrator changes them.

use std::time::Duration;

use rdkafka::admin::{
    AdminClient, AdminOptions, AlterConfig, NewPartitions, NewTopic, ResourceSpecifier, TopicReplication,
};
use rdkafka::client::DefaultClientContext;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::{ClientConfig, Offset, TopicPartitionList};

use super::{Kafka, READY_WITHIN, client};
use crate::{Error, wait};

const REQUEST_WITHIN: Duration = Duration::from_secs(10);

impl Kafka {
    /// Makes a topic and waits until every partition has a leader.
    pub async fn create_topic(
        &self,
        name: &str,
        partitions: i32,
        replicas: i32,
        settings: &[(&str, &str)],
    ) -> Result<(), Error> {
        create_topic(&self.bootstrap(), name, partitions, replicas, settings).await
    }

    /// Deletes a topic.
    pub async fn delete_topic(&self, name: &str) -> Result<(), Error> {
        delete_topic(&self.bootstrap(), name).await
    }
}

/// Sets configuration of a topic on any cluster; replaces what was set before.
pub async fn alter_topic(bootstrap: &str, name: &str, settings: &[(&str, &str)]) -> Result<(), Error> {
    let doing = format!("altering topic {name}");
    let mut change = AlterConfig::new(ResourceSpecifier::Topic(name));
    change.entries.extend(settings.iter().copied());
    let results = admin(bootstrap)?.alter_configs([&change], &admin_options()).await;
    let failed = results.map_err(|error| kafka_error(&doing, &error))?.into_iter().find_map(Result::err);
    failed.map_or(Ok(()), |(_, code)| Err(kafka_error(&doing, &code)))
}

/// Deletes a topic on any cluster and waits until it is gone from the metadata.
pub async fn delete_topic(bootstrap: &str, name: &str) -> Result<(), Error> {
    let doing = format!("deleting topic {name}");
    let results = admin(bootstrap)?.delete_topics(&[name], &admin_options()).await;
    let failed = results.map_err(|error| kafka_error(&doing, &error))?.into_iter().find_map(Result::err);
    if let Some((_, code)) = failed {
        return Err(kafka_error(&doing, &code));
    }
    until_led(bootstrap, name, 0).await
}

/// Gives a topic on any cluster more partitions and waits until each has a leader.
pub async fn grow_topic(bootstrap: &str, name: &str, partitions: i32) -> Result<(), Error> {
    let doing = format!("growing topic {name}");
    let wanted = NewPartitions::new(name, partitions.unsigned_abs() as usize);
    let results = admin(bootstrap)?.create_partitions([&wanted], &admin_options()).await;
    let failed = results.map_err(|error| kafka_error(&doing, &error))?.into_iter().find_map(Result::err);
    if let Some((_, code)) = failed {
        return Err(kafka_error(&doing, &code));
    }
    until_led(bootstrap, name, partitions).await
}

/// Removes all records of a partition, as retention would: offsets continue.
pub async fn delete_records(bootstrap: &str, name: &str, partition: i32) -> Result<(), Error> {
    let doing = format!("removing records of {name}/{partition}");
    let mut until = TopicPartitionList::new();
    until.add_partition_offset(name, partition, Offset::End).map_err(|error| kafka_error(&doing, &error))?;
    let removed = admin(bootstrap)?.delete_records(&until, &admin_options()).await;
    removed.map(drop).map_err(|error| kafka_error(&doing, &error))
}

/// Makes a topic on any cluster and waits until every partition has a leader.
pub async fn create_topic(
    bootstrap: &str,
    name: &str,
    partitions: i32,
    replicas: i32,
    settings: &[(&str, &str)],
) -> Result<(), Error> {
    let doing = format!("making topic {name}");
    let mut topic = NewTopic::new(name, partitions, TopicReplication::Fixed(replicas));
    topic.config.extend(settings.iter().copied());
    let results = admin(bootstrap)?.create_topics([&topic], &admin_options()).await;
    let failed = results.map_err(|error| kafka_error(&doing, &error))?.into_iter().find_map(Result::err);
    if let Some((_, code)) = failed {
        return Err(kafka_error(&doing, &code));
    }
    until_led(bootstrap, name, partitions).await
}

async fn until_led(bootstrap: &str, name: &str, partitions: i32) -> Result<(), Error> {
    let (bootstrap, name) = (bootstrap.to_owned(), name.to_owned());
    wait::until(format!("a leader for every partition of {name}"), READY_WITHIN, async || {
        let (bootstrap, name) = (bootstrap.clone(), name.clone());
        let led = tokio::task::spawn_blocking(move || led_partitions(&bootstrap, &name)).await;
        match led {
            Ok(Ok(count)) if count == partitions.unsigned_abs() as usize => Ok(()),
            Ok(Ok(count)) => Err(format!("{count} of {partitions} have one")),
            Ok(Err(error)) => Err(error.to_string()),
            Err(error) => Err(error.to_string()),
        }
    })
    .await
}

fn led_partitions(bootstrap: &str, topic: &str) -> Result<usize, rdkafka::error::KafkaError> {
    let consumer: BaseConsumer = client(bootstrap).create()?;
    let metadata = consumer.fetch_metadata(Some(topic), REQUEST_WITHIN)?;
    let topic = metadata.topics().iter().find(|found| found.name() == topic);
    Ok(topic.map_or(0, |topic| topic.partitions().iter().filter(|partition| partition.leader() >= 0).count()))
}

fn admin(bootstrap: &str) -> Result<AdminClient<DefaultClientContext>, Error> {
    let mut config = ClientConfig::new();
    config.set("bootstrap.servers", bootstrap).set("log_level", "0");
    config.create().map_err(|error| kafka_error("making an admin client", &error))
}

fn admin_options() -> AdminOptions {
    AdminOptions::new().request_timeout(Some(REQUEST_WITHIN)).operation_timeout(Some(REQUEST_WITHIN))
}

fn kafka_error(doing: &str, error: &impl ToString) -> Error {
    Error::Kafka { doing: doing.to_owned(), detail: error.to_string() }
}
