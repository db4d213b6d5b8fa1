//! Whether Kafka still is what is remembered of it: the records that were acknowledged, the topics, their settings.

use std::collections::BTreeMap;
use std::sync::Once;
use std::time::{Duration, Instant};

use outbox::Position;
use rdkafka::admin::{AdminClient, AdminOptions, ResourceSpecifier};
use rdkafka::client::DefaultClientContext;
use rdkafka::consumer::Consumer;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::Message;
use rdkafka::metadata::MetadataTopic;

use crate::kafka::error::reason_of_kafka;
use crate::kafka::search::{POLL, REQUEST, SearchError, Searcher, Turn, is_of, is_refusal};
use crate::topics::partitions::{Evidence, Floor};
use crate::topics::settings::TopicSettings;
use crate::topics::watch::Seen;
use crate::trouble::Reason;

/// A partition that seems too short is looked at so often, this far apart: a leader that was just elected may not yet
/// know how far its followers are.
const LOOKS: u32 = 3;
const BETWEEN_LOOKS: Duration = Duration::from_millis(700);

/// So many topics are asked for by their names; more, in one request for all there are.
const FEW_TOPICS: usize = 16;

static SETTINGS_UNREADABLE: Once = Once::new();
static FEW_REPLICAS: Once = Once::new();

impl Searcher {
    /// Compares a partition with what is remembered of it; answers where a search of it starts.
    pub fn inspect(
        &self,
        topic: &str,
        partition: i32,
        floor: &Floor,
        compacted: bool,
    ) -> Result<i64, SearchError> {
        let reached = floor.last.map_or(0, |last| last.offset + 1).max(floor.search);
        let (mut low, mut high) = self.watermarks(topic, partition)?;
        for _ in 1..LOOKS {
            if high >= reached {
                break;
            }
            self.sleep(BETWEEN_LOOKS)?;
            (low, high) = self.watermarks(topic, partition)?;
        }
        let found = match floor.last {
            Some(last) if low <= last.offset && last.offset < high => {
                let mut turn = Turn::default();
                loop {
                    let look = || self.record_at(topic, partition, last.offset, &turn);
                    match self.reading_from(topic, partition, last.offset, look)? {
                        Some(found) => break Some(found),
                        None => turn.pass(self)?,
                    }
                }
            }
            _ => None,
        };
        judge(floor, low, high, found, compacted).map_err(|what| SearchError::Lost {
            topic: topic.into(),
            partition,
            what,
        })
    }

    /// What lies at an offset, where the consumer stands; `None` when nothing came for a while and others wait.
    fn record_at(
        &self,
        topic: &str,
        partition: i32,
        offset: i64,
        turn: &Turn,
    ) -> Result<Option<Found>, SearchError> {
        let asked = Instant::now();
        while !self.is_cancelled() {
            match self.consumer.poll(POLL) {
                None if turn.is_over(self, asked) => return Ok(None),
                None => {}
                // Left over from the partition that was read before.
                Some(Ok(message)) if !is_of(&message, topic, partition) => {}
                Some(Ok(message)) if message.offset() == offset => {
                    return Ok(Some(self.position(&message).map_or(Found::Foreign, Found::Ours)));
                }
                Some(Err(KafkaError::PartitionEOF(other))) if other != partition => {}
                Some(Ok(_) | Err(KafkaError::PartitionEOF(_))) => return Ok(Some(Found::Nothing)),
                Some(Err(error)) if is_refusal(&error) => return Err(SearchError::Refused(error)),
                Some(Err(error)) => tracing::debug!(%error, "inspecting Kafka"),
            }
        }
        Err(SearchError::Cancelled)
    }

    /// What the metadata says of topics; `None` while Kafka does not answer.
    pub fn look(&self, topics: &[String]) -> Option<BTreeMap<String, Seen>> {
        if topics.len() <= FEW_TOPICS {
            return topics.iter().map(|name| Some((name.clone(), self.look_at(name)?))).collect();
        }
        let metadata = self.consumer.fetch_metadata(None, REQUEST).ok()?;
        let by_name: BTreeMap<&str, _> =
            metadata.topics().iter().map(|topic| (topic.name(), topic)).collect();
        // One that is not shown is asked for by its name: it may only not be the relay's to see.
        topics
            .iter()
            .map(|name| match by_name.get(name.as_str()) {
                Some(topic) => Some((name.clone(), seen(topic))),
                None => Some((name.clone(), self.look_at(name)?)),
            })
            .collect()
    }

    fn look_at(&self, name: &str) -> Option<Seen> {
        let metadata = self.consumer.fetch_metadata(Some(name), REQUEST).ok()?;
        Some(metadata.topics().iter().find(|topic| topic.name() == name).map_or(Seen::Missing, seen))
    }

