//! What changes about topics while the relay runs: told from one look at the metadata to the next.

use std::collections::{BTreeMap, HashMap};

/// So many looks in a row have to find a topic missing: one broker of a cluster may be late to know it.
const MISSING_LOOKS: u32 = 2;

/// A topic in one look at the metadata.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TopicState {
    /// It exists; the leader of each partition, -1 while there is none.
    Present(Vec<i32>),
    /// It does not exist.
    Missing,
    /// The brokers could not say.
    Unknown,
}

/// Something has changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TopicChange {
    /// The topic does not exist any more.
    Missing,
    /// It has more partitions than events are spread over.
    Grown,
    /// It has fewer partitions than were written to: it is another topic under the same name.
    Shrunk {
        /// How many it has.
        partitions: usize,
    },
    /// A partition has another leader, or Kafka was away: what was acknowledged has to be still there.
    LeaderChanged,
}

/// Remembers the look before.
#[derive(Debug, Default)]
pub struct TopicWatch {
    leaders: HashMap<String, Vec<i32>>,
    missing: HashMap<String, u32>,
    was_away: bool,
}

impl TopicWatch {
    /// Kafka did not answer a look.
    pub fn on_unavailable(&mut self) {
        self.was_away = true;
    }

    /// Takes in a look. `known` says how many partitions of a topic are known.
    pub fn on_states(
        &mut self,
        looked: BTreeMap<String, TopicState>,
        known: impl Fn(&str) -> usize,
    ) -> Vec<(String, TopicChange)> {
        let was_away = std::mem::take(&mut self.was_away);
        let news = |(topic, seen): (String, TopicState)| {
            let news = self.topic(&topic, seen, known(&topic), was_away)?;
            Some((topic, news))
        };
        looked.into_iter().filter_map(news).collect()
    }

    fn topic(&mut self, topic: &str, seen: TopicState, known: usize, was_away: bool) -> Option<TopicChange> {
        let leaders = match seen {
            TopicState::Unknown => return None,
            TopicState::Missing => {
                let looks = self.missing.entry(topic.to_owned()).or_default();
                *looks += 1;
                return (*looks == MISSING_LOOKS).then_some(TopicChange::Missing);
            }
            TopicState::Present(leaders) => leaders,
        };
        self.missing.remove(topic);
        let partitions = leaders.len();
        if partitions < known {
            return Some(TopicChange::Shrunk { partitions });
        }
        if leaders.iter().any(|leader| *leader < 0) {
            return None;
        }
        let before = self.leaders.insert(topic.to_owned(), leaders.clone());
        if partitions > known {
            return Some(TopicChange::Grown);
        }
        let moved = before.is_some_and(|before| before != leaders);
        (moved || was_away).then_some(TopicChange::LeaderChanged)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn look(watch: &mut TopicWatch, seen: TopicState) -> Option<TopicChange> {
        watch.on_states(BTreeMap::from([("t".to_owned(), seen)]), |_| 2).pop().map(|(_, news)| news)
    }

    #[test]
    fn a_topic_is_missing_when_two_looks_say_so() {
        let mut watch = TopicWatch::default();
        assert_eq!(look(&mut watch, TopicState::Missing), None);
        assert_eq!(look(&mut watch, TopicState::Present(vec![1, 1])), None);
        assert_eq!(look(&mut watch, TopicState::Missing), None);
        assert_eq!(look(&mut watch, TopicState::Unknown), None);
        assert_eq!(look(&mut watch, TopicState::Missing), Some(TopicChange::Missing));
        assert_eq!(look(&mut watch, TopicState::Missing), None, "said once");
    }

    #[test]
    fn growth_counts_once_every_partition_has_a_leader_and_shrinking_at_once() {
        let mut watch = TopicWatch::default();
        assert_eq!(look(&mut watch, TopicState::Present(vec![1, 2, -1])), None);
        assert_eq!(look(&mut watch, TopicState::Present(vec![1, 2, 3])), Some(TopicChange::Grown));
        assert_eq!(
            look(&mut watch, TopicState::Present(vec![1])),
            Some(TopicChange::Shrunk { partitions: 1 })
        );
    }

    #[test]
    fn another_leader_and_an_outage_call_for_an_inspection() {
        let mut watch = TopicWatch::default();
        assert_eq!(look(&mut watch, TopicState::Present(vec![1, 2])), None);
        assert_eq!(look(&mut watch, TopicState::Present(vec![1, 3])), Some(TopicChange::LeaderChanged));
        assert_eq!(look(&mut watch, TopicState::Present(vec![1, 3])), None);
        watch.on_unavailable();
        assert_eq!(look(&mut watch, TopicState::Present(vec![1, 3])), Some(TopicChange::LeaderChanged));
        assert_eq!(look(&mut watch, TopicState::Present(vec![1, 3])), None);
    }
}
