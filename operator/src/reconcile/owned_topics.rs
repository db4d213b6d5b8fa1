//! Topics that a resource has made or taken over, and may delete: by what they are and where they are, never by their names alone.

use std::slice;

use super::Pass;
use super::sink::FAILED;
use crate::conditions::Reason;
use crate::events::EventType;
use crate::resource::{DeletionPolicy, Topic, TopicStatus};
use crate::topics::{Cluster, KafkaError};

/// What is known of a resource's topics, with the policies that are declared now: one that was withdrawn counts no more, whether or not
/// Kafka was reached since.
pub(super) fn known(before: Vec<TopicStatus>, declared: &[Topic]) -> Vec<TopicStatus> {
    let policy = |known: &TopicStatus| {
        let topic = declared.iter().find(|topic| topic.name == known.name);
        topic.map_or(known.deletion_policy, |topic| topic.deletion_policy)
    };
    before.into_iter().map(|known| TopicStatus { deletion_policy: policy(&known), ..known }).collect()
}

impl Pass<'_> {
    /// The cluster is another than before, or is seen for the first time. What is known of topics is about those in the other one.
    pub(super) fn on_cluster_changed(&mut self, identity: String) {
        if let Some(before) = self.kafka_identity.replace(identity.clone()) {
            let note = format!(
                "spec.sink.kafka leads to Kafka cluster {identity}, and led to {before}; topics there are left as they are"
            );
            self.context.publish_event(self.relay, EventType::Normal, "KafkaClusterChanged", &note);
            self.topics.clear();
        }
    }

    /// Topics that are not declared any more are deleted where that was said, and are ignored from then on.
    pub(super) async fn delete_undeclared(&mut self, cluster: &Cluster) -> Vec<(Reason, String)> {
        let declared = |name: &str| self.relay.spec.topics.iter().any(|topic| topic.name == name);
        let (kept, gone): (Vec<_>, Vec<_>) =
            std::mem::take(&mut self.topics).into_iter().partition(|topic| declared(&topic.name));
        self.topics = kept;
        let mut problems = Vec::new();
        for topic in gone.into_iter().filter(|topic| topic.deletion_policy == DeletionPolicy::Delete) {
            if !self.saw_last_declaration() {
                let note = format!(
                    "topic {} is not declared any more and is left as it is: the resource was changed more than once since it was last \
                     looked at, so the policy that was declared last is not known",
                    topic.name
                );
                self.context.publish_event(self.relay, EventType::Warning, "TopicRetained", &note);
                continue;
            }
            if let Err(error) = self.delete_own_topic(cluster, &topic).await {
                problems.push((FAILED, error.to_string()));
                self.topics.push(topic);
            }
        }
        problems
    }

    /// Only the relay's pods have credentials now: topics that the operator has managed until then are left as they are.
    pub(super) fn release_all(&mut self) {
        for topic in std::mem::take(&mut self.topics) {
            let note = format!(
                "topic {} is left as it is: the operator has no credentials for Kafka any more",
                topic.name
            );
            self.context.publish_event(self.relay, EventType::Normal, "TopicRetained", &note);
        }
    }

    /// Whether the specification before this one was looked at.
    fn saw_last_declaration(&self) -> bool {
        let seen = self.relay.status.as_ref().and_then(|status| status.observed_generation);
        let generation = self.relay.metadata.generation;
        seen.zip(generation).is_some_and(|(seen, generation)| seen + 1 >= generation)
    }

    /// Deletes a topic in the cluster in which it was seen, unless it was recreated since.
    pub(super) async fn delete_own_topic(
        &self,
        cluster: &Cluster,
        topic: &TopicStatus,
    ) -> Result<(), KafkaError> {
        let now = cluster.topics_now(slice::from_ref(&topic.name)).await?;
        let Some(id) = now.get(&topic.name).map(|topic| topic.id.clone()) else { return Ok(()) };
        let is_another = topic.id.as_ref().zip(id.as_ref()).is_some_and(|(before, now)| before != now);
        let cluster_is_another = cluster
            .identity()
            .await
            .zip(self.kafka_identity.clone())
            .is_some_and(|(now, before)| now != before);
        if is_another || cluster_is_another {
            let note =
                format!("topic {} is left as it is: it is not the one that this resource had", topic.name);
            self.context.publish_event(self.relay, EventType::Warning, "TopicRetained", &note);
            return Ok(());
        }
        cluster.delete(&topic.name).await?;
        let note = format!("deleted topic {}", topic.name);
        self.context.publish_event(self.relay, EventType::Normal, "TopicDeleted", &note);
        Ok(())
    }
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
        let policies: Vec<DeletionPolicy> = known(vec![known_as("a"), known_as("gone")], &declared)
            .iter()
            .map(|topic| topic.deletion_policy)
            .collect();
        assert_eq!(policies, [DeletionPolicy::Retain, DeletionPolicy::Delete]);
    }
}
