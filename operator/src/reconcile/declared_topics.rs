//! One topic that a resource declares: the difference to what Kafka has is planned and applied, except for values that another manager
//! contests.

use std::collections::BTreeSet;
use std::fmt::{self, Display};
use std::time::Instant;

use super::Context;
use crate::conditions::Reason;
use crate::events::EventType;
use crate::resource::{OutboxRelay, Topic, TopicStatus};
use crate::topics::{Cluster, Deviation, KafkaError, Observed, Step, plan};

/// Why a topic is not as it is declared.
#[derive(Debug)]
pub(super) enum TopicProblem {
    /// A step was not done; the relay would find no topic.
    Failed(KafkaError),
    /// It cannot be changed to what is declared.
    Deviates { topic: String, deviation: Deviation },
    /// Another manager sets these keys back.
    Contested { topic: String, keys: Vec<String> },
}

impl TopicProblem {
    pub(super) fn reason(&self) -> Reason {
        match self {
            TopicProblem::Failed(_) => Reason::TopicFailed,
            TopicProblem::Deviates { .. } => Reason::NotAsDeclared,
            TopicProblem::Contested { .. } => Reason::TopicContested,
        }
    }
}

impl Display for TopicProblem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            TopicProblem::Failed(error) => error.fmt(f),
            TopicProblem::Deviates { topic, deviation } => write!(f, "topic {topic}: {deviation}"),
            TopicProblem::Contested { topic, keys } => write!(
                f,
                "topic {topic}: something else sets {} back each time it is set; declare it in one place, here or there",
                keys.join(", ")
            ),
        }
    }
}

/// The input for one topic.
pub(super) struct DeclaredTopic<'a> {
    pub(super) relay: &'a OutboxRelay,
    pub(super) context: &'a Context,
    pub(super) declared: &'a Topic,
    /// What the status says of it.
    pub(super) known: Option<&'a TopicStatus>,
    /// What Kafka says of it.
    pub(super) observed: Option<&'a Observed>,
}

impl DeclaredTopic<'_> {
    /// Makes the topic what is declared; returns what is known of it then, and what is not as declared.
    ///
    /// # Errors
    /// A step was not done: nothing new is known.
    pub(super) async fn apply(
        &self,
        cluster: &Cluster,
    ) -> Result<(TopicStatus, Vec<TopicProblem>), KafkaError> {
        let DeclaredTopic { declared, known, observed, .. } = *self;
        self.report_replacement();
        let owned: BTreeSet<String> = known.into_iter().flat_map(|known| known.config_keys.clone()).collect();
        let plan = plan(declared, &owned, observed);
        for step in plan.steps.into_iter().filter_map(|step| self.without_contested(step)) {
            cluster.apply_step(&declared.name, &step).await?;
            self.on_applied(&step);
        }
        let topic = &declared.name;
        let deviates = |deviation| TopicProblem::Deviates { topic: topic.clone(), deviation };
        let problems = plan.deviations.into_iter().map(deviates).chain(self.contested()).collect();
        Ok((self.status(), problems))
    }

    fn status(&self) -> TopicStatus {
        let DeclaredTopic { declared, known, observed, .. } = *self;
        let (id_before, id) = self.ids();
        // Not known while replicas are moved.
        let replicas = observed.and_then(|observed| observed.replication_factor);
        TopicStatus {
            name: declared.name.clone(),
            id: id.or(observed.and(id_before)).cloned(),
            partitions: observed.map(|observed| observed.partitions).max(declared.partitions),
            replication_factor: replicas.or(known.and_then(|known| known.replication_factor)),
            config_keys: declared.config.keys().cloned().collect(),
            deletion_policy: declared.deletion_policy,
        }
    }

    /// The topic's id, before and now.
    fn ids(&self) -> (Option<&String>, Option<&String>) {
        let before = self.known.and_then(|known| known.id.as_ref());
        (before, self.observed.and_then(|observed| observed.id.as_ref()))
    }

    fn report_replacement(&self) {
        if let (Some(before), Some(now)) = self.ids()
            && before != now
        {
            let note = format!("topic {}, by another client: {REPLACED}", self.declared.name);
            self.context.publish_event(self.relay, EventType::Warning, "TopicReplaced", &note);
        }
    }

    /// What is left of a step where another manager contests some of the keys that it sets.
    fn without_contested(&self, step: Step) -> Option<Step> {
        let Step::Configure { mut set, reset } = step else { return Some(step) };
        let (contests, now) = (self.context.cache.of(self.relay).contests, Instant::now());
        set.retain(|key, value| contests.may_set(&self.declared.name, key, value, now));
        (!set.is_empty() || !reset.is_empty()).then_some(Step::Configure { set, reset })
    }

    /// What is set again and again is in the condition, not in an Event each time.
    fn on_applied(&self, step: &Step) {
        let (topic, now) = (&self.declared.name, Instant::now());
        let all_contested = self.context.cache.with(self.relay, |cached| {
            let Step::Configure { set, reset } = step else { return false };
            for (key, value) in set {
                cached.contests.on_set(topic, key, value, now);
            }
            let contested = cached.contests.of_topic(topic, now);
            reset.is_empty() && set.keys().all(|key| contested.contains(&key.as_str()))
        });
        if !all_contested {
            let note = format!("topic {topic}: {step}");
            self.context.publish_event(self.relay, EventType::Normal, "TopicChanged", &note);
        }
    }

    fn contested(&self) -> Option<TopicProblem> {
        let topic = &self.declared.name;
        let contests = self.context.cache.of(self.relay).contests;
        let keys: Vec<String> =
            contests.of_topic(topic, Instant::now()).into_iter().map(str::to_owned).collect();
        (!keys.is_empty()).then(|| TopicProblem::Contested { topic: topic.clone(), keys })
    }
}

const REPLACED: &str = "it was deleted and recreated, and its records are gone; the relay reports whether it had delivered any of them";
