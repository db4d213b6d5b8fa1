//! The Kafka side of a reconciliation: whether the cluster answers, and the topics.

use std::collections::BTreeSet;
use std::time::Instant;

use outbox_relay::config::{Sink, SinkAccess};
use outbox_relay::error;

use super::Pass;
use crate::conditions::{ConditionState, ConditionType, Reason};
use crate::desired::files::KAFKA;
use crate::events::EventType;
use crate::resource::{Sasl, Topic, TopicStatus};
use crate::secrets::KafkaSecrets;
use crate::topics::{Cluster, KafkaError, Observed, Step, plan};

/// State of the Kafka side.
pub(super) enum Kafka {
    /// It has what the relay needs.
    Usable(Cluster),
    /// The operator has no credentials for it; the relay reports whether it can use it.
    LeftToRelay,
    /// Something is missing; the conditions name it.
    NotReady,
}

const HELD_BY_PODS: &str = "the operator has no credentials for Kafka: only the relay's pods have them. It neither checks nor creates \
     topics, and Streaming tells whether the relay reaches Kafka";

impl Pass<'_> {
    /// Whether a relay could be started, as far as Kafka is concerned.
    pub(super) async fn kafka(&mut self, sink: &Sink, secrets: &KafkaSecrets) -> Kafka {
        if self.relay.spec.sink.kafka.sasl.as_ref().is_some_and(Sasl::is_held_by_pods) {
            self.findings.set(
                ConditionType::KafkaReachable,
                ConditionState::unknown(Reason::NoCredentials, HELD_BY_PODS),
            );
            self.findings.set(
                ConditionType::TopicsReady,
                ConditionState::yes(Reason::AsDeclared, "no topic is declared"),
            );
            self.release_all();
            return Kafka::LeftToRelay;
        }
        self.usable_cluster(sink, secrets).await.map_or(Kafka::NotReady, Kafka::Usable)
    }

    /// The cluster, where a relay could be started.
    async fn usable_cluster(&mut self, sink: &Sink, secrets: &KafkaSecrets) -> Option<Cluster> {
        let cluster = match self.cluster(sink, secrets).await {
            Ok(cluster) => cluster,
            Err(problem) => {
                self.findings.set(
                    ConditionType::KafkaReachable,
                    ConditionState::no(Reason::KafkaSettingsUnusable, problem),
                );
                return None;
            }
        };
        let names = self.topic_names();
        let observing = cluster.observe(&names);
        let observed = match self.context.metrics.request("kafka", "observe", observing).await {
            Ok(observed) => observed,
            Err(error) => {
                self.findings.set(ConditionType::KafkaReachable, unreachable(&error));
                return None;
            }
        };
        self.findings.set(ConditionType::KafkaReachable, ConditionState::yes(Reason::Connected, ""));
        if !self.is_known_and_alone(&cluster).await {
            return None;
        }
        let mut problems = self.delete_undeclared(&cluster).await;
        for topic in &self.relay.spec.topics {
            problems.extend(self.topic(&cluster, topic, observed.get(&topic.name)).await);
        }
        let finding = match problems.first() {
            None => ConditionState::yes(Reason::AsDeclared, ""),
            Some((reason, _)) => {
                let all: Vec<&str> = problems.iter().map(|(_, problem)| problem.as_str()).collect();
                ConditionState::no(reason.clone(), all.join("; "))
            }
        };
        self.findings.set(ConditionType::TopicsReady, finding);
        problems.iter().all(|(reason, _)| *reason != FAILED).then_some(cluster)
    }

    /// Whether others can see which cluster it is, and none of them has one of the topics. Before anything is made.
    async fn is_known_and_alone(&mut self, cluster: &Cluster) -> bool {
        // One that does not say it now is taken for the one it was.
        if let Some(identity) = cluster.identity().await
            && self.kafka_identity.as_ref() != Some(&identity)
        {
            self.on_cluster_changed(identity);
            let registering =
                ConditionState::unknown(Reason::Registering, "which cluster it is was just found out");
            self.findings.set(ConditionType::TopicsReady, registering);
            return false;
        }
        match self.topic_owner() {
            None => true,
            Some((topic, owner)) => {
                let what = format!("{owner} is older and has topic {topic}: take it from one of the two");
                self.findings
                    .set(ConditionType::TopicsReady, ConditionState::no(Reason::ResourceConflict, what));
                false
            }
        }
    }

    /// The cluster as the administrator sees it, or else the relay.
    pub(super) async fn cluster(&self, sink: &Sink, secrets: &KafkaSecrets) -> Result<Cluster, String> {
        let mut sink = sink.clone();
        if let Some(admin) = &secrets.admin {
            sink.sasl = sink.sasl.and_then(|sasl| sasl.with_user(&admin.user, &admin.password));
        }
        if self.relay.spec.sink.kafka.admin_certificate_secret_ref.is_some() {
            [sink.tls.cert_file, sink.tls.key_file] = KAFKA.admin_certificate_files();
        }
        let access = SinkAccess::read_with(&sink, &|file| secrets.files.read(file));
        let access = access.map_err(|error| error.to_string())?;
        let cluster = self.context.connections.cluster(&Sink { access, ..sink }).await;
        cluster.map_err(|error| error.to_string())
    }

    /// Makes a topic what is declared; answers what is not so.
    async fn topic(
        &mut self,
        cluster: &Cluster,
        topic: &Topic,
        found: Option<&Observed>,
    ) -> Vec<(Reason, String)> {
        let known = self.topics.iter().find(|known| known.name == topic.name);
        let owned: BTreeSet<String> = known.into_iter().flat_map(|known| known.config_keys.clone()).collect();
        let (before, id) =
            (known.and_then(|known| known.id.as_ref()), found.and_then(|found| found.id.as_ref()));
        if before.is_some() && id.is_some() && before != id {
            let note = format!("topic {}, by another client: {REPLACED}", topic.name);
            self.context.publish_event(self.relay, EventType::Warning, "TopicReplaced", &note);
        }
        let plan = plan(topic, &owned, found);
        for step in plan.steps.into_iter().filter_map(|step| self.without_contested(topic, step)) {
            if let Err(error) = cluster.apply_step(&topic.name, &step).await {
                return vec![(FAILED, error.to_string())];
            }
            self.on_step(topic, &step);
        }
        // Not known while replicas are moved.
        let replicas = found.and_then(|found| found.replication_factor);
        let status = TopicStatus {
            name: topic.name.clone(),
            id: id.or(found.and(before)).cloned(),
            partitions: found.map(|found| found.partitions).max(topic.partitions),
            replication_factor: replicas.or(known.and_then(|known| known.replication_factor)),
            config_keys: topic.config.keys().cloned().collect(),
            deletion_policy: topic.deletion_policy,
        };
        match self.topics.iter_mut().find(|known| known.name == topic.name) {
            Some(known) => *known = status,
            None => self.topics.push(status),
        }
        let told = |deviation| (Reason::NotAsDeclared, format!("topic {}: {deviation}", topic.name));
        plan.deviations.into_iter().map(told).chain(self.contested(topic)).collect()
    }

    /// What is left of a step where another manager contests some of the keys that it sets.
    fn without_contested(&self, topic: &Topic, step: Step) -> Option<Step> {
        let Step::Configure { mut set, reset } = step else { return Some(step) };
        let (contests, now) = (self.context.cache.of(self.relay).contests, Instant::now());
        set.retain(|key, value| contests.may_set(&topic.name, key, value, now));
        (!set.is_empty() || !reset.is_empty()).then_some(Step::Configure { set, reset })
    }

    /// A step was done. What is set again and again is in the condition, not in an Event each time.
    fn on_step(&self, topic: &Topic, step: &Step) {
        let now = Instant::now();
        let all_contested = self.context.cache.with(self.relay, |cached| {
            let Step::Configure { set, reset } = step else { return false };
            for (key, value) in set {
                cached.contests.on_set(&topic.name, key, value, now);
            }
            let contested = cached.contests.of_topic(&topic.name, now);
            reset.is_empty() && set.keys().all(|key| contested.contains(&key.as_str()))
        });
        if !all_contested {
            let note = format!("topic {}: {step}", topic.name);
            self.context.publish_event(self.relay, EventType::Normal, "TopicChanged", &note);
        }
    }

    fn contested(&self, topic: &Topic) -> Option<(Reason, String)> {
        let contests = self.context.cache.of(self.relay).contests;
        let keys = contests.of_topic(&topic.name, Instant::now());
        (!keys.is_empty()).then(|| {
            let what = format!(
                "topic {}: something else sets {} back each time it is set; declare it in one place, here or there",
                topic.name,
                keys.join(", ")
            );
            (Reason::TopicContested, what)
        })
    }
}

const REPLACED: &str = "it was deleted and recreated, and its records are gone; the relay reports whether it had delivered any of them";

/// A step was not done; the relay would find no topic.
pub(super) const FAILED: Reason = Reason::TopicFailed;

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
