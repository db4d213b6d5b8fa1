//! Whether Kafka still is what is remembered of it: the records that were acknowledged, the topics, their settings.

use std::collections::BTreeMap;
use std::sync::Once;
use std::time::{Duration, Instant};

use outbox::Position;
use rdkafka::admin::{AdminClient, AdminOptions, ResourceSpecifier};
use rdkafka::client::DefaultClientContext;
use rdkafka::consumer::Consumer;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{BorrowedMessage, Message};
use rdkafka::metadata::MetadataTopic;

use crate::error::ErrorKind;
use crate::kafka::error::reason_of_kafka;
use crate::kafka::scanner::{
    FairShare, POLL, PartitionScanner, QueryError, REQUEST, is_of, is_out_of_range, is_refusal, position_of,
};
use crate::topics::partitions::ScanStart;
use crate::topics::settings::TopicSettings;
use crate::topics::watch::TopicState;

/// So many topics are asked for by their names; more, in one request for all there are.
const FEW_TOPICS: usize = 16;

static SETTINGS_UNREADABLE: Once = Once::new();
static FEW_REPLICAS: Once = Once::new();

impl PartitionScanner {
    /// What lies at an offset; `None` when nothing came for a while and others wait.
    pub fn record_at(
        &self,
        topic: &str,
        partition: i32,
        offset: i64,
        turn: &FairShare,
    ) -> Result<Option<RecordAt>, QueryError> {
        self.reading_from(topic, partition, offset, || self.read_record(topic, partition, offset, turn))
    }

    fn read_record(
        &self,
        topic: &str,
        partition: i32,
        offset: i64,
        turn: &FairShare,
    ) -> Result<Option<RecordAt>, QueryError> {
        let asked = Instant::now();
        while !self.is_cancelled() {
            match self.consumer.poll(POLL) {
                None if turn.is_over(self, asked, asked) => return Ok(None),
                None => {}
                // Left over from the partition that was read before.
                Some(Ok(message)) if !is_of(&message, topic, partition) => {}
                Some(Ok(message)) if message.offset() == offset => {
                    return Ok(Some(self.inspect_record(&message)));
                }
                Some(Err(KafkaError::PartitionEOF(other))) if other != partition => {}
                Some(Ok(_) | Err(KafkaError::PartitionEOF(_))) => return Ok(Some(RecordAt::Nothing)),
                Some(Err(error)) if is_out_of_range(&error) => return Ok(Some(RecordAt::Removed)),
                Some(Err(error)) if is_refusal(&error) => return Err(QueryError::Refused(error)),
                Some(Err(error)) => tracing::debug!(%error, "inspecting Kafka"),
            }
        }
        Err(QueryError::Cancelled)
    }

    fn inspect_record(&self, message: &BorrowedMessage<'_>) -> RecordAt {
        let Some(position) = position_of(message) else { return RecordAt::Foreign };
        let is_ours = self.position(message).is_some();
        RecordAt::Event { position, is_ours, of_this_run: self.is_of_this_run(message) }
    }

    /// Refuses a record that this server cannot have written: it lies on its timeline, beyond its end.
    pub fn check_not_ahead(
        &self,
        topic: &str,
        partition: i32,
        offset: i64,
        found: RecordAt,
    ) -> Result<(), QueryError> {
        match found {
            RecordAt::Event { position, is_ours: true, of_this_run }
                if self.lineage.is_on_line(position) && !self.lineage.holds(position) =>
            {
                let by_another_server = of_this_run;
                Err(QueryError::Ahead { topic: topic.into(), partition, offset, position, by_another_server })
            }
            _ => Ok(()),
        }
    }

    /// What the metadata says of topics; `None` while Kafka does not answer.
    pub fn topic_states(&self, topics: &[String]) -> Option<BTreeMap<String, TopicState>> {
        if topics.len() <= FEW_TOPICS {
            return topics.iter().map(|name| Some((name.clone(), self.topic_state(name)?))).collect();
        }
        let metadata = self.consumer.fetch_metadata(None, REQUEST).ok()?;
        let by_name: BTreeMap<&str, _> =
            metadata.topics().iter().map(|topic| (topic.name(), topic)).collect();
        // One that is not shown is asked for by its name: it may only not be the relay's to see.
        topics
            .iter()
            .map(|name| match by_name.get(name.as_str()) {
                Some(topic) => Some((name.clone(), state_of(topic))),
                None => Some((name.clone(), self.topic_state(name)?)),
            })
            .collect()
    }

    fn topic_state(&self, name: &str) -> Option<TopicState> {
        let metadata = self.consumer.fetch_metadata(Some(name), REQUEST).ok()?;
        Some(
            metadata.topics().iter().find(|topic| topic.name() == name).map_or(TopicState::Missing, state_of),
        )
    }

