//! Checks of the sink. Nothing is produced, so a missing Write permission shows only when the relay sends.

use std::sync::Arc;
use std::time::{Duration, Instant};

use process::{Finding, Grade};
use rdkafka::Offset;
use rdkafka::admin::AdminClient;
use rdkafka::client::DefaultClientContext;
use rdkafka::consumer::{BaseConsumer, Consumer, DefaultConsumerContext};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::metadata::Metadata;

use super::{Topics, problem};
use crate::config::{Config, Routing, Sink};
use crate::error::{ErrorKind, RelayError};
use crate::kafka::client::{self, client_config, reader_config};
use crate::kafka::error_codes::error_of;
use crate::kafka::partition_reader::{self, Polled};
use crate::kafka::scanner::{self, is_refusal};
use crate::kafka::verify::{SettingsError, read_settings};
use crate::routing::router::{is_internal, is_topic_name};
use crate::topics::partitions::PartitionNumber;
use crate::topics::settings::TopicSettings;

/// Timeout of one request; a person is waiting for it.
const REQUEST: Duration = Duration::from_secs(10);
/// How long the reason is looked for when Kafka does not answer.
const DIAGNOSIS_WITHIN: Duration = Duration::from_secs(5);
/// From this value of min.insync.replicas on, acknowledged records survive the loss of one broker.
const MIN_IN_SYNC_REPLICAS: usize = 2;

/// Runs the checks of the sink: of `topics` and the dead-letter topic.
pub async fn examine(config: &Config, mut topics: Topics) -> Vec<Finding> {
    let dead_letter_topic = config.delivery.dead_letter_topic.as_ref();
    topics.extend(dead_letter_topic.map(|topic| (topic.clone(), 1)));
    let internal: Vec<String> =
        topics.extract_if(.., |topic, _| is_internal(topic)).map(|(name, _)| name).collect();
    let sink = config.sink.clone();
    let wanted = topics.clone();
    let checked = tokio::task::spawn_blocking(move || check_topics(&sink, &wanted)).await;
    let (mut findings, found) = checked.unwrap_or_default();
    findings.extend(internal.iter().map(|topic| kafkas_own(topic)));
    findings.extend(routing(&config.routing));
    let admin: Result<Arc<AdminClient<_>>, _> =
        client::create(&config.sink, &client_config(&config.sink), DefaultClientContext);
    for topic in &found {
        let read = match &admin {
            Ok(admin) => read_settings(admin, topic, REQUEST).await,
            Err(error) => Err(SettingsError::NoResponse(error.clone())),
        };
        findings.push(settings(&config.sink, topic, read.clone()));
        if dead_letter_topic == Some(topic) && read.is_ok_and(|settings| settings.compacted) {
            findings.push(compacted_dead_letters(topic));
        }
    }
    if topics.is_empty() {
        let remedy = "start the relay; it looks up each topic when the first event is routed there";
        findings.push(Finding::warn("topics", "the checkpoint has no topics yet: none was checked", remedy));
    }
    findings
}

/// The topic is in the checkpoint, so rows were routed to it.
fn kafkas_own(topic: &str) -> Finding {
    let message = format!(
        "{topic} is an internal topic of Kafka, which takes no events: a row routed there is a poison row"
    );
    Finding::warn("topic", message, "correct the routing, or the service that wrote such rows")
}

/// Where every event goes to one topic, its name can be checked before the first event.
fn routing(routing: &Routing) -> Option<Finding> {
    let topic = &routing.replacement;
    let wrong = match () {
        () if topic.contains('$') => return None,
        () if is_internal(topic) => "an internal topic of Kafka, which takes no events",
        () if !is_topic_name(topic) => "not a valid topic name (letters, digits, '.', '_', '-', at most 249)",
        () => return None,
    };
    let message = format!("routing.replacement sends every event to '{topic}', which is {wrong}");
    Some(Finding::problem("routing", message, "correct routing.replacement"))
}

fn compacted_dead_letters(topic: &str) -> Finding {
    let message = format!(
        "the dead-letter topic {topic} is compacted: a later dead letter of a key replaces an earlier one, and a row without a \
         key cannot become one"
    );
    Finding::warn("dead-letter topic", message, "set its cleanup.policy to delete")
}

