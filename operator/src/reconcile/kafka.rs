//! The Kafka side of a pass: whether the cluster answers, and the topics.

use std::collections::BTreeSet;

use outbox_relay::config::{Config, Sink, SinkAccess};

use super::Pass;
use crate::resource::{Topic, TopicStatus};
use crate::secrets::Secrets;
use crate::status::{Aspect, Finding};
use crate::topics::{Cluster, KafkaError, Observed, plan};

impl Pass<'_> {
    /// The cluster, where a relay could be started.
    pub(super) async fn kafka(&mut self, config: &Config, secrets: &Secrets) -> Option<Cluster> {
        let cluster = match self.cluster(config, secrets) {
            Ok(cluster) => cluster,
            Err(problem) => {
                self.findings.set(Aspect::KafkaReachable, Finding::no("KafkaSettingsUnusable", problem));
                return None;
            }
        };
        let names: Vec<String> = self.relay.spec.topics.iter().map(|topic| topic.name.clone()).collect();
        let observed = match cluster.observe(&names).await {
            Ok(observed) => observed,
            Err(error) => {
                self.findings.set(Aspect::KafkaReachable, no("KafkaUnreachable", &error));
                return None;
            }
        };
        self.findings.set(Aspect::KafkaReachable, Finding::yes("Connected", ""));
        let mut problems = Vec::new();
        for topic in &self.relay.spec.topics {
            problems.extend(self.topic(&cluster, topic, observed.get(&topic.name)).await);
        }
        let finding = match problems.first() {
            None => Finding::yes("AsDeclared", ""),
            Some((reason, _)) => {
                let all: Vec<&str> = problems.iter().map(|(_, problem)| problem.as_str()).collect();
                Finding::no(*reason, all.join("; "))
            }
        };
        self.findings.set(Aspect::TopicsReady, finding);
        problems.iter().all(|(reason, _)| *reason != FAILED).then_some(cluster)
    }

    pub(super) fn cluster(&self, config: &Config, secrets: &Secrets) -> Result<Cluster, String> {
        let mut sink = config.sink.clone();
        if let (Some(sasl), Some(admin)) = (&mut sink.sasl, &secrets.kafka_admin) {
            (sasl.username, sasl.username_file) = (Some(admin.user.clone()), None);
            sasl.password = Some(admin.password.clone());
        }
        let access = SinkAccess::read(&sink).map_err(|error| error.to_string())?;
        self.context.connections.cluster(&Sink { access, ..sink }).map_err(|error| error.to_string())
    }

    /// Makes a topic what is declared; answers what is not so.
    async fn topic(
        &mut self,
        cluster: &Cluster,
        topic: &Topic,
        observed: Option<&Observed>,
    ) -> Vec<(&'static str, String)> {
        let known = self.topics.iter().find(|known| known.name == topic.name);
        let owned: BTreeSet<String> = known.into_iter().flat_map(|known| known.config_keys.clone()).collect();
        let plan = plan(topic, &owned, observed);
        for step in &plan.steps {
            if let Err(error) = cluster.carry_out(&topic.name, step).await {
                return vec![(FAILED, error.to_string())];
            }
            tracing::info!(topic = topic.name, ?step, "done");
        }
        let status =
            TopicStatus { name: topic.name.clone(), config_keys: topic.config.keys().cloned().collect() };
        match self.topics.iter_mut().find(|known| known.name == topic.name) {
            Some(known) => *known = status,
            None => self.topics.push(status),
        }
        let told = |deviation| ("NotAsDeclared", format!("topic {}: {deviation}", topic.name));
        plan.deviations.into_iter().map(told).collect()
    }
}

/// A step was not done; the relay would find no topic.
const FAILED: &str = "TopicFailed";

fn no(reason: &str, error: &KafkaError) -> Finding {
    Finding::no(reason, format!("{error}; check that Kafka runs, and that sink.kafka leads to it"))
}
