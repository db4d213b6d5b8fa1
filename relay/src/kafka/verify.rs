//! Verifies that Kafka still matches the checkpoint: the acknowledged records, the topics, and their settings.

use std::collections::BTreeMap;
use std::sync::Once;
use std::time::{Duration, Instant};

use futures::executor::block_on;
use outbox::Position;
use rdkafka::admin::{AdminClient, AdminOptions, ResourceSpecifier};
use rdkafka::client::DefaultClientContext;
use rdkafka::consumer::Consumer;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::Message;
use rdkafka::metadata::{Metadata, MetadataTopic};

use crate::error::ErrorKind;
use crate::kafka::error_codes::reason_of_kafka;
use crate::kafka::own_records::{OwnRecords, position_of};
use crate::kafka::partition_reader::{self, Polled};
use crate::kafka::scanner::{FairShare, PartitionScanner, QueryError, REQUEST};
use crate::progress::offset::{Offset, OffsetRange};
use crate::topics::partitions::{PartitionNumber, ScanStart};
use crate::topics::settings::TopicSettings;
use crate::topics::watch::TopicState;

/// Up to this many topics are queried by name. For more, one request queries all topics of the cluster.
const FEW_TOPICS: usize = 16;

static SETTINGS_REFUSED: Once = Once::new();
static FEW_REPLICAS: Once = Once::new();

impl PartitionScanner {
    /// What is at an offset; `None` if nothing arrived for a while and other scans wait.
    pub fn record_at(
        &self,
        topic: &str,
        partition: PartitionNumber,
        offset: Offset,
        share: &FairShare,
    ) -> Result<Option<RecordAt>, QueryError> {
        self.reading_from(topic, partition, offset, || self.read_record(topic, partition, offset, share))
    }

    fn read_record(
        &self,
        topic: &str,
        partition: PartitionNumber,
        offset: Offset,
        share: &FairShare,
    ) -> Result<Option<RecordAt>, QueryError> {
        let began = Instant::now();
        while !self.is_cancelled() {
            match partition_reader::poll(&self.consumer, topic, partition) {
                Polled::Nothing if share.must_yield(self, began, began) => return Ok(None),
                Polled::Nothing => {}
                Polled::Record(message) if message.offset() == offset.0 => {
                    return Ok(Some(RecordAt::of(&message, &self.own)));
                }
                Polled::Record(_) | Polled::End => return Ok(Some(RecordAt::Nothing)),
                Polled::OutOfRange => return Ok(Some(RecordAt::Removed)),
                Polled::Refused(error) => return Err(QueryError::Refused(error)),
            }
        }
        Err(QueryError::Cancelled)
    }

    /// Fails if the record cannot come from this server: it is on the server's timeline, but beyond the end of its WAL.
    pub fn check_not_ahead(
        &self,
        topic: &str,
        partition: PartitionNumber,
        offset: Offset,
        found: RecordAt,
    ) -> Result<(), QueryError> {
        match found {
            RecordAt::Event { position, is_own: true, after_server_start }
                if self.own.lineage.is_on_line(position) && !self.own.lineage.holds(position) =>
            {
                let by_another_server = after_server_start;
                Err(QueryError::Ahead { topic: topic.into(), partition, offset, position, by_another_server })
            }
            _ => Ok(()),
        }
    }

