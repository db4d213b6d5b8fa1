//! A Kafka cluster: looks at topics, and carries plans out.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use kafka_admin::{ConfigChange, TopicDescription};
use outbox_relay::config::Sink;
use rdkafka::admin::{
    AdminOptions, ConfigSource, NewPartitions, NewTopic, ResourceSpecifier, TopicReplication,
};
use rdkafka::error::RDKafkaErrorCode;

use super::client::{Admin, Client, SharedClient};
use super::error::KafkaError;
use super::plan::{Observed, Step};

/// How long one request may take: an outage has to show within 10 s.
const REQUEST_WITHIN: Duration = Duration::from_secs(5);

/// Many resources ask about one cluster, so an answer serves all that ask within this time.
const FRESH: Duration = Duration::from_secs(3);

/// So long after the last question a topic is asked about together with others: longer than from one reconciliation to the next.
const INTEREST: Duration = Duration::from_secs(120);

/// A topic, as Kafka describes it.
pub type Topics = BTreeMap<String, TopicDescription>;

/// See the module's text. One is enough for all resources with the same brokers and credentials; clones share it.
#[derive(Clone)]
pub struct Cluster(Arc<Inner>);

struct Inner {
    client: SharedClient,
    /// When each topic was last asked about: one request is about all of them.
    interest: Mutex<HashMap<String, Instant>>,
    /// Held while Kafka is asked: those that ask meanwhile get the same answer.
    seen: tokio::sync::Mutex<Option<Seen>>,
}

/// What one request has shown.
struct Seen {
    at: Instant,
    asked: BTreeSet<String>,
    answer: Result<Arc<View>, KafkaError>,
}

struct View {
    cluster_id: Option<String>,
    topics: Topics,
}

impl Cluster {
    /// Does not connect yet. Blocks: see [`SharedClient`].
    ///
    /// # Errors
    /// The settings cannot be used.
    pub fn new(sink: &Sink) -> Result<Cluster, KafkaError> {
        let client = SharedClient::create(sink)?;
        Ok(Cluster(Arc::new(Inner {
            client,
            interest: Mutex::default(),
            seen: tokio::sync::Mutex::default(),
        })))
    }

    /// The id of the cluster, the same under each of its names. `None` if its brokers report none.
    ///
    /// # Errors
    /// Kafka does not answer, or refuses.
    pub async fn identity(&self) -> Result<Option<String>, KafkaError> {
        Ok(self.view(&[]).await?.cluster_id.clone())
    }

    /// Those of these topics that exist, as they were at most 3 s ago.
    ///
    /// # Errors
    /// Kafka does not answer, or refuses.
    pub async fn topics(&self, names: &[String]) -> Result<Topics, KafkaError> {
        let view = self.view(names).await?;
        Ok(names.iter().filter_map(|name| Some((name.clone(), view.topics.get(name)?.clone()))).collect())
    }

    /// The same, as they are now: before something that cannot be undone.
    ///
    /// # Errors
    /// Kafka does not answer, or refuses.
    pub async fn topics_now(&self, names: &[String]) -> Result<Topics, KafkaError> {
        self.forget().await;
        self.topics(names).await
    }

    async fn view(&self, names: &[String]) -> Result<Arc<View>, KafkaError> {
        self.be_interested_in(names);
        let mut seen = self.0.seen.lock().await;
        if let Some(seen) = &*seen
            && seen.at.elapsed() < FRESH
            && names.iter().all(|name| seen.asked.contains(name))
        {
            return seen.answer.clone();
        }
        let asked = self.interest();
        let answer = self.look(asked.clone()).await;
        *seen = Some(Seen { at: Instant::now(), asked, answer: answer.clone() });
        answer
    }

    fn be_interested_in(&self, names: &[String]) {
        let mut interest = self.0.interest.lock().unwrap_or_else(PoisonError::into_inner);
        interest.extend(names.iter().map(|name| (name.clone(), Instant::now())));
    }