    /// The replicas of a partition. Brokers before 4.0 show records that fewer replicas have than an acknowledgement needs.
    /// While that is so nothing could be delivered either, so to wait for it costs nothing, on any broker.
    pub fn replicas(&self, topic: &str, partition: i32) -> Result<Option<Replicas>, QueryError> {
        self.ask(|| {
            let metadata = self.consumer.fetch_metadata(Some(topic), REQUEST)?;
            let mut found = metadata.topics().iter().flat_map(|topic| topic.partitions());
            let found = found.find(|found| found.id() == partition);
            Ok(found.map(|found| Replicas { all: found.replicas().len(), in_sync: found.isr().len() }))
        })
    }

    /// The settings of a topic; `None` where they may not be read.
    pub async fn describe(&self, topic: &str) -> Option<TopicSettings> {
        match read_settings(&self.admin, topic, REQUEST).await {
            Ok(settings) => {
                if settings.min_in_sync_replicas.is_some_and(|replicas| replicas < 2) {
                    FEW_REPLICAS.call_once(|| {
                        tracing::warn!(
                            topic,
                            "min.insync.replicas is 1: a record that is acknowledged can be lost with one broker"
                        );
                    });
                }
                Some(settings)
            }
            Err(error) => {
                SETTINGS_UNREADABLE.call_once(|| {
                    tracing::info!(
                        topic,
                        %error,
                        "the topic's settings cannot be read (DescribeConfigs); sink.maxMessageBytes is taken as its limit"
                    );
                });
                None
            }
        }
    }
}

fn state_of(topic: &MetadataTopic) -> TopicState {
    match topic.error().map(RDKafkaErrorCode::from) {
        Some(code) if reason_of_kafka(code) == ErrorKind::TopicMissing => TopicState::Missing,
        Some(_) => TopicState::Unknown,
        None => TopicState::Present(topic.partitions().iter().map(|partition| partition.leader()).collect()),
    }
}

/// Reads the settings of a topic from Kafka, which may take as long as `within`.
pub async fn read_settings(
    admin: &AdminClient<DefaultClientContext>,
    topic: &str,
    within: Duration,
) -> Result<TopicSettings, KafkaError> {
    let options = AdminOptions::new().request_timeout(Some(within));
    let answer = admin.describe_configs(&[ResourceSpecifier::Topic(topic)], &options).await?;
    let resource = answer.into_iter().next().ok_or(KafkaError::Canceled)?;
    let resource = resource.map_err(KafkaError::AdminOp)?;
    let entries = resource.entry_map();
    Ok(TopicSettings::read(|name| entries.get(name).and_then(|entry| entry.value.as_deref())))
}

/// What was found at an offset.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RecordAt {
    /// A record with a position.
    Event {
        /// Its position.
        position: Position,
        /// It has our `ce_source`.
        is_ours: bool,
        /// It was written while the database server was running.
        of_this_run: bool,
    },
    /// Another record.
    Foreign,
    /// No record, though there are some behind it.
    Nothing,
    /// It was removed while it was asked for.
    Removed,
}

/// Whether a partition from `low` to `high`, with `found` where the evidence should be, is the one that is
/// remembered: where a search of it starts, or what is wrong. `compacted` is the topic's policy, where it is known.
pub(super) fn is_same_partition(
    topic: &str,
    floor: &ScanStart,
    low: i64,
    high: i64,
    found: Option<RecordAt>,
    compacted: Option<bool>,
) -> Result<i64, String> {
    let Some(last) = floor.last else {
        // Nothing that is confirmed is in it. If it was made anew, it is searched as a whole.
        return Ok(if high < floor.search { low } else { floor.search });
    };
    let offset = last.offset;
    if high < floor.search || high <= offset {
        return Err(format!("it ends at offset {high}, but {offset} was acknowledged"));
    }
    match found {
        // Retention took it, or the partition would not begin behind it.
        None if low > offset => Ok(floor.search),
        Some(RecordAt::Removed) => Ok(floor.search),
        // Whatever its source is called now: `source.eventSource` may have changed.
        Some(RecordAt::Event { position, .. }) if last.is_at(position) => Ok(floor.search),
        // Compaction keeps offsets, and takes a record of which a later one of its key is there.
        Some(RecordAt::Nothing) if compacted == Some(true) => Ok(floor.search),
        Some(RecordAt::Nothing) if compacted.is_none() => {
            tracing::warn!(
                topic,
                offset,
                "the last acknowledged record is gone; the topic's settings cannot be read (DescribeConfigs), and compaction \
                 removes records in this way, so delivery goes on"
            );
            Ok(floor.search)
        }
        Some(RecordAt::Event { position, .. }) => {
            Err(format!("offset {offset} holds the event at {position} now"))
        }
        Some(RecordAt::Foreign) => Err(format!("offset {offset} holds somebody else's record now")),
        Some(RecordAt::Nothing) | None => Err(format!("the record at offset {offset} is gone")),
    }
}

