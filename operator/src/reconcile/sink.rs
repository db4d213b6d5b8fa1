//! The Kafka side of a reconciliation: whether the cluster answers, and the topics.

use std::collections::BTreeMap;

use outbox_relay::config::{Sink, SinkAccess};
use outbox_relay::error;

use super::Context;
use super::conflicts::{self, TakenTopic};
use super::declared_topics::{DeclaredTopic, TopicProblem};
use super::owned_topics::OwnedTopics;
use super::resolve::{ResolvedSink, Unresolved};
use super::side::{KafkaAccess, Side};
use crate::conditions::{ConditionState, ConditionType, Reason, StepConditions};
use crate::desired::files::KAFKA;
use crate::resource::{OutboxRelay, Sasl};
use crate::secrets::KafkaSecrets;
use crate::topics::{Cluster, KafkaError, Observed};

/// What this step returns.
pub(super) struct SinkReport {
    pub(super) conditions: StepConditions,
    pub(super) owned_topics: OwnedTopics,
    pub(super) side: Side<KafkaAccess>,
}

const HELD_BY_PODS: &str = "the operator has no credentials for Kafka: only the relay's pods have them. It neither checks nor creates \
     topics, and Streaming tells whether the relay reaches Kafka";

/// Checks the cluster, and makes the topics what is declared.
pub(super) async fn check(
    relay: &OutboxRelay,
    context: &Context,
    resolved: &Result<ResolvedSink, Unresolved>,
) -> SinkReport {
    let owned = OwnedTopics::of(relay);
    let Ok(ResolvedSink { sink, secrets }) = resolved else {
        return SinkReport::not_ready(owned, StepConditions::default());
    };
    let report = if relay.spec.sink.kafka.sasl.as_ref().is_some_and(Sasl::is_held_by_pods) {
        leave_to_relay(relay, context, owned)
    } else {
        match observe(relay, context, sink, secrets).await {
            Ok(observed) => check_topics(relay, context, owned, observed).await,
            Err(state) => {
                SinkReport::not_ready(owned, StepConditions::of(ConditionType::KafkaReachable, state))
            }
        }
    };
    context.metrics.step("kafka", matches!(report.side, Side::Ready(_)));
    report
}

impl SinkReport {
    fn not_ready(owned_topics: OwnedTopics, conditions: StepConditions) -> SinkReport {
        SinkReport { conditions, owned_topics, side: Side::NotReady }
    }
}

/// The cluster as the administrator sees it, or else the relay.
pub(super) async fn connect(
    relay: &OutboxRelay,
    context: &Context,
    sink: &Sink,
    secrets: &KafkaSecrets,
) -> Result<Cluster, String> {
    let mut sink = sink.clone();
    if let Some(admin) = &secrets.admin {
        sink.sasl = sink.sasl.and_then(|sasl| sasl.with_user(&admin.user, &admin.password));
    }
    if relay.spec.sink.kafka.admin_certificate_secret_ref.is_some() {
        [sink.tls.cert_file, sink.tls.key_file] = KAFKA.admin_certificate_files();
    }
    let access = SinkAccess::read_with(&sink, &|file| secrets.files.read(file));
    let access = access.map_err(|error| error.to_string())?;
    let cluster = context.connections.cluster(&Sink { access, ..sink }).await;
    cluster.map_err(|error| error.to_string())
}

fn leave_to_relay(relay: &OutboxRelay, context: &Context, owned: OwnedTopics) -> SinkReport {
    let mut conditions = StepConditions::default();
    let no_credentials = ConditionState::unknown(Reason::NoCredentials, HELD_BY_PODS);
    conditions.set(ConditionType::KafkaReachable, no_credentials);
    let none_declared = ConditionState::yes(Reason::AsDeclared, "no topic is declared");
    conditions.set(ConditionType::TopicsReady, none_declared);
    let owned_topics = owned.released(relay, context);
    SinkReport { conditions, owned_topics, side: Side::Ready(KafkaAccess::RelayOnly) }
}

/// A cluster that answers.
struct ObservedCluster {
    cluster: Cluster,
    /// `None` if its brokers report none.
    identity: Option<String>,
    /// The declared topics that exist.
    topics: BTreeMap<String, Observed>,
}