    /// Waits until what a search will see cannot be lost any more. Brokers before 4.0 show records that fewer
    /// replicas have than an acknowledgement needs. While that is so nothing could be delivered either, so the wait
    /// costs nothing, on any broker.
    pub fn wait_until_replicated(
        &self,
        topic: &str,
        partition: i32,
        mut min_in_sync: Option<usize>,
    ) -> Result<(), SearchError> {
        let replicas = || {
            let metadata = self.consumer.fetch_metadata(Some(topic), REQUEST)?;
            let mut found = metadata.topics().iter().flat_map(|topic| topic.partitions());
            let found = found.find(|found| found.id() == partition);
            Ok(found.map(|found| Replicas { all: found.replicas().len(), in_sync: found.isr().len() }))
        };
        while !counts_as_acknowledged(self.persist(replicas)?, min_in_sync) {
            tracing::debug!(topic, partition, "fewer replicas in sync than min.insync.replicas");
            self.sleep(BETWEEN_LOOKS)?;
            // Lowering it is what a person does to let delivery continue.
            min_in_sync = self.describe(topic).and_then(|settings| settings.min_in_sync_replicas);
        }
        Ok(())
    }

    /// The settings of a topic; `None` where they may not be read.
    pub fn describe(&self, topic: &str) -> Option<TopicSettings> {
        let asked = read_settings(&self.admin, topic, REQUEST);
        match tokio::runtime::Handle::current().block_on(asked) {
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

fn seen(topic: &MetadataTopic) -> Seen {
    match topic.error().map(RDKafkaErrorCode::from) {
        Some(code) if reason_of_kafka(code) == Reason::TopicMissing => Seen::Missing,
        Some(_) => Seen::Unclear,
        None => Seen::There(topic.partitions().iter().map(|partition| partition.leader()).collect()),
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

/// What was found where a record of ours is remembered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Found {
    /// A record of ours.
    Ours(Position),
    /// Somebody else's record.
    Foreign,
    /// No record, though there are some behind it.
    Nothing,
}

/// Whether a partition from `low` to `high`, with `found` where the evidence should be, is the one that is
/// remembered: where a search of it starts, or what is wrong.
fn judge(floor: &Floor, low: i64, high: i64, found: Option<Found>, compacted: bool) -> Result<i64, String> {
    let Some(last) = floor.last else {
        // Nothing that is confirmed is in it. If it was made anew, it is searched as a whole.
        return Ok(if high < floor.search { low } else { floor.search });
    };
    let Evidence { offset, timeline, commit } = last;
    if high < floor.search || high <= offset {
        return Err(format!("it ends at offset {high}, but {offset} was acknowledged"));
    }
    match found {
        // Retention took it, or the partition would not begin behind it.
        None if low > offset => Ok(floor.search),
        Some(Found::Ours(position)) if position.timeline == timeline && position.commit_lsn == commit => {
            Ok(floor.search)
        }
        // Compaction keeps offsets, and takes a record of which a later one of its key is there.
        Some(Found::Nothing) if compacted => Ok(floor.search),
        Some(Found::Ours(position)) => Err(format!("offset {offset} holds the event at {position} now")),
        Some(Found::Foreign) => Err(format!("offset {offset} holds somebody else's record now")),
        Some(Found::Nothing) | None => Err(format!("the record at offset {offset} is gone")),
    }
}

/// Replicas of a partition.
#[derive(Clone, Copy, Debug)]
struct Replicas {
    all: usize,
    in_sync: usize,
}

/// Whether a record that a search sees is as good as acknowledged: as many replicas are in sync as an
/// acknowledgement needs. That is never more than there are (KIP-966: brokers from 4.0 on accept records for a topic
/// with fewer replicas than `min.insync.replicas`; older ones refuse them, whatever is done here). Where either number
/// is not known, the broker's own rule has to do.
fn counts_as_acknowledged(replicas: Option<Replicas>, min_in_sync: Option<usize>) -> bool {
    replicas.zip(min_in_sync).is_none_or(|(replicas, needed)| replicas.in_sync >= needed.min(replicas.all))
}

#[cfg(test)]
mod tests {
    use super::*;

    const LAST: Evidence = Evidence { offset: 41, timeline: 1, commit: 100 };
    const FLOOR: Floor = Floor { search: 42, last: Some(LAST) };

    fn ours(commit_lsn: u64) -> Option<Found> {
        Some(Found::Ours(Position { timeline: 1, commit_lsn, index: 3 }))
    }

    #[test]
    fn the_record_that_is_remembered_has_to_be_where_it_was() {
        assert_eq!(judge(&FLOOR, 0, 60, ours(100), false), Ok(42));
        for (high, found) in
            [(60, ours(99)), (60, Some(Found::Foreign)), (60, Some(Found::Nothing)), (41, None), (0, None)]
        {
            assert!(judge(&FLOOR, 0, high, found, false).is_err(), "{high} {found:?}");
        }
    }

    #[test]
    fn retention_and_compaction_explain_what_is_not_there() {
        assert_eq!(judge(&FLOOR, 42, 42, None, false), Ok(42));
        assert_eq!(judge(&FLOOR, 50, 60, None, false), Ok(42));
        assert_eq!(judge(&FLOOR, 0, 60, Some(Found::Nothing), true), Ok(42));
        assert!(judge(&FLOOR, 0, 60, Some(Found::Foreign), true).is_err());
        assert!(judge(&FLOOR, 10, 10, None, false).is_err(), "made anew and emptied");
    }

    #[test]
    fn a_topic_that_got_nothing_of_ours_can_have_lost_nothing() {
        let floor = Floor { search: 42, last: None };
        assert_eq!(judge(&floor, 0, 50, None, false), Ok(42));
        assert_eq!(judge(&floor, 0, 5, None, false), Ok(0));
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
