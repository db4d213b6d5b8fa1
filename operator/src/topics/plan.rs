//! What has to be done so that a topic is as it is declared: a pure function of what is declared and what is there.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::{self, Display};

use super::values::are_same;
use crate::resource::Topic;

/// Records get the broker's time: one that is as old as the event it carries could be older than the topic's retention, and
/// be gone at once. `ce_time` keeps the event's.
const TIMESTAMP_TYPE: (&str, &str) = ("message.timestamp.type", "LogAppendTime");

/// A topic as Kafka has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Observed {
    /// Changes when the topic is recreated; brokers before Kafka 3.1 know none.
    pub id: Option<String>,
    /// Number of partitions.
    pub partitions: i32,
    /// Replicas of the partition that has the fewest; `None` while replicas are moved or brokers are down.
    pub replication_factor: Option<i32>,
    /// What is set for this topic; everything else is the broker's.
    pub overrides: BTreeMap<String, String>,
}

/// Something to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Make the topic.
    Create {
        /// With so many partitions, or the broker's default,
        partitions: Option<i32>,
        /// so many replicas, or the broker's default,
        replication_factor: Option<i32>,
        /// and this configuration.
        config: BTreeMap<String, String>,
    },
    /// Add partitions.
    Grow {
        /// How many there are to be.
        partitions: i32,
    },
    /// Alter the topic's configuration. What others have set stays.
    Configure {
        /// To be set.
        set: BTreeMap<String, String>,
        /// To be the broker's again.
        reset: BTreeSet<String>,
    },
}

impl Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Step::Create { partitions, replication_factor, .. } => {
                let [partitions, replicas] = [partitions, replication_factor].map(|number| {
                    number.map_or_else(
                        || "the broker's default number of".to_owned(),
                        |number| number.to_string(),
                    )
                });
                write!(f, "made, with {partitions} partitions and {replicas} replicas")
            }
            Step::Grow { partitions } => write!(f, "grown to {partitions} partitions"),
            Step::Configure { set, reset } => {
                let set = set.iter().map(|(key, value)| format!("{key}={value}"));
                let reset = reset.iter().map(|key| format!("{key} as the broker has it"));
                write!(f, "configured: {}", set.chain(reset).collect::<Vec<_>>().join(", "))
            }
        }
    }
}

/// What is not as it is declared, and cannot be made so.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Deviation {
    /// Kafka cannot take partitions away.
    #[error("it has {is} partitions, {declared} are declared, and Kafka takes none away: declare {is}")]
    Partitions {
        /// In the resource.
        declared: i32,
        /// In Kafka.
        is: i32,
    },
    /// Replicas are moved by other tools.
    #[error(
        "it has {is} replicas, {declared} are declared: move replicas with kafka-reassign-partitions, or declare {is}"
    )]
    ReplicationFactor {
        /// In the resource.
        declared: i32,
        /// In Kafka.
        is: i32,
    },
}

/// What to do about one topic, and what nothing can be done about here.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// In this order.
    pub steps: Vec<Step>,
    /// To be told.
    pub deviations: Vec<Deviation>,
}

/// Compares `declared` with what is there. `owned` are the keys of its configuration that this resource has set before: one that is no
/// longer declared is given back to the broker.
pub fn plan(declared: &Topic, owned: &BTreeSet<String>, observed: Option<&Observed>) -> Plan {
    let Some(observed) = observed else {
        let mut config = declared.config.clone();
        config.entry(TIMESTAMP_TYPE.0.to_owned()).or_insert_with(|| TIMESTAMP_TYPE.1.to_owned());
        let (partitions, replication_factor) = (declared.partitions, declared.replication_factor);
        let create = Step::Create { partitions, replication_factor, config };
        return Plan { steps: vec![create], deviations: Vec::new() };
    };
    let mut plan = Plan::default();
    let is = observed.partitions;
    if let Some(partitions) = declared.partitions.filter(|partitions| is < *partitions) {
        plan.steps.push(Step::Grow { partitions });
    }
    plan.steps.extend(configure(declared, owned, &observed.overrides));
    if let Some(declared) = declared.partitions.filter(|partitions| is > *partitions) {
        plan.deviations.push(Deviation::Partitions { declared, is });
    }
    match (declared.replication_factor, observed.replication_factor) {
        (Some(declared), Some(is)) if declared != is => {
            plan.deviations.push(Deviation::ReplicationFactor { declared, is });
        }
        _ => {}
    }
    plan
}