/// The cluster; or why it is not reachable.
async fn observe(
    relay: &OutboxRelay,
    context: &Context,
    sink: &Sink,
    secrets: &KafkaSecrets,
) -> Result<ObservedCluster, ConditionState> {
    let cluster = connect(relay, context, sink, secrets).await;
    let cluster = cluster.map_err(|problem| ConditionState::no(Reason::KafkaSettingsUnusable, problem))?;
    let names = relay.spec.topic_names();
    let topics = context.metrics.request("kafka", "observe", cluster.observe(&names)).await;
    let topics = topics.map_err(|error| unreachable(&error))?;
    let identity = cluster.identity().await.map_err(|error| unreachable(&error))?;
    Ok(ObservedCluster { cluster, identity, topics })
}

/// Makes the topics of a cluster that answers what is declared, once others can see which cluster it is and none of them has one of the
/// topics.
async fn check_topics(
    relay: &OutboxRelay,
    context: &Context,
    owned: OwnedTopics,
    observed: ObservedCluster,
) -> SinkReport {
    let ObservedCluster { cluster, identity, topics } = observed;
    let connected = ConditionState::yes(Reason::Connected, "");
    let mut conditions = StepConditions::of(ConditionType::KafkaReachable, connected);
    if let Some(identity) = identity
        && owned.cluster_identity.as_ref() != Some(&identity)
    {
        let what = "which cluster it is was just found out";
        conditions.set(ConditionType::TopicsReady, ConditionState::unknown(Reason::Registering, what));
        let owned_topics = owned.in_cluster(identity, relay, context);
        return SinkReport { conditions, owned_topics, side: Side::Registering };
    }
    let taken = conflicts::taken_topic(relay, context, owned.cluster_identity.as_deref());
    if let Some(TakenTopic { topic, owner }) = taken {
        let what = format!("{owner} is older and has topic {topic}: take it from one of the two");
        conditions.set(ConditionType::TopicsReady, ConditionState::no(Reason::ResourceConflict, what));
        return SinkReport::not_ready(owned, conditions);
    }
    let (owned_topics, problems) = apply_topics(relay, context, owned, &cluster, &topics).await;
    conditions.set(ConditionType::TopicsReady, topics_ready(&problems));
    let has_failed = problems.iter().any(|problem| matches!(problem, TopicProblem::Failed(_)));
    let side = if has_failed { Side::NotReady } else { Side::Ready(KafkaAccess::Operator(cluster)) };
    SinkReport { conditions, owned_topics, side }
}

async fn apply_topics(
    relay: &OutboxRelay,
    context: &Context,
    owned: OwnedTopics,
    cluster: &Cluster,
    observed: &BTreeMap<String, Observed>,
) -> (OwnedTopics, Vec<TopicProblem>) {
    let (mut owned, mut problems) = owned.delete_undeclared(relay, context, cluster).await;
    for declared in &relay.spec.topics {
        let (known, observed) = (owned.find(&declared.name), observed.get(&declared.name));
        let topic = DeclaredTopic { relay, context, declared, known, observed };
        match topic.apply(cluster).await {
            Ok((status, found)) => {
                owned.put(status);
                problems.extend(found);
            }
            Err(error) => problems.push(TopicProblem::Failed(error)),
        }
    }
    (owned, problems)
}

/// The reason is that of the first problem.
fn topics_ready(problems: &[TopicProblem]) -> ConditionState {
    match problems.first() {
        None => ConditionState::yes(Reason::AsDeclared, ""),
        Some(first) => {
            let all: Vec<String> = problems.iter().map(ToString::to_string).collect();
            ConditionState::no(first.reason(), all.join("; "))
        }
    }
}

/// Tells rejected credentials and certificates from a Kafka that is down.
fn unreachable(error: &KafkaError) -> ConditionState {
    if error.is_distrust {
        let remedy = "check sink.kafka.sasl, sink.kafka.tls and the Secrets they refer to";
        let reason = error::ErrorKind::KafkaAuthenticationFailed;
        return ConditionState::no(reason, format!("{error}; {remedy}"));
    }
    let remedy = "check that Kafka runs, and that sink.kafka leads to it";
    ConditionState::no(Reason::KafkaUnreachable, format!("{error}; {remedy}"))
}