    /// The topics that were asked about not long ago.
    fn interest(&self) -> BTreeSet<String> {
        let mut interest = self.0.interest.lock().unwrap_or_else(PoisonError::into_inner);
        interest.retain(|_, asked| asked.elapsed() < INTEREST);
        interest.keys().cloned().collect()
    }

    async fn look(&self, names: BTreeSet<String>) -> Result<Arc<View>, KafkaError> {
        let inner = Arc::clone(&self.0);
        let looking = tokio::task::spawn_blocking(move || {
            let client = inner.client.current();
            match look(&client, &names) {
                Ok(view) => {
                    inner.client.on_answer();
                    Ok(view)
                }
                Err(error) => Err(inner.client.on_silence(error)),
            }
        });
        looking
            .await
            .unwrap_or_else(|join| Err(KafkaError::new(LOOKING, join.to_string(), None)))
            .map(Arc::new)
    }

    async fn forget(&self) {
        *self.0.seen.lock().await = None;
    }

    /// The topics of these names that exist.
    ///
    /// # Errors
    /// Kafka does not answer, or refuses.
    pub async fn observe(&self, names: &[String]) -> Result<BTreeMap<String, Observed>, KafkaError> {
        let topics = self.topics(names).await?;
        let resources: Vec<_> = topics.keys().map(|name| ResourceSpecifier::Topic(name)).collect();
        if resources.is_empty() {
            return Ok(BTreeMap::new());
        }
        let doing = "reading the configuration of topics";
        let client = self.0.client.current();
        let described = admin(&client)?.describe_configs(&resources, &options()).await;
        let described = described.map_err(|error| KafkaError::failed(doing, &error))?;
        let mut observed = BTreeMap::new();
        for ((name, topic), resource) in topics.iter().zip(described) {
            let resource = resource.map_err(|code| KafkaError::refused(&format!("{doing} {name}"), code))?;
            let set_here =
                resource.entries.into_iter().filter(|entry| entry.source == ConfigSource::DynamicTopic);
            let overrides = set_here.filter_map(|entry| Some((entry.name, entry.value?))).collect();
            let observed_topic = Observed {
                id: topic.id.clone(),
                partitions: count(topic.partitions),
                replication_factor: topic.fewest_replicas.map(count),
                overrides,
            };
            observed.insert(name.clone(), observed_topic);
        }
        Ok(observed)
    }

    /// Does something about a topic.
    ///
    /// # Errors
    /// Kafka does not answer, or refuses.
    pub async fn apply_step(&self, topic: &str, step: &Step) -> Result<(), KafkaError> {
        let applied = apply_step(&self.0.client.current(), topic, step).await;
        self.forget().await;
        applied
    }

    /// Deletes a topic. One that does not exist is no error.
    ///
    /// # Errors
    /// Kafka does not answer, or refuses.
    pub async fn delete(&self, topic: &str) -> Result<(), KafkaError> {
        let client = self.0.client.current();
        let deleted = admin(&client)?.delete_topics(&[topic], &options()).await;
        self.forget().await;
        let is_gone = Some(RDKafkaErrorCode::UnknownTopicOrPartition);
        done(&format!("deleting topic {topic}"), deleted, is_gone)
    }
}

/// Kafka's protocol has it for the numbers of partitions and replicas.
const BROKERS_DEFAULT: i32 = -1;

const LOOKING: &str = "looking at topics";

/// Blocks.
fn look(client: &Client, names: &BTreeSet<String>) -> Result<View, KafkaError> {
    let client = admin(client)?.inner();
    let ask = |error| KafkaError::asked(LOOKING, &error);
    let cluster_id = kafka_admin::cluster_id(client, REQUEST_WITHIN).map_err(ask)?;
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let mut topics = kafka_admin::describe_topics(client, &names, REQUEST_WITHIN).map_err(ask)?;
    // One that was just created is not known to every broker yet.
    topics.retain(|_, topic| topic.partitions > 0);
    Ok(View { cluster_id, topics })
}