/// Replicas of a partition.
#[derive(Clone, Copy, Debug)]
pub struct Replicas {
    /// All of them.
    pub all: usize,
    /// Those that have everything.
    pub in_sync: usize,
}

/// Whether a record that a search sees is as good as acknowledged: as many replicas are in sync as an
/// acknowledgement needs. That is never more than there are (KIP-966: brokers from 4.0 on accept records for a topic
/// with fewer replicas than `min.insync.replicas`; older ones refuse them, whatever is done here). Where either number
/// is not known, the broker's own rule has to do.
pub(super) fn counts_as_acknowledged(replicas: Option<Replicas>, min_in_sync: Option<usize>) -> bool {
    replicas.zip(min_in_sync).is_none_or(|(replicas, needed)| replicas.in_sync >= needed.min(replicas.all))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::topics::partitions::LastRecord;

    const LAST: LastRecord = LastRecord { offset: 41, timeline: 1, commit: 100, index: Some(3) };
    const FLOOR: ScanStart = ScanStart { search: 42, last: Some(LAST) };

    fn event(commit_lsn: u64, index: u64) -> Option<RecordAt> {
        let position = Position { timeline: 1, commit_lsn, index };
        Some(RecordAt::Event { position, is_ours: true, of_this_run: true })
    }

    fn judged(low: i64, high: i64, found: Option<RecordAt>, compacted: Option<bool>) -> Result<i64, String> {
        is_same_partition("t", &FLOOR, low, high, found, compacted)
    }

    #[test]
    fn the_record_that_is_remembered_has_to_be_where_it_was() {
        assert_eq!(judged(0, 60, event(100, 3), Some(false)), Ok(42));
        let others = [event(99, 3), event(100, 2), Some(RecordAt::Foreign), Some(RecordAt::Nothing)];
        for (high, found) in others.map(|found| (60, found)).into_iter().chain([(41, None), (0, None)]) {
            assert!(judged(0, high, found, Some(false)).is_err(), "{high} {found:?}");
        }
    }

    #[test]
    fn evidence_of_a_version_that_stored_no_index_is_compared_without_it() {
        let floor = ScanStart { search: 42, last: Some(LastRecord { index: None, ..LAST }) };
        assert_eq!(is_same_partition("t", &floor, 0, 60, event(100, 7), Some(false)), Ok(42));
    }

    #[test]
    fn retention_and_compaction_explain_what_is_not_there() {
        assert_eq!(judged(42, 42, None, Some(false)), Ok(42));
        assert_eq!(judged(50, 60, None, Some(false)), Ok(42));
        assert_eq!(judged(0, 60, Some(RecordAt::Removed), Some(false)), Ok(42));
        assert_eq!(judged(0, 60, Some(RecordAt::Nothing), Some(true)), Ok(42));
        assert!(judged(0, 60, Some(RecordAt::Foreign), Some(true)).is_err());
        assert!(judged(10, 10, None, Some(false)).is_err(), "recreated and emptied");
    }

    #[test]
    fn an_unknown_policy_proves_no_loss_where_compaction_explains_it() {
        assert_eq!(judged(0, 60, Some(RecordAt::Nothing), None), Ok(42));
        for found in [Some(RecordAt::Foreign), event(99, 3)] {
            assert!(judged(0, 60, found, None).is_err(), "{found:?}");
        }
        assert!(judged(0, 41, None, None).is_err());
    }

    #[test]
    fn a_topic_that_got_nothing_of_ours_can_have_lost_nothing() {
        let floor = ScanStart { search: 42, last: None };
        assert_eq!(is_same_partition("t", &floor, 0, 50, None, Some(false)), Ok(42));
        assert_eq!(is_same_partition("t", &floor, 0, 5, None, Some(false)), Ok(0));
    }

    #[test]
    fn a_scanned_record_counts_when_enough_replicas_are_in_sync() {
        let of_three = |in_sync| Some(Replicas { all: 3, in_sync });
        assert!(counts_as_acknowledged(of_three(2), Some(2)));
        assert!(counts_as_acknowledged(of_three(3), Some(2)));
        assert!(!counts_as_acknowledged(of_three(1), Some(2)));
        assert!(counts_as_acknowledged(of_three(1), None), "not known");
        let only = Some(Replicas { all: 1, in_sync: 1 });
        assert!(counts_as_acknowledged(only, Some(2)), "there are no more");
    }
}