    /// The states of topics from the metadata; `None` if Kafka does not respond.
    pub fn topic_states(&self, topics: &[String]) -> Option<BTreeMap<String, TopicState>> {
        if topics.len() <= FEW_TOPICS {
            return topics.iter().map(|name| Some((name.clone(), self.topic_state(name)?))).collect();
        }
        let metadata = self.consumer.fetch_metadata(None, REQUEST).ok()?;
        let by_name: BTreeMap<&str, _> =
            metadata.topics().iter().map(|topic| (topic.name(), topic)).collect();
        // A topic that is not listed is queried by name: the relay may only lack the permission to list it.
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

    /// The replicas of a partition. Brokers before 4.0 return records that fewer replicas have than an acknowledgement
    /// needs. In that state nothing could be delivered either, so waiting for its end costs nothing, with brokers of
    /// any version.
    pub fn replicas(&self, topic: &str, partition: PartitionNumber) -> Result<Replicas, QueryError> {
        self.request(|| {
            let metadata = self.consumer.fetch_metadata(Some(topic), REQUEST)?;
            replicas_in(&metadata, topic, partition)
        })
    }

    /// The settings of a topic; `None` if the relay may not read them.
    pub fn describe(&self, topic: &str) -> Result<Option<TopicSettings>, QueryError> {
        let settings = match block_on(read_settings(&self.admin, topic, REQUEST)) {
            Ok(settings) => settings,
            Err(SettingsError::Refused(error)) => {
                SETTINGS_REFUSED.call_once(|| {
                    tracing::info!(
                        topic,
                        %error,
                        "the relay cannot read the topic's settings and uses sink.maxMessageBytes as its limit; allow \
                         the relay DescribeConfigs on its topics"
                    );
                });
                return Ok(None);
            }
            Err(SettingsError::NoResponse(error)) => return self.request(|| Err(error)),
        };
        if settings.min_in_sync_replicas.is_some_and(|replicas| replicas < 2) {
            FEW_REPLICAS.call_once(|| {
                tracing::warn!(
                    topic,
                    "min.insync.replicas of the topic is 1, so the failure of one broker can lose acknowledged \
                     records; set it to 2"
                );
            });
        }
        Ok(Some(settings))
    }
}

/// A broker that does not know the partition (yet) decides nothing: the caller asks again.
fn replicas_in(metadata: &Metadata, topic: &str, partition: PartitionNumber) -> Result<Replicas, KafkaError> {
    let topic = metadata.topics().iter().find(|found| found.name() == topic);
    if let Some(code) = topic.and_then(MetadataTopic::error) {
        return Err(KafkaError::MetadataFetch(code.into()));
    }
    let mut partitions = topic.into_iter().flat_map(MetadataTopic::partitions);
    let found = partitions.find(|found| found.id() == partition.0);
    let found = found.ok_or(KafkaError::MetadataFetch(RDKafkaErrorCode::UnknownPartition))?;
    Ok(Replicas { all: found.replicas().len(), in_sync: found.isr().len() })
}

fn state_of(topic: &MetadataTopic) -> TopicState {
    match topic.error().map(RDKafkaErrorCode::from) {
        Some(code) if reason_of_kafka(code) == ErrorKind::TopicMissing => TopicState::Missing,
        Some(_) => TopicState::Unknown,
        None => TopicState::Present(topic.partitions().iter().map(|partition| partition.leader()).collect()),
    }
}

/// Why the settings of a topic were not read.
#[derive(Clone, Debug, thiserror::Error)]
pub enum SettingsError {
    /// The relay lacks the permission, or the broker does not support the request. It would be refused again.
    #[error("{0}")]
    Refused(KafkaError),
    /// Anything else. It says nothing about the permission, and nothing about the settings.
    #[error("{0}")]
    NoResponse(KafkaError),
}

impl From<KafkaError> for SettingsError {
    fn from(error: KafkaError) -> Self {
        match error {
            KafkaError::AdminOp(
                RDKafkaErrorCode::TopicAuthorizationFailed
                | RDKafkaErrorCode::ClusterAuthorizationFailed
                | RDKafkaErrorCode::UnsupportedVersion
                | RDKafkaErrorCode::UnsupportedFeature,
            ) => SettingsError::Refused(error),
            _ => SettingsError::NoResponse(error),
        }
    }
}

/// Reads the settings of a topic from Kafka, with the timeout `within`.
pub async fn read_settings(
    admin: &AdminClient<DefaultClientContext>,
    topic: &str,
    within: Duration,
) -> Result<TopicSettings, SettingsError> {
    let options = AdminOptions::new().request_timeout(Some(within));
    let response = admin.describe_configs(&[ResourceSpecifier::Topic(topic)], &options).await?;
    let resource = response.into_iter().next().ok_or(KafkaError::Canceled)?;
    let resource = resource.map_err(KafkaError::AdminOp)?;
    let entries = resource.entry_map();
    Ok(TopicSettings::read(|name| entries.get(name).and_then(|entry| entry.value.as_deref())))
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RecordAt {
    Event {
        position: Position,
        /// The record has this outbox's `ce_source`.
        is_own: bool,
        /// The record was written after the start of the database server.
        after_server_start: bool,
    },
    /// A record without a position.
    Foreign,
    /// No record, although there are later ones.
    Nothing,
    /// The record was removed during the query.
    Removed,
}

impl RecordAt {
    /// What a record is to the outbox of `own`.
    pub(crate) fn of(message: &impl Message, own: &OwnRecords) -> RecordAt {
        let Some(position) = position_of(message) else { return RecordAt::Foreign };
        let is_own = own.position(message).is_some();
        RecordAt::Event { position, is_own, after_server_start: own.is_after_server_start(message) }
    }
}

/// Checks that a partition with the offsets `present` is the one that the checkpoint describes. `found` is what is at the
/// offset of its last record. Returns the offset at which a scan starts, or what is wrong. `compacted` is the topic's
/// policy, if known.
pub(crate) fn check_same_partition(
    topic: &str,
    start: &ScanStart,
    present: OffsetRange,
    found: Option<RecordAt>,
    compacted: Option<bool>,
) -> Result<Offset, String> {
    let OffsetRange { from: low, until: high } = present;
    let Some(last) = start.last else {
        // It has no confirmed record of this relay. If the topic was recreated, the whole partition is scanned.
        return Ok(if high < start.offset { low } else { start.offset });
    };
    let offset = last.offset;
    if high < start.offset || high <= offset {
        return Err(format!("it ends at offset {high}, but Kafka had acknowledged offset {offset}"));
    }
    match found {
        // Retention removed the record, because the partition begins after it.
        None if low > offset => Ok(start.offset),
        Some(RecordAt::Removed) => Ok(start.offset),
        // Its `ce_source` does not matter: `source.eventSource` may have changed.
        Some(RecordAt::Event { position, .. }) if last.is_at(position) => Ok(start.offset),
        // Compaction keeps offsets, and removes a record once there is a later one with its key.
        Some(RecordAt::Nothing) if compacted == Some(true) => Ok(start.offset),
        Some(RecordAt::Nothing) if compacted.is_none() => {
            tracing::warn!(
                topic,
                %offset,
                "the last acknowledged record is gone. Compaction may have removed it; the relay cannot read the \
                 topic's settings (DescribeConfigs) to be sure. Delivery continues"
            );
            Ok(start.offset)
        }
        Some(RecordAt::Event { position, .. }) => {
            Err(format!("offset {offset} now has another event, the one at {position}"))
        }
        Some(RecordAt::Foreign) => Err(format!("offset {offset} now has a record of another producer")),
        Some(RecordAt::Nothing) | None => Err(format!("the record at offset {offset} is gone")),
    }
}

#[derive(Clone, Copy, Debug)]
pub struct Replicas {
    pub all: usize,
    pub in_sync: usize,
}

/// Whether a record that a scan finds counts as acknowledged: as many replicas are in sync as an acknowledgement needs,
/// but never more than the partition has. (KIP-966: brokers from 4.0 on accept records for a topic with fewer replicas
/// than `min.insync.replicas`. Older brokers always refuse them.) If the setting is unknown, the broker's own rule
/// applies.
pub(super) fn counts_as_acknowledged(replicas: Replicas, min_in_sync: Option<usize>) -> bool {
    min_in_sync.is_none_or(|needed| replicas.in_sync >= needed.min(replicas.all))
}

#[cfg(test)]
mod tests {
    use pg_replication::{EndLsn, TimelineHistory};

    use super::*;
    use crate::config::Sink;
    use crate::progress::lineage::Lineage;
    use crate::topics::kafka_time::KafkaTime;
    use crate::topics::partitions::LastRecord;

    const LAST: LastRecord = LastRecord { offset: Offset(41), timeline: 1, commit: 100, index: Some(3) };
    const START: ScanStart = ScanStart { offset: Offset(42), last: Some(LAST) };

    fn event(commit_lsn: u64, index: u64) -> Option<RecordAt> {
        let position = Position { timeline: 1, commit_lsn, index };
        Some(RecordAt::Event { position, is_own: true, after_server_start: true })
    }

    fn present(from: i64, until: i64) -> OffsetRange {
        OffsetRange { from: Offset(from), until: Offset(until) }
    }

    fn check(low: i64, high: i64, found: Option<RecordAt>, compacted: Option<bool>) -> Result<i64, String> {
        check_same_partition("t", &START, present(low, high), found, compacted).map(|from| from.0)
    }

    #[test]
    fn the_last_acknowledged_record_must_be_at_its_offset() {
        assert_eq!(check(0, 60, event(100, 3), Some(false)), Ok(42));
        let others = [event(99, 3), event(100, 2), Some(RecordAt::Foreign), Some(RecordAt::Nothing)];
        for (high, found) in others.map(|found| (60, found)).into_iter().chain([(41, None), (0, None)]) {
            assert!(check(0, high, found, Some(false)).is_err(), "{high} {found:?}");
        }
    }

    #[test]
    fn a_last_record_stored_without_an_index_is_compared_without_it() {
        let start = ScanStart { offset: Offset(42), last: Some(LastRecord { index: None, ..LAST }) };
        assert_eq!(
            check_same_partition("t", &start, present(0, 60), event(100, 7), Some(false)),
            Ok(Offset(42))
        );
    }

    #[test]
    fn retention_and_compaction_explain_a_missing_record() {
        assert_eq!(check(42, 42, None, Some(false)), Ok(42));
        assert_eq!(check(50, 60, None, Some(false)), Ok(42));
        assert_eq!(check(0, 60, Some(RecordAt::Removed), Some(false)), Ok(42));
        assert_eq!(check(0, 60, Some(RecordAt::Nothing), Some(true)), Ok(42));
        assert!(check(0, 60, Some(RecordAt::Foreign), Some(true)).is_err());
        assert!(check(10, 10, None, Some(false)).is_err(), "recreated and emptied");
    }

    #[test]
    fn with_an_unknown_policy_compaction_may_explain_a_missing_record() {
        assert_eq!(check(0, 60, Some(RecordAt::Nothing), None), Ok(42));
        for found in [Some(RecordAt::Foreign), event(99, 3)] {
            assert!(check(0, 60, found, None).is_err(), "{found:?}");
        }
        assert!(check(0, 41, None, None).is_err());
    }

    #[test]
    fn a_topic_without_acknowledged_records_cannot_have_lost_any() {
        let start = ScanStart { offset: Offset(42), last: None };
        assert_eq!(check_same_partition("t", &start, present(0, 50), None, Some(false)), Ok(Offset(42)));
        assert_eq!(check_same_partition("t", &start, present(0, 5), None, Some(false)), Ok(Offset(0)));
    }

    #[test]
    fn a_scanned_record_counts_when_enough_replicas_are_in_sync() {
        let of_three = |in_sync| Replicas { all: 3, in_sync };
        assert!(counts_as_acknowledged(of_three(2), Some(2)));
        assert!(counts_as_acknowledged(of_three(3), Some(2)));
        assert!(!counts_as_acknowledged(of_three(1), Some(2)));
        assert!(counts_as_acknowledged(of_three(1), None), "min.insync.replicas is unknown");
        let only = Replicas { all: 1, in_sync: 1 };
        assert!(counts_as_acknowledged(only, Some(2)), "there are no more replicas");
    }

    #[test]
    fn only_a_refusal_means_that_the_relay_may_not_read_the_settings() {
        use RDKafkaErrorCode as Code;
        let is_refused = |error: KafkaError| matches!(error.into(), SettingsError::Refused(_));
        for code in [
            Code::TopicAuthorizationFailed,
            Code::ClusterAuthorizationFailed,
            Code::UnsupportedVersion,
            Code::UnsupportedFeature,
        ] {
            assert!(is_refused(KafkaError::AdminOp(code)), "{code:?}");
        }
        for code in [
            Code::OperationTimedOut,
            Code::RequestTimedOut,
            Code::BrokerTransportFailure,
            Code::UnknownTopicOrPartition,
            Code::NotController,
            Code::SaslAuthenticationFailed,
            Code::Unknown,
        ] {
            assert!(!is_refused(KafkaError::AdminOp(code)), "{code:?}");
        }
        assert!(!is_refused(KafkaError::Canceled));
    }

    #[test]
    fn a_silent_broker_has_not_refused_the_settings() {
        // It accepts connections and never responds.
        let broker = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let bootstrap = broker.local_addr().unwrap().to_string();
        let sink: Sink = serde_json::from_value(serde_json::json!({"bootstrapServers": bootstrap})).unwrap();
        let lineage = Lineage::new(TimelineHistory::parse(1, "").unwrap(), EndLsn::ZERO);
        let own = OwnRecords { source: "/shop".into(), lineage, server_started: KafkaTime(0) };
        let read = PartitionScanner::new(&sink, own).unwrap().describe("t");
        assert!(matches!(read, Err(QueryError::NoResponse(_))), "{read:?}");
    }
}
