//! A Kafka cluster: looks at topics, and carries plans out.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use rdkafka::admin::{
    AdminClient, AdminOptions, AlterConfig, ConfigSource, NewPartitions, NewTopic, ResourceSpecifier,
    TopicReplication,
};
use rdkafka::client::DefaultClientContext;
use rdkafka::config::ClientConfig;
use rdkafka::error::RDKafkaErrorCode;

use super::plan::{Observed, Step};

/// How long one request may take: an outage has to show within 10 s.
const REQUEST_WITHIN: Duration = Duration::from_secs(5);

/// What Kafka did not do.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("Kafka: {doing}: {problem}")]
pub struct KafkaError {
    doing: String,
    problem: String,
    /// The code of the broker or of the client library, where there is one.
    pub code: Option<RDKafkaErrorCode>,
}

/// See the module's text. One is enough for all resources with the same brokers and login.
#[derive(Clone)]
pub struct Cluster(Arc<AdminClient<DefaultClientContext>>);

impl Cluster {
    /// Does not connect yet.
    ///
    /// # Errors
    /// The settings cannot be used.
    pub fn new(config: &ClientConfig) -> Result<Cluster, KafkaError> {
        let client = config.create().map_err(|error| failed("making a client", &error))?;
        Ok(Cluster(Arc::new(client)))
    }

    /// The topics of these names that exist.
    ///
    /// # Errors
    /// Kafka does not answer, or refuses.
    pub async fn observe(&self, names: &[String]) -> Result<BTreeMap<String, Observed>, KafkaError> {
        let (client, wanted) = (Arc::clone(&self.0), names.to_owned());
        let shapes = tokio::task::spawn_blocking(move || shapes(&client, &wanted)).await;
        let shapes = shapes.map_err(|join| KafkaError {
            doing: "looking at topics".into(),
            problem: join.to_string(),
            code: None,
        })??;
        let resources: Vec<_> = shapes.keys().map(|name| ResourceSpecifier::Topic(name)).collect();
        if resources.is_empty() {
            return Ok(BTreeMap::new());
        }
        let doing = "reading the configuration of topics";
        let described = self.0.describe_configs(&resources, &options()).await;
        let described = described.map_err(|error| failed(doing, &error))?;
        let mut observed = BTreeMap::new();
        for ((name, (partitions, replication_factor)), resource) in shapes.iter().zip(described) {
            let resource = resource.map_err(|code| refused(format!("{doing} {name}"), code))?;
            let set_here =
                resource.entries.into_iter().filter(|entry| entry.source == ConfigSource::DynamicTopic);
            let overrides = set_here.filter_map(|entry| Some((entry.name, entry.value?))).collect();
            let (partitions, replication_factor) = (*partitions, *replication_factor);
            observed.insert(name.clone(), Observed { partitions, replication_factor, overrides });
        }
        Ok(observed)
    }

    /// Does something about a topic. Doing it twice is no error.
    ///
    /// # Errors
    /// Kafka does not answer, or refuses.
    pub async fn carry_out(&self, topic: &str, step: &Step) -> Result<(), KafkaError> {
        match step {
            Step::Create { partitions, replication_factor, config } => {
                let replicas = TopicReplication::Fixed(*replication_factor);
                let mut new = NewTopic::new(topic, *partitions, replicas);
                new.config.extend(config.iter().map(|(key, value)| (key.as_str(), value.as_str())));
                let made = self.0.create_topics([&new], &options()).await;
                // Somebody else was faster: what it looks like is seen at the next look.
                done(format!("making topic {topic}"), made, Some(RDKafkaErrorCode::TopicAlreadyExists))
            }
            Step::Grow { partitions } => {
                let count = usize::try_from(*partitions).unwrap_or_default();
                let grown = self.0.create_partitions([&NewPartitions::new(topic, count)], &options()).await;
                done(format!("growing topic {topic} to {partitions} partitions"), grown, None)
            }
            Step::Configure { overrides } => {
                let mut alter = AlterConfig::new(ResourceSpecifier::Topic(topic));
                alter.entries.extend(overrides.iter().map(|(key, value)| (key.as_str(), value.as_str())));
                let doing = format!("configuring topic {topic}");
                let altered = self.0.alter_configs([&alter], &options()).await;
                let altered = altered.map_err(|error| failed(&doing, &error))?;
                let refusal = altered.into_iter().find_map(Result::err);
                refusal.map_or(Ok(()), |(_, code)| Err(refused(doing, code)))
            }
        }
    }

    /// Deletes a topic. One that is not there is no error.
    ///
    /// # Errors
    /// Kafka does not answer, or refuses.
    pub async fn delete(&self, topic: &str) -> Result<(), KafkaError> {
        let deleted = self.0.delete_topics(&[topic], &options()).await;
        done(format!("deleting topic {topic}"), deleted, Some(RDKafkaErrorCode::UnknownTopicOrPartition))
    }
}

/// Partitions and replicas of the topics that exist. All topics in one request; blocks.
fn shapes(
    client: &AdminClient<DefaultClientContext>,
    names: &[String],
) -> Result<BTreeMap<String, (i32, i32)>, KafkaError> {
    let doing = "looking at topics";
    let metadata =
        client.inner().fetch_metadata(None, REQUEST_WITHIN).map_err(|error| failed(doing, &error))?;
    let mut shapes = BTreeMap::new();
    for topic in metadata.topics().iter().filter(|topic| names.iter().any(|name| name == topic.name())) {
        if let Some(code) = topic.error() {
            return Err(refused(format!("{doing}: {}", topic.name()), RDKafkaErrorCode::from(code)));
        }
        let partitions = i32::try_from(topic.partitions().len()).unwrap_or(i32::MAX);
        let replicas = topic.partitions().iter().map(|partition| partition.replicas().len()).min();
        let replicas = replicas.and_then(|replicas| i32::try_from(replicas).ok()).unwrap_or_default();
        // One that was just made is not known to every broker yet.
        if partitions > 0 {
            shapes.insert(topic.name().to_owned(), (partitions, replicas));
        }
    }
    Ok(shapes)
}

fn options() -> AdminOptions {
    AdminOptions::new().request_timeout(Some(REQUEST_WITHIN)).operation_timeout(Some(REQUEST_WITHIN))
}

type Outcomes = Result<Vec<Result<String, (String, RDKafkaErrorCode)>>, rdkafka::error::KafkaError>;

fn done(doing: String, outcomes: Outcomes, already: Option<RDKafkaErrorCode>) -> Result<(), KafkaError> {
    let outcomes = outcomes.map_err(|error| failed(&doing, &error))?;
    let refusal = outcomes.into_iter().filter_map(Result::err).find(|(_, code)| Some(*code) != already);
    refusal.map_or(Ok(()), |(_, code)| Err(refused(doing, code)))
}

fn failed(doing: &str, error: &rdkafka::error::KafkaError) -> KafkaError {
    let code = error.rdkafka_error_code();
    KafkaError { doing: doing.to_owned(), problem: error.to_string(), code }
}

fn refused(doing: String, code: RDKafkaErrorCode) -> KafkaError {
    KafkaError { doing, problem: code.to_string(), code: Some(code) }
}