fn configure(declared: &Topic, owned: &BTreeSet<String>, present: &BTreeMap<String, String>) -> Option<Step> {
    let differs = |(key, value): &(&String, &String)| {
        present.get(*key).is_none_or(|present| !are_same(key, value, present))
    };
    let set = declared.config.iter().filter(differs).map(|(key, value)| (key.clone(), value.clone()));
    let reset = owned.iter().filter(|key| !declared.config.contains_key(*key));
    let reset = reset.filter(|key| present.contains_key(*key)).cloned();
    let (set, reset) = (set.collect::<BTreeMap<_, _>>(), reset.collect::<BTreeSet<_>>());
    (!set.is_empty() || !reset.is_empty()).then_some(Step::Configure { set, reset })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::resource::DeletionPolicy;

    fn topic(partitions: i32, replication_factor: i32, config: &[(&str, &str)]) -> Topic {
        let config = pairs(config);
        let (partitions, replication_factor) = (Some(partitions), Some(replication_factor));
        let (name, deletion_policy) = ("t".into(), DeletionPolicy::Retain);
        Topic { name, partitions, replication_factor, config, deletion_policy }
    }

    fn pairs(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
    }

    fn keys(keys: &[&str]) -> BTreeSet<String> {
        keys.iter().map(|key| (*key).to_owned()).collect()
    }

    /// A broker's default.
    const BROKERS: i32 = 2;

    /// What Kafka would have after a plan was carried out.
    fn carried_out(observed: Option<Observed>, steps: Vec<Step>) -> Option<Observed> {
        steps.into_iter().fold(observed, |observed, step| match (step, observed) {
            (Step::Create { partitions, replication_factor, config }, _) => {
                let (partitions, replication_factor) =
                    (partitions.unwrap_or(BROKERS), Some(replication_factor.unwrap_or(BROKERS)));
                Some(Observed { id: None, partitions, replication_factor, overrides: config })
            }
            (Step::Grow { partitions }, Some(observed)) => Some(Observed { partitions, ..observed }),
            (Step::Configure { set, reset }, Some(mut observed)) => {
                observed.overrides.extend(set);
                observed.overrides.retain(|key, _| !reset.contains(key));
                Some(observed)
            }
            (_, None) => None,
        })
    }

    #[test]
    fn a_missing_topic_is_made_with_the_brokers_time_unless_declared_otherwise() {
        let made = |config: &[(&str, &str)]| plan(&topic(3, 2, config), &keys(&[]), None).steps;
        let config = pairs(&[("message.timestamp.type", "LogAppendTime"), ("retention.ms", "1000")]);
        assert_eq!(
            made(&[("retention.ms", "1000")]),
            [Step::Create { partitions: Some(3), replication_factor: Some(2), config }]
        );
        let config = pairs(&[("message.timestamp.type", "CreateTime")]);
        assert_eq!(
            made(&[("message.timestamp.type", "CreateTime")]),
            [Step::Create { partitions: Some(3), replication_factor: Some(2), config }]
        );
    }

    #[test]
    fn only_declared_keys_are_touched_and_one_that_is_no_longer_is_given_back() {
        let overrides = pairs(&[("foreign", "1"), ("mine", "1"), ("was.mine", "1")]);
        let observed = Observed { id: None, partitions: 3, replication_factor: Some(1), overrides };
        let plan = plan(&topic(3, 1, &[("mine", "2")]), &keys(&["mine", "was.mine"]), Some(&observed));
        let step = Step::Configure { set: pairs(&[("mine", "2")]), reset: keys(&["was.mine"]) };
        assert_eq!(step.to_string(), "configured: mine=2, was.mine as the broker has it");
        assert_eq!(plan, Plan { steps: vec![step], deviations: Vec::new() });
    }

    #[test]
    fn what_cannot_be_done_is_told() {
        let observed =
            Observed { id: None, partitions: 6, replication_factor: Some(1), overrides: BTreeMap::new() };
        let plan = plan(&topic(3, 3, &[]), &keys(&[]), Some(&observed));
        assert_eq!(plan.steps, []);
        let told: Vec<String> = plan.deviations.iter().map(ToString::to_string).collect();
        assert!(told[0].contains("declare 6") && told[1].contains("it has 1 replicas"), "{told:?}");
    }

    /// A lasting deviation would keep Ready False as long as replicas are moved, which can be hours.
    #[test]
    fn replicas_that_are_moved_are_no_deviation() {
        let observed =
            Observed { id: None, partitions: 3, replication_factor: None, overrides: BTreeMap::new() };
        assert_eq!(plan(&topic(3, 3, &[]), &keys(&[]), Some(&observed)), Plan::default());
    }

    #[test]
    fn what_is_left_to_the_broker_is_never_changed_and_never_wrong() {
        let declared = Topic { partitions: None, replication_factor: None, ..topic(1, 1, &[]) };
        let [create] = &plan(&declared, &keys(&[]), None).steps[..] else { panic!() };
        let defaults = "made, with the broker's default number of partitions and the broker's default number of replicas";
        assert_eq!(create.to_string(), defaults);
        for (partitions, replicas) in [(1, 1), (6, 3)] {
            let replication_factor = Some(replicas);
            let observed = Observed { id: None, partitions, replication_factor, overrides: BTreeMap::new() };
            assert_eq!(plan(&declared, &keys(&[]), Some(&observed)), Plan::default());
        }
    }

    fn config() -> impl Strategy<Value = BTreeMap<String, String>> {
        prop::collection::btree_map("[abc]", "[12]", 0..3)
    }

    proptest! {
        #[test]
        fn planning_again_after_a_plan_was_carried_out_gives_nothing_to_do(
            (partitions, replicas, declared) in (prop::option::of(1..9), prop::option::of(1..4), config()),
            owned in prop::collection::btree_set("[abcd]", 0..4),
            observed in prop::option::of((1..9, 1..4, config())),
        ) {
            let (config, replication_factor) = (declared, replicas);
            let declared = Topic { config, partitions, replication_factor, ..topic(1, 1, &[]) };
            let observed = observed.map(|(partitions, replication_factor, overrides)| {
                Observed { id: None, partitions, replication_factor: Some(replication_factor), overrides }
            });
            let after = carried_out(observed.clone(), plan(&declared, &owned, observed.as_ref()).steps);
            let owned = declared.config.keys().cloned().collect();
            prop_assert_eq!(plan(&declared, &owned, after.as_ref()).steps, []);
            // What others have set is as it was.
            if let (Some(before), Some(after)) = (&observed, &after) {
                for (key, value) in before.overrides.iter().filter(|(key, _)| !owned.contains(*key)) {
                    prop_assert!(after.overrides.get(key).is_none_or(|now| now == value));
                }
            }
        }
    }
}
