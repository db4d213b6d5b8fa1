//! The topic settings that matter to a record: its maximum size and age.

use crate::topics::kafka_time::KafkaTime;

/// Kafka's default for `retention.ms`, seven days, assumed if the relay may not read the settings.
const DEFAULT_RETENTION_MS: i64 = 7 * 24 * 3600 * 1000;

/// Kafka's default for `message.timestamp.after.max.ms`, one hour.
const DEFAULT_AHEAD_MS: i64 = 3600 * 1000;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TopicSettings {
    /// Largest record batch in bytes.
    pub max_message_bytes: Option<usize>,
    /// Number of replicas that must have a record before it is acknowledged.
    pub min_in_sync_replicas: Option<usize>,
    /// Compaction removes a record once there is a later one with the same key.
    pub compacted: bool,
    /// Maximum age in milliseconds up to which a record keeps its own timestamp; `None` if the broker sets timestamps.
    oldest_ms: Option<i64>,
    /// Maximum time in milliseconds by which a record's own timestamp may be in the future; `None` if the broker sets
    /// timestamps.
    ahead_ms: Option<i64>,
}

/// What a session knows of the settings of a topic.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Settings {
    /// They were neither read nor refused yet. A row that is placed now may be one that the topic refuses.
    Unread,
    /// The relay may not read them.
    Refused,
    Read(TopicSettings),
}

impl Settings {
    /// The settings, if they were read.
    pub fn known(self) -> Option<TopicSettings> {
        match self {
            Settings::Read(settings) => Some(settings),
            Settings::Unread | Settings::Refused => None,
        }
    }
}

impl From<Option<TopicSettings>> for Settings {
    /// The result of a query; `None` if the relay may not read them.
    fn from(read: Option<TopicSettings>) -> Self {
        read.map_or(Settings::Refused, Settings::Read)
    }
}

impl Default for TopicSettings {
    /// The assumption if the relay may not read the settings.
    fn default() -> Self {
        TopicSettings {
            max_message_bytes: None,
            min_in_sync_replicas: None,
            compacted: false,
            oldest_ms: Some(DEFAULT_RETENTION_MS / 2),
            ahead_ms: Some(DEFAULT_AHEAD_MS / 2),
        }
    }
}