/// The blocking checks, and the topics that exist.
fn check_topics(sink: &Sink, topics: &Topics) -> (Vec<Finding>, Vec<String>) {
    const CHECK: &str = "Kafka";
    let unreachable = |error: KafkaError| {
        problem(CHECK, &RelayError::new(ErrorKind::KafkaUnreachable, format!("no answer: {error}")))
    };
    let created = client::create(sink, &reader_config(sink, "doctor"), DefaultConsumerContext);
    let consumer: Arc<BaseConsumer> = match created {
        Ok(consumer) => consumer,
        Err(error) => return (vec![unreachable(error)], Vec::new()),
    };
    let metadata = match consumer.fetch_metadata(None, REQUEST) {
        Ok(metadata) => metadata,
        Err(error) => {
            let failure = client::auth_failure(sink, DIAGNOSIS_WITHIN)
                .map(|why| problem(CHECK, &RelayError::new(ErrorKind::KafkaAuthenticationFailed, why)));
            return (vec![failure.unwrap_or_else(|| unreachable(error))], Vec::new());
        }
    };
    let brokers = metadata.brokers().len();
    let mut findings =
        vec![Finding::ok(CHECK, format!("{} leads to {brokers} broker(s)", sink.bootstrap_servers))];
    let mut found = Vec::new();
    for (topic, count) in topics {
        let finding = exists(partition_count(&consumer, &metadata, topic), topic, *count);
        let there = finding.result == Grade::Ok;
        findings.push(finding);
        if there {
            findings.push(readable(&consumer, topic));
            found.push(topic.clone());
        }
    }
    (findings, found)
}

/// The number of partitions of a topic; 0 if it does not exist. A topic that is not listed is queried by name: the relay
/// may only lack the permission to list it.
fn partition_count(consumer: &BaseConsumer, listed: &Metadata, topic: &str) -> Result<i32, KafkaError> {
    let listed = listed.topics().iter().find(|listed| listed.name() == topic && listed.error().is_none());
    match listed {
        Some(listed) => Ok(i32::try_from(listed.partitions().len()).unwrap_or(i32::MAX)),
        None => scanner::partition_count(consumer, topic, REQUEST),
    }
}

fn exists(partitions: Result<i32, KafkaError>, topic: &str, count: i32) -> Finding {
    const CHECK: &str = "topic";
    let partitions = match partitions {
        Ok(0) => {
            let what = format!("topic {topic} does not exist");
            return problem(CHECK, &RelayError::new(ErrorKind::TopicMissing, what));
        }
        Ok(partitions) => partitions,
        Err(error) => return problem(CHECK, &failed(&format!("topic {topic} cannot be looked up"), &error)),
    };
    if partitions < count {
        let message = format!("{topic} has {partitions} partitions, but {count} in the checkpoint");
        return Finding::problem(
            CHECK,
            message,
            "the topic was recreated: see docs/OPERATIONS.md, 'Kafka lost records'",
        );
    }
    Finding::ok(CHECK, format!("{topic} has {partitions} partition(s)"))
}

/// The relay reads back what it has sent. A fetch at the end of a partition returns nothing, but requires the
/// permission.
fn readable(consumer: &BaseConsumer, topic: &str) -> Finding {
    const CHECK: &str = "topic permission";
    let remedy = "grant the relay Describe, Read and Write on the topic";
    match fetch(consumer, topic) {
        Ok(()) => Finding::ok(
            CHECK,
            format!("{topic} can be read; whether it can be written shows when the relay sends"),
        ),
        Err(error) if is_refusal(&error) => {
            Finding::problem(CHECK, format!("{topic} cannot be read: {error}"), remedy)
        }
        Err(error) => problem(CHECK, &failed(&format!("{topic} cannot be read"), &error)),
    }
}

fn failed(what: &str, error: &KafkaError) -> RelayError {
    match error.rdkafka_error_code() {
        Some(code) => error_of(what, code),
        None => RelayError::new(ErrorKind::KafkaUnreachable, format!("{what}: {error}")),
    }
}

