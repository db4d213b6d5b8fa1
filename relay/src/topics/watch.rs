//! Detects changes of topics while the relay runs, by comparing successive metadata queries.

use std::collections::HashMap;

use crate::topics::registry::TopicId;

/// A topic counts as missing after this many successive queries: one broker may learn of a new topic late.
const MISSING_RESULTS: u32 = 2;

/// A topic in the result of one metadata query.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TopicState {
    /// The topic exists. Has the leader of each partition, or -1 if there is none.
    Present(Vec<i32>),
    /// The topic does not exist.
    Missing,
    /// The brokers could not tell.
    Unknown,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TopicChange {
    /// The topic does not exist any more.
    Missing,
    /// The topic has more partitions than the relay uses.
    Grown,
    /// The topic has fewer partitions than the relay has written to, so it was recreated.
    Shrunk {
        /// The number of partitions it has.
        partitions: usize,
    },
    /// A partition has a new leader, or Kafka was unavailable. Verify that the acknowledged records still exist.
    LeaderChanged,
}

/// The state from the previous query.
#[derive(Debug, Default)]
pub struct TopicWatch {
    leaders: HashMap<TopicId, Vec<i32>>,
    missing: HashMap<TopicId, u32>,
    was_unavailable: bool,
}

impl TopicWatch {
    /// Kafka did not respond to a query.
    pub fn on_unavailable(&mut self) {
        self.was_unavailable = true;
    }

    /// Returns the changes since the previous query. `known` returns the number of partitions that the relay knows.
    pub fn on_states(
        &mut self,
        states: impl IntoIterator<Item = (TopicId, TopicState)>,
        known: impl Fn(TopicId) -> usize,
    ) -> Vec<(TopicId, TopicChange)> {
        let was_unavailable = std::mem::take(&mut self.was_unavailable);
        let change = |(topic, state)| {
            let change = self.change(topic, state, known(topic), was_unavailable)?;
            Some((topic, change))
        };
        states.into_iter().filter_map(change).collect()
    }

    fn change(
        &mut self,
        topic: TopicId,
        state: TopicState,
        known: usize,
        was_unavailable: bool,
    ) -> Option<TopicChange> {
        let leaders = match state {
            TopicState::Unknown => return None,
            TopicState::Missing => {
                let results = self.missing.entry(topic).or_default();
                *results += 1;
                return (*results == MISSING_RESULTS).then_some(TopicChange::Missing);
            }
            TopicState::Present(leaders) => leaders,
        };
        self.missing.remove(&topic);
        let partitions = leaders.len();
        if partitions < known {
            return Some(TopicChange::Shrunk { partitions });
        }
        if leaders.iter().any(|leader| *leader < 0) {
            return None;
        }
        let before = self.leaders.insert(topic, leaders.clone());
        if partitions > known {
            return Some(TopicChange::Grown);
        }
        let moved = before.is_some_and(|before| before != leaders);
        (moved || was_unavailable).then_some(TopicChange::LeaderChanged)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::topics::registry::TopicRegistry;

    fn change(watch: &mut TopicWatch, state: TopicState) -> Option<TopicChange> {
        let topic = TopicRegistry::default().add("t", 2, &BTreeMap::new());
        watch.on_states([(topic, state)], |_| 2).pop().map(|(_, change)| change)
    }

    #[test]
    fn a_topic_is_missing_after_two_successive_results() {
        let mut watch = TopicWatch::default();
        assert_eq!(change(&mut watch, TopicState::Missing), None);
        assert_eq!(change(&mut watch, TopicState::Present(vec![1, 1])), None);
        assert_eq!(change(&mut watch, TopicState::Missing), None);
        assert_eq!(change(&mut watch, TopicState::Unknown), None);
        assert_eq!(change(&mut watch, TopicState::Missing), Some(TopicChange::Missing));
        assert_eq!(change(&mut watch, TopicState::Missing), None, "reported once");
    }

    #[test]
    fn growth_counts_once_every_partition_has_a_leader_and_shrinking_immediately() {
        let mut watch = TopicWatch::default();
        assert_eq!(change(&mut watch, TopicState::Present(vec![1, 2, -1])), None);
        assert_eq!(change(&mut watch, TopicState::Present(vec![1, 2, 3])), Some(TopicChange::Grown));
        assert_eq!(
            change(&mut watch, TopicState::Present(vec![1])),
            Some(TopicChange::Shrunk { partitions: 1 })
        );
    }

    #[test]
    fn a_new_leader_and_an_outage_require_a_verification() {
        let mut watch = TopicWatch::default();
        assert_eq!(change(&mut watch, TopicState::Present(vec![1, 2])), None);
        assert_eq!(change(&mut watch, TopicState::Present(vec![1, 3])), Some(TopicChange::LeaderChanged));
        assert_eq!(change(&mut watch, TopicState::Present(vec![1, 3])), None);
        watch.on_unavailable();
        assert_eq!(change(&mut watch, TopicState::Present(vec![1, 3])), Some(TopicChange::LeaderChanged));
        assert_eq!(change(&mut watch, TopicState::Present(vec![1, 3])), None);
    }
}