impl TopicSettings {
    /// Reads the name-value pairs that DescribeConfigs returns.
    pub fn read<'a>(value: impl Fn(&str) -> Option<&'a str>) -> TopicSettings {
        let number = |name: &str| value(name).and_then(|text| text.parse::<i64>().ok());
        // -1 means unlimited.
        let limit = |name: &str| number(name).filter(|ms| *ms >= 0).unwrap_or(i64::MAX);
        let policy = value("cleanup.policy").unwrap_or("delete");
        // Half the retention, because consumers need time to read a record before it is deleted.
        let retention = if policy.contains("delete") { limit("retention.ms") / 2 } else { i64::MAX };
        // Kafka 3 has one limit for both directions. Unset, it does not limit anything.
        let both = limit("message.timestamp.difference.max.ms");
        let by_producer = value("message.timestamp.type") != Some("LogAppendTime");
        let size = |name: &str| number(name).and_then(|bytes| usize::try_from(bytes).ok());
        TopicSettings {
            max_message_bytes: size("max.message.bytes"),
            min_in_sync_replicas: size("min.insync.replicas"),
            compacted: policy.contains("compact"),
            // Half the limit, because the broker's clock differs and a record may wait before it is sent.
            ahead_ms: by_producer.then(|| limit("message.timestamp.after.max.ms").min(both) / 2),
            oldest_ms: by_producer
                .then(|| retention.min(limit("message.timestamp.before.max.ms").min(both) / 2)),
        }
    }

    /// The topic's size limit, if it is below `configured`.
    pub fn lower_limit(&self, configured: usize) -> Option<usize> {
        self.max_message_bytes.filter(|limit| *limit < configured)
    }

    /// Whether a record with this timestamp would be refused, or deleted before consumers can read it. Retention is by
    /// record timestamp: a record delivered late, after an outage or by a refill, would be deleted immediately, even
    /// from the active segment.
    pub fn is_too_old(&self, time: KafkaTime, now: KafkaTime) -> bool {
        self.oldest_ms.is_some_and(|oldest| now.millis_since(time) > oldest)
    }

    /// Whether a record with this timestamp would be refused because it is in the future. The row cannot be changed, so
    /// it would be sent and refused repeatedly, and would block all rows after it.
    pub fn is_too_new(&self, time: KafkaTime, now: KafkaTime) -> bool {
        self.ahead_ms.is_some_and(|ahead| time.millis_since(now) > ahead)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY: i64 = 24 * 3600 * 1000;

    fn at(millis: i64) -> KafkaTime {
        KafkaTime(millis)
    }

    fn settings(pairs: &[(&str, &'static str)]) -> TopicSettings {
        TopicSettings::read(|name| pairs.iter().find(|(key, _)| *key == name).map(|(_, value)| *value))
    }

    #[test]
    fn a_record_is_too_old_at_half_the_retention_or_if_the_broker_refuses_it() {
        let week = settings(&[("retention.ms", "604800000"), ("cleanup.policy", "delete")]);
        assert!(!week.is_too_old(at(0), at(3 * DAY)));
        assert!(week.is_too_old(at(0), at(4 * DAY)));
        let strict =
            settings(&[("retention.ms", "604800000"), ("message.timestamp.before.max.ms", "3600000")]);
        assert!(strict.is_too_old(at(0), at(DAY)));
        let for_ever =
            settings(&[("retention.ms", "-1"), ("message.timestamp.before.max.ms", "9223372036854775807")]);
        assert!(!for_ever.is_too_old(at(0), at(10_000 * DAY)));
        let compacted = settings(&[("retention.ms", "604800000"), ("cleanup.policy", "compact")]);
        assert!(!compacted.is_too_old(at(0), at(30 * DAY)) && compacted.compacted);
        assert!(!week.is_too_old(at(2 * DAY), at(0)), "a timestamp in the future is not old");
    }

    #[test]
    fn if_the_broker_sets_timestamps_the_records_own_is_kept() {
        let append = settings(&[("retention.ms", "1000"), ("message.timestamp.type", "LogAppendTime")]);
        assert!(!append.is_too_old(at(0), at(1000 * DAY)));
    }

    #[test]
    fn a_record_is_too_new_if_the_broker_would_refuse_it() {
        let hour = settings(&[("message.timestamp.after.max.ms", "3600000")]);
        assert!(
            hour.is_too_new(at(DAY), at(0))
                && !hour.is_too_new(at(60_000), at(0))
                && !hour.is_too_new(at(0), at(DAY))
        );
        let append =
            settings(&[("message.timestamp.after.max.ms", "0"), ("message.timestamp.type", "LogAppendTime")]);
        assert!(!append.is_too_new(at(DAY), at(0)));
        assert!(TopicSettings::default().is_too_new(at(DAY), at(0)));
    }

    #[test]
    fn kafka_3_has_one_limit_for_both_directions() {
        let both = settings(&[("message.timestamp.difference.max.ms", "3600000")]);
        assert!(both.is_too_old(at(0), at(DAY)) && both.is_too_new(at(DAY), at(0)));
        assert!(!both.is_too_old(at(0), at(60_000)) && !both.is_too_new(at(60_000), at(0)));
    }

    #[test]
    fn without_permission_kafkas_defaults_are_assumed() {
        assert!(TopicSettings::default().is_too_old(at(0), at(4 * DAY)));
        assert!(!TopicSettings::default().is_too_old(at(0), at(3 * DAY)));
        assert_eq!(TopicSettings::default().max_message_bytes, None);
    }
}