fn fetch(consumer: &BaseConsumer, topic: &str) -> Result<(), KafkaError> {
    const FIRST: PartitionNumber = PartitionNumber(0);
    partition_reader::assign(consumer, topic, FIRST, Offset::End)?;
    let asked = Instant::now();
    let mut outcome = Err(KafkaError::MessageConsumption(RDKafkaErrorCode::OperationTimedOut));
    while asked.elapsed() < REQUEST {
        match partition_reader::poll(consumer, topic, FIRST) {
            Polled::Record(_) | Polled::End => {
                outcome = Ok(());
                break;
            }
            Polled::Refused(error)
                if error.rdkafka_error_code() == Some(RDKafkaErrorCode::TopicAuthorizationFailed) =>
            {
                outcome = Err(error);
                break;
            }
            // A broker that fails authentication is not the leader, while another one answers.
            Polled::Refused(_) | Polled::OutOfRange | Polled::Nothing => {}
        }
    }
    consumer.unassign()?;
    outcome
}

/// The topic settings that the guarantees depend on.
fn settings(sink: &Sink, topic: &str, read: Result<TopicSettings, SettingsError>) -> Finding {
    const CHECK: &str = "topic settings";
    let described = match read {
        Ok(described) => described,
        Err(error) => {
            let message = format!("the settings of {topic} cannot be read: {error}");
            let remedy = match error {
                SettingsError::Refused(_) => "grant DescribeConfigs on the topic, or check them yourself",
                SettingsError::NoResponse(_) => "run doctor again once all brokers respond",
            };
            return Finding::warn(CHECK, message, remedy);
        }
    };
    let TopicSettings { max_message_bytes: largest, min_in_sync_replicas: in_sync, .. } = described;
    if let Some(largest) = described.lower_limit(sink.max_message_bytes) {
        let message = format!(
            "max.message.bytes of {topic} is {largest}, but sink.maxMessageBytes is {}",
            sink.max_message_bytes
        );
        return Finding::warn(CHECK, message, "raise max.message.bytes, or lower sink.maxMessageBytes");
    }
    if let Some(in_sync) = in_sync
        && in_sync < MIN_IN_SYNC_REPLICAS
    {
        let message =
            format!("min.insync.replicas of {topic} is {in_sync}: losing one broker can lose events");
        return Finding::warn(CHECK, message, "set it to 2, with 3 replicas");
    }
    let shown =
        |number: Option<usize>| number.map_or_else(|| "unknown".to_owned(), |number| number.to_string());
    let (in_sync, largest) = (shown(in_sync), shown(largest));
    let keys =
        if described.compacted { "; it is compacted: a row without a key is a poison row" } else { "" };
    Finding::ok(CHECK, format!("{topic}: min.insync.replicas {in_sync}, max.message.bytes {largest}{keys}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing;

    #[test]
    fn only_kafkas_own_answer_means_that_a_topic_does_not_exist() {
        let found = |partitions| exists(partitions, "t", 3);
        let missing = found(Ok(0));
        assert!(missing.message.contains("does not exist"), "{missing:?}");
        assert_eq!(found(Ok(3)).result, Grade::Ok);
        for code in [RDKafkaErrorCode::TopicAuthorizationFailed, RDKafkaErrorCode::LeaderNotAvailable] {
            let unknown = found(Err(KafkaError::MetadataFetch(code)));
            assert_eq!(unknown.result, Grade::Problem);
            assert!(unknown.message.contains(&format!("{code:?}")), "{unknown:?}");
            assert_ne!(unknown.remedy, missing.remedy);
        }
    }

    #[test]
    fn only_a_refusal_asks_for_a_permission_on_the_settings() {
        let Config { sink, .. } = testing::config();
        let remedy = |error: KafkaError| format!("{:?}", settings(&sink, "t", Err(error.into())).remedy);
        assert!(remedy(KafkaError::AdminOp(RDKafkaErrorCode::TopicAuthorizationFailed)).contains("grant"));
        assert!(!remedy(KafkaError::AdminOp(RDKafkaErrorCode::OperationTimedOut)).contains("grant"));
    }
}
