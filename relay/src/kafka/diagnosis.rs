//! Why a partition acknowledges none of the records sent to it.

use rdkafka::consumer::Consumer;
use rdkafka::metadata::Metadata;

use crate::kafka::producers::ProducerHandles;
use crate::kafka::scanner::{PartitionScanner, QueryError, REQUEST};
use crate::topics::partitions::PartitionNumber;

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Diagnosis {
    /// A description for `/status`, if the cause is known.
    pub what: Option<String>,
    /// The partition is healthy, but its producer knows no broker that it can query.
    pub producer_is_lost: bool,
}

impl PartitionScanner {
    /// Diagnoses a partition. `producers` are those that send to it.
    pub fn diagnose(
        &self,
        topic: &str,
        partition: PartitionNumber,
        min_in_sync: Option<usize>,
        producers: &ProducerHandles,
    ) -> Diagnosis {
        let Ok(metadata) = self.consumer.fetch_metadata(Some(topic), REQUEST) else {
            return Diagnosis::default();
        };
        let Some(state) = PartitionState::of(&metadata, topic, partition) else {
            return Diagnosis::default();
        };
        if let Some(what) = state.obstacle(min_in_sync) {
            return Diagnosis { what: Some(what), producer_is_lost: false };
        }
        let (responds, producer_is_lost) = match self.watermarks(topic, partition) {
            Ok(_) => ("responds", producers.has_no_broker()),
            Err(QueryError::NoResponse(_)) => ("does not respond", false),
            // The query of the session reports the refusal.
            Err(_) => return Diagnosis::default(),
        };
        let what = Some(format!("its leader, {}, {responds}", state.leader_name));
        Diagnosis { what, producer_is_lost }
    }
}

#[derive(Debug)]
struct PartitionState {
    leader: i32,
    leader_name: String,
    replicas: Vec<i32>,
    in_sync: usize,
}

impl PartitionState {
    fn of(metadata: &Metadata, topic: &str, number: PartitionNumber) -> Option<PartitionState> {
        let topic = metadata.topics().iter().find(|found| found.name() == topic)?;
        let partition = topic.partitions().iter().find(|found| found.id() == number.0)?;
        let leader = partition.leader();
        let broker = metadata.brokers().iter().find(|broker| broker.id() == leader);
        let leader_name = broker.map_or_else(
            || format!("broker {leader}"),
            |broker| format!("broker {leader} at {}:{}", broker.host(), broker.port()),
        );
        let (replicas, in_sync) = (partition.replicas().to_vec(), partition.isr().len());
        Some(PartitionState { leader, leader_name, replicas, in_sync })
    }

    /// What prevents acknowledgements to any producer.
    fn obstacle(&self, min_in_sync: Option<usize>) -> Option<String> {
        let replicas = self.replicas.len();
        if self.leader < 0 {
            let brokers: Vec<String> = self.replicas.iter().map(ToString::to_string).collect();
            return Some(format!("it has no leader; its replicas are on broker {}", brokers.join(", ")));
        }
        // Never more than the partition has: see `counts_as_acknowledged`.
        let needed = min_in_sync.filter(|needed| self.in_sync < (*needed).min(replicas))?;
        Some(format!(
            "{} of its {replicas} replicas in sync, but min.insync.replicas is {needed}",
            self.in_sync
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state(leader: i32, in_sync: usize) -> PartitionState {
        PartitionState { leader, leader_name: "broker 2".into(), replicas: vec![2, 3], in_sync }
    }

    #[test]
    fn a_missing_leader_and_too_few_replicas_prevent_acknowledgements() {
        let obstacle = |leader, in_sync, needed| state(leader, in_sync).obstacle(needed);
        assert_eq!(obstacle(-1, 2, None).unwrap(), "it has no leader; its replicas are on broker 2, 3");
        let few = "1 of its 2 replicas in sync, but min.insync.replicas is 2";
        assert_eq!(obstacle(2, 1, Some(2)).unwrap(), few);
        assert_eq!(obstacle(2, 2, Some(2)), None);
        assert_eq!(obstacle(2, 2, Some(3)), None, "there are no more replicas");
        assert_eq!(obstacle(2, 1, None), None, "min.insync.replicas is unknown");
    }
}