async fn apply_step(client: &Arc<Client>, topic: &str, step: &Step) -> Result<(), KafkaError> {
    match step {
        Step::Create { partitions, replication_factor, config } => {
            let replicas = TopicReplication::Fixed(replication_factor.unwrap_or(BROKERS_DEFAULT));
            let mut new = NewTopic::new(topic, partitions.unwrap_or(BROKERS_DEFAULT), replicas);
            new.config.extend(config.iter().map(|(key, value)| (key.as_str(), value.as_str())));
            let created = admin(client)?.create_topics([&new], &options()).await;
            let created = done(&format!("creating topic {topic}"), created, None);
            created.map_err(|error| match error.code {
                // It was not seen and exists: hidden from these credentials, or just created by another client.
                Some(RDKafkaErrorCode::TopicAlreadyExists) => {
                    error.with_problem("it exists, and these credentials may not see it: allow them DESCRIBE")
                }
                _ => error,
            })
        }
        Step::Grow { partitions } => {
            let count = usize::try_from(*partitions).unwrap_or_default();
            let new = NewPartitions::new(topic, count);
            let grown = admin(client)?.create_partitions([&new], &options()).await;
            done(&format!("growing topic {topic} to {partitions} partitions"), grown, None)
        }
        Step::Configure { set, reset } => {
            let (client, set, reset) = (Arc::clone(client), set.clone(), reset.clone());
            let (topic, doing) = (topic.to_owned(), format!("configuring topic {topic}"));
            let configuring = tokio::task::spawn_blocking(move || {
                let set = set.iter().map(|(key, value)| (key.as_str(), ConfigChange::Set(value)));
                let reset = reset.iter().map(|key| (key.as_str(), ConfigChange::Delete));
                let alterations = set.chain(reset).collect();
                let altered = kafka_admin::alter_topic_config(
                    admin(&client)?.inner(),
                    &topic,
                    &alterations,
                    REQUEST_WITHIN,
                );
                altered.map_err(|error| KafkaError::asked(&doing, &error))
            });
            configuring.await.unwrap_or_else(|join| Err(KafkaError::new(LOOKING, join.to_string(), None)))
        }
    }
}

/// There is one as long as it is not dropped.
fn admin(client: &Client) -> Result<&Admin, KafkaError> {
    client.admin().ok_or_else(|| KafkaError::new(LOOKING, "the client is gone".to_owned(), None))
}

fn options() -> AdminOptions {
    AdminOptions::new().request_timeout(Some(REQUEST_WITHIN)).operation_timeout(Some(REQUEST_WITHIN))
}

fn count(number: usize) -> i32 {
    i32::try_from(number).unwrap_or(i32::MAX)
}

type Outcomes = Result<Vec<Result<String, (String, RDKafkaErrorCode)>>, rdkafka::error::KafkaError>;

fn done(doing: &str, outcomes: Outcomes, already: Option<RDKafkaErrorCode>) -> Result<(), KafkaError> {
    let outcomes = outcomes.map_err(|error| KafkaError::failed(doing, &error))?;
    let refusal = outcomes.into_iter().filter_map(Result::err).find(|(_, code)| Some(*code) != already);
    refusal.map_or(Ok(()), |(_, code)| Err(KafkaError::refused(doing, code)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_cluster_that_does_not_respond_is_not_one_without_an_id() {
        // It accepts connections and never responds.
        let broker = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let bootstrap = broker.local_addr().unwrap().to_string();
        let sink: Sink = serde_json::from_value(serde_json::json!({"bootstrapServers": bootstrap})).unwrap();
        let cluster = tokio::task::spawn_blocking(move || Cluster::new(&sink)).await.unwrap().unwrap();
        assert!(cluster.identity().await.is_err());
    }
}
