//! A Kafka cluster: looks at topics, and carries plans out.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use kafka_admin::Alteration;
use rdkafka::admin::{
    AdminClient, AdminOptions, ConfigSource, NewPartitions, NewTopic, ResourceSpecifier, TopicReplication,
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

/// Partitions and least number of replicas of a topic.
pub type Shape = (i32, i32);

/// All topics there are. Many resources ask about one cluster, so an answer serves all that ask within this time; with
/// [`REQUEST_WITHIN`] and the operator's looks an outage still shows within 10 s.
const FRESH: Duration = Duration::from_secs(3);

type Shapes = Result<Arc<BTreeMap<String, Shape>>, KafkaError>;

/// See the module's text. One is enough for all resources with the same brokers and login; clones share it.
#[derive(Clone)]
pub struct Cluster(Arc<Inner>);

struct Inner {
    config: ClientConfig,
    client: Mutex<Arc<Client>>,
    /// Held while it is asked: those that ask meanwhile get the same answer.
    seen: tokio::sync::Mutex<Option<(Instant, Shapes)>>,
}

type Client = AdminClient<DefaultClientContext>;

impl Cluster {
    /// Does not connect yet.
    ///
    /// # Errors
    /// The settings cannot be used.
    pub fn new(config: &ClientConfig) -> Result<Cluster, KafkaError> {
        let client = Mutex::new(connect(config)?);
        Ok(Cluster(Arc::new(Inner { config: config.clone(), client, seen: tokio::sync::Mutex::default() })))
    }

    fn client(&self) -> Arc<Client> {
        Arc::clone(&self.0.client.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// What Kafka calls itself: the same by whatever name it is reached. `None` where it does not say.
    pub async fn identity(&self) -> Option<String> {
        let client = self.client();
        let asked =
            tokio::task::spawn_blocking(move || client.inner().fetch_cluster_id(REQUEST_WITHIN)).await;
        asked.ok().flatten()
    }

    /// The shapes of those of these topics that exist, at most 3 s old.
    ///
    /// # Errors
    /// Kafka does not answer, or refuses.
    pub async fn shapes(&self, names: &[String]) -> Result<BTreeMap<String, Shape>, KafkaError> {
        let mut seen = self.0.seen.lock().await;
        let shapes = match &*seen {
            Some((at, shapes)) if at.elapsed() < FRESH => shapes.clone(),
            _ => {
                let shapes = self.look().await;
                *seen = Some((Instant::now(), shapes.clone()));
                shapes
            }
        };
        drop(seen);
        let shapes = shapes?;
        Ok(names.iter().filter_map(|name| Some((name.clone(), *shapes.get(name)?))).collect())
    }

    /// A client that got no answer is not used again: librdkafka can be left without any broker to ask, and stay so
    /// (confluentinc/librdkafka#5301).
    async fn look(&self) -> Shapes {
        let client = self.client();
        let looked = tokio::task::spawn_blocking(move || shapes(&client)).await;
        let looked = looked.unwrap_or_else(|join| {
            Err(KafkaError { doing: LOOKING.into(), problem: join.to_string(), code: None })
        });
        if looked.is_err()
            && let Ok(another) = connect(&self.0.config)
        {
            *self.0.client.lock().unwrap_or_else(PoisonError::into_inner) = another;
        }
        looked.map(Arc::new)
    }

    /// The topics of these names that exist.
    ///
    /// # Errors
    /// Kafka does not answer, or refuses.
    pub async fn observe(&self, names: &[String]) -> Result<BTreeMap<String, Observed>, KafkaError> {
        let shapes = self.shapes(names).await?;
        let resources: Vec<_> = shapes.keys().map(|name| ResourceSpecifier::Topic(name)).collect();
        if resources.is_empty() {
            return Ok(BTreeMap::new());
        }
        let doing = "reading the configuration of topics";
        let described = self.client().describe_configs(&resources, &options()).await;
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

    /// The ids of those of these topics that exist: one that was made anew has another.
    ///
    /// # Errors
    /// Kafka does not answer.
    pub async fn ids(&self, names: &[String]) -> Result<BTreeMap<String, String>, KafkaError> {
        let names = names.to_vec();
        blocking(LOOKING.to_owned(), &self.client(), move |client| {
            let names: Vec<&str> = names.iter().map(String::as_str).collect();
            kafka_admin::topic_ids(client.inner(), &names, REQUEST_WITHIN)
        })
        .await
    }

    /// Does something about a topic.
    ///
    /// # Errors
    /// Kafka does not answer, or refuses.
    pub async fn carry_out(&self, topic: &str, step: &Step) -> Result<(), KafkaError> {
        let client = self.client();
        let carried_out = carry_out(&client, topic, step).await;
        *self.0.seen.lock().await = None;
        carried_out
    }

    /// Deletes a topic. One that is not there is no error.
    ///
    /// # Errors
    /// Kafka does not answer, or refuses.
    pub async fn delete(&self, topic: &str) -> Result<(), KafkaError> {
        let deleted = self.client().delete_topics(&[topic], &options()).await;
        *self.0.seen.lock().await = None;
        done(format!("deleting topic {topic}"), deleted, Some(RDKafkaErrorCode::UnknownTopicOrPartition))
    }
}

fn connect(config: &ClientConfig) -> Result<Arc<Client>, KafkaError> {
    config.create().map(Arc::new).map_err(|error| failed("making a client", &error))
}

async fn carry_out(client: &Arc<Client>, topic: &str, step: &Step) -> Result<(), KafkaError> {
    match step {
        Step::Create { partitions, replication_factor, config } => {
            let replicas = TopicReplication::Fixed(*replication_factor);
            let mut new = NewTopic::new(topic, *partitions, replicas);
            new.config.extend(config.iter().map(|(key, value)| (key.as_str(), value.as_str())));
            let made = client.create_topics([&new], &options()).await;
            let made = done(format!("making topic {topic}"), made, None);
            made.map_err(|error| match error.code {
                // It was not seen and is there: hidden from this login, or just made by another.
                Some(RDKafkaErrorCode::TopicAlreadyExists) => KafkaError {
                    problem: "it exists, and this login may not see it: allow it DESCRIBE".to_owned(),
                    ..error
                },
                _ => error,
            })
        }
        Step::Grow { partitions } => {
            let count = usize::try_from(*partitions).unwrap_or_default();
            let grown = client.create_partitions([&NewPartitions::new(topic, count)], &options()).await;
            done(format!("growing topic {topic} to {partitions} partitions"), grown, None)
        }
        Step::Configure { set, given_back } => {
            let (set, given_back, topic) = (set.clone(), given_back.clone(), topic.to_owned());
            blocking(format!("configuring topic {topic}"), client, move |client| {
                let set = set.iter().map(|(key, value)| (key.as_str(), Alteration::Set(value)));
                let given_back = given_back.iter().map(|key| (key.as_str(), Alteration::Delete));
                let alterations = set.chain(given_back).collect();
                kafka_admin::alter(client.inner(), &topic, &alterations, REQUEST_WITHIN)
            })
            .await
        }
    }
}

/// Asks what can only be asked by waiting.
async fn blocking<T: Send + 'static>(
    doing: String,
    client: &Arc<Client>,
    ask: impl FnOnce(&Client) -> Result<T, kafka_admin::Error> + Send + 'static,
) -> Result<T, KafkaError> {
    let client = Arc::clone(client);
    match tokio::task::spawn_blocking(move || ask(&client)).await {
        Ok(Ok(answer)) => Ok(answer),
        Ok(Err(error)) => Err(KafkaError { doing, problem: error.to_string(), code: error.code() }),
        Err(join) => Err(KafkaError { doing, problem: join.to_string(), code: None }),
    }
}

const LOOKING: &str = "looking at topics";

/// All topics in one request; blocks.
fn shapes(client: &Client) -> Result<BTreeMap<String, Shape>, KafkaError> {
    let metadata =
        client.inner().fetch_metadata(None, REQUEST_WITHIN).map_err(|error| failed(LOOKING, &error))?;
    let mut shapes = BTreeMap::new();
    // One that has an error is seen at the next look, or is nobody's business here.
    for topic in metadata.topics().iter().filter(|topic| topic.error().is_none()) {
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
