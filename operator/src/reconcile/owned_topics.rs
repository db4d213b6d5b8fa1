//! Topics that a resource has created or taken over, and may delete: by what they are and where they are, never by their names alone.

use std::slice;

use super::Context;
use super::declared_topics::TopicProblem;
use crate::events::EventType;
use crate::resource::{DeletionPolicy, OutboxRelay, Topic, TopicStatus};
use crate::topics::{Cluster, KafkaError};

/// What is known of them. It is part of the status.
pub(super) struct OwnedTopics {
    /// The cluster in which they are, as far as is known.
    pub(super) cluster_identity: Option<String>,
    pub(super) topics: Vec<TopicStatus>,
}

impl OwnedTopics {
    /// As the last reconciliation has left them.
    pub(super) fn of(relay: &OutboxRelay) -> OwnedTopics {
        let before = relay.status.clone().unwrap_or_default();
        OwnedTopics {
            cluster_identity: before.kafka_identity,
            topics: with_policies(before.topics, &relay.spec.topics),
        }
    }

    pub(super) fn find(&self, name: &str) -> Option<&TopicStatus> {
        self.topics.iter().find(|topic| topic.name == name)
    }

    /// Adds a topic, or replaces what was known of it.
    pub(super) fn put(&mut self, topic: TopicStatus) {
        match self.topics.iter_mut().find(|known| known.name == topic.name) {
            Some(known) => *known = topic,
            None => self.topics.push(topic),
        }
    }

    /// Those in the cluster `identity`, which is another one than before, or is seen for the first time. Topics of an earlier cluster are not
    /// owned any more.
    pub(super) fn in_cluster(self, identity: String, relay: &OutboxRelay, context: &Context) -> OwnedTopics {
        let topics = match &self.cluster_identity {
            None => self.topics,
            Some(before) => {
                let note = format!(
                    "spec.sink.kafka leads to Kafka cluster {identity}, and led to {before}; topics there are left as they are"
                );
                context.publish_event(relay, EventType::Normal, "KafkaClusterChanged", &note);
                Vec::new()
            }
        };
        OwnedTopics { cluster_identity: Some(identity), topics }
    }

    /// None: only the relay's pods have credentials now. Topics that the operator has managed until then are left as they are.
    pub(super) fn released(self, relay: &OutboxRelay, context: &Context) -> OwnedTopics {
        for topic in &self.topics {
            let note = format!(
                "topic {} is left as it is: the operator has no credentials for Kafka any more",
                topic.name
            );
            context.publish_event(relay, EventType::Normal, "TopicRetained", &note);
        }
        OwnedTopics { topics: Vec::new(), ..self }
    }

    /// Deletes topics that are not declared any more where that was the policy; the others are ignored from then on. Returns those that are
    /// left, and which could not be deleted.
    pub(super) async fn delete_undeclared(
        self,
        relay: &OutboxRelay,
        context: &Context,
        cluster: &Cluster,
    ) -> (OwnedTopics, Vec<TopicProblem>) {
        let OwnedTopics { cluster_identity, topics } = self;
        let is_declared =
            |topic: &TopicStatus| relay.spec.topics.iter().any(|declared| declared.name == topic.name);
        let (mut kept, undeclared): (Vec<_>, Vec<_>) = topics.into_iter().partition(is_declared);
        let mut problems = Vec::new();
        for topic in undeclared.into_iter().filter(|topic| topic.deletion_policy == DeletionPolicy::Delete) {
            if !is_last_declaration_known(relay) {
                let note = format!(
                    "topic {} is not declared any more and is left as it is: the resource was changed more than once since it was last \
                     looked at, so the policy that was declared last is not known",
                    topic.name
                );
                context.publish_event(relay, EventType::Warning, "TopicRetained", &note);
                continue;
            }
            let deleted = delete(relay, context, cluster, cluster_identity.as_deref(), &topic).await;
            if let Err(error) = deleted {
                problems.push(TopicProblem::Failed(error));
                kept.push(topic);
            }
        }
        (OwnedTopics { cluster_identity, topics: kept }, problems)
    }
}

/// Topics with the policies that are declared now: one that was withdrawn counts no more, whether or not Kafka was reached since.
fn with_policies(topics: Vec<TopicStatus>, declared: &[Topic]) -> Vec<TopicStatus> {
    let policy = |topic: &TopicStatus| {
        let declared = declared.iter().find(|declared| declared.name == topic.name);
        declared.map_or(topic.deletion_policy, |declared| declared.deletion_policy)
    };
    topics.into_iter().map(|topic| TopicStatus { deletion_policy: policy(&topic), ..topic }).collect()
}

/// Whether the specification before this one was reconciled.
fn is_last_declaration_known(relay: &OutboxRelay) -> bool {
    let observed = relay.status.as_ref().and_then(|status| status.observed_generation);
    let generation = relay.metadata.generation;
    observed.zip(generation).is_some_and(|(observed, generation)| observed + 1 >= generation)
}

/// Deletes a topic that was seen in the cluster `identity`, unless this is another cluster, or the topic was recreated since.
pub(super) async fn delete(
    relay: &OutboxRelay,
    context: &Context,
    cluster: &Cluster,
    identity: Option<&str>,
    topic: &TopicStatus,
) -> Result<(), KafkaError> {
    let now = cluster.topics_now(slice::from_ref(&topic.name)).await?;
    let Some(id) = now.get(&topic.name).map(|topic| topic.id.clone()) else { return Ok(()) };
    let is_another = topic.id.as_ref().zip(id.as_ref()).is_some_and(|(before, now)| before != now);
    let cluster_is_another =
        cluster.identity().await?.zip(identity).is_some_and(|(now, before)| now != before);
    if is_another || cluster_is_another {
        let note = format!("topic {} is left as it is: it is not the one that this resource had", topic.name);
        context.publish_event(relay, EventType::Warning, "TopicRetained", &note);
        return Ok(());
    }
    cluster.delete(&topic.name).await?;
    let note = format!("deleted topic {}", topic.name);
    context.publish_event(relay, EventType::Normal, "TopicDeleted", &note);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_policy_that_was_withdrawn_counts_no_more() {
        let known_as = |name: &str| TopicStatus {
            name: name.into(),
            id: None,
            partitions: None,
            replication_factor: None,
            config_keys: Vec::new(),
            deletion_policy: DeletionPolicy::Delete,
        };
        let declared: Vec<Topic> = serde_json::from_value(
            serde_json::json!([{"name": "a", "partitions": 1, "deletionPolicy": "Retain"}]),
        )
        .unwrap();
        let policies: Vec<DeletionPolicy> = with_policies(vec![known_as("a"), known_as("gone")], &declared)
            .iter()
            .map(|topic| topic.deletion_policy)
            .collect();
        assert_eq!(policies, [DeletionPolicy::Retain, DeletionPolicy::Delete]);
    }
}
