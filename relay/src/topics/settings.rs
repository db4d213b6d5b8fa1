//! The settings of a topic that matter to a record: how large it may be, and how old.

use crate::config::Sink;

/// Kafka's default for `retention.ms`, assumed where the settings may not be read: seven days.
const DEFAULT_RETENTION_MS: i64 = 7 * 24 * 3600 * 1000;

/// Kafka's default for `message.timestamp.after.max.ms`: an hour.
const DEFAULT_AHEAD_MS: i64 = 3600 * 1000;

/// What a topic's settings say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TopicSettings {
    /// Largest record batch in bytes.
    pub max_message_bytes: Option<usize>,
    /// Replicas that have to have a record before it is acknowledged.
    pub min_in_sync_replicas: Option<usize>,
    /// Records are removed when a later one of the same key is there.
    pub compacted: bool,
    /// Age in milliseconds from which a record is not sent with its own timestamp; `None` where the broker sets it.
    oldest_ms: Option<i64>,
    /// How far ahead of now a record may be in milliseconds to be sent with its own timestamp; `None` where the broker
    /// sets it.
    ahead_ms: Option<i64>,
}

impl Default for TopicSettings {
    /// What is assumed where the settings may not be read.
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
    /// Reads `name -> value` pairs as DescribeConfigs gives them.
    pub fn read<'a>(value: impl Fn(&str) -> Option<&'a str>) -> TopicSettings {
        let number = |name: &str| value(name).and_then(|text| text.parse::<i64>().ok());
        // -1 is "for ever".
        let limit = |name: &str| number(name).filter(|ms| *ms >= 0).unwrap_or(i64::MAX);
        let policy = value("cleanup.policy").unwrap_or("delete");
        // Half of it: a record that is about to be removed when it arrives would help nobody.
        let retention = if policy.contains("delete") { limit("retention.ms") / 2 } else { i64::MAX };
        // Kafka 3 has one limit for both directions; where it is not set it says nothing.
        let both = limit("message.timestamp.difference.max.ms");
        let by_producer = value("message.timestamp.type") != Some("LogAppendTime");
        let size = |name: &str| number(name).and_then(|bytes| usize::try_from(bytes).ok());
        TopicSettings {
            max_message_bytes: size("max.message.bytes"),
            min_in_sync_replicas: size("min.insync.replicas"),
            compacted: policy.contains("compact"),
            // Half of it: the broker's clock is another one, and a record may wait before it is sent.
            ahead_ms: by_producer.then(|| limit("message.timestamp.after.max.ms").min(both) / 2),
            oldest_ms: by_producer
                .then(|| retention.min(limit("message.timestamp.before.max.ms").min(both) / 2)),
        }
    }

    /// The limit of the topic, where it is below the configured one.
    pub fn lower_limit(&self, sink: &Sink) -> Option<usize> {
        self.max_message_bytes.filter(|limit| *limit < sink.max_message_bytes)
    }

    /// Whether a record of this time would be refused, or removed before anybody has read it: retention goes by the
    /// timestamp, so what an outage or a refill brings late would be deleted at once, the active segment included.
    pub fn is_too_old(&self, time_ms: i64, now_ms: i64) -> bool {
        self.oldest_ms.is_some_and(|oldest| now_ms.saturating_sub(time_ms) > oldest)
    }

    /// Whether a record of this time would be refused for being of the future: the row cannot be changed, and would
    /// be sent and refused again and again, with all that is behind it.
    pub fn is_too_new(&self, time_ms: i64, now_ms: i64) -> bool {
        self.ahead_ms.is_some_and(|ahead| time_ms.saturating_sub(now_ms) > ahead)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY: i64 = 24 * 3600 * 1000;

    fn settings(pairs: &[(&str, &'static str)]) -> TopicSettings {
        TopicSettings::read(|name| pairs.iter().find(|(key, _)| *key == name).map(|(_, value)| *value))
    }

    #[test]
    fn a_record_is_too_old_at_half_the_retention_or_where_the_broker_refuses_it() {
        let week = settings(&[("retention.ms", "604800000"), ("cleanup.policy", "delete")]);
        assert!(!week.is_too_old(0, 3 * DAY));
        assert!(week.is_too_old(0, 4 * DAY));
        let strict =
            settings(&[("retention.ms", "604800000"), ("message.timestamp.before.max.ms", "3600000")]);
        assert!(strict.is_too_old(0, DAY));
        let for_ever =
            settings(&[("retention.ms", "-1"), ("message.timestamp.before.max.ms", "9223372036854775807")]);
        assert!(!for_ever.is_too_old(0, 10_000 * DAY));
        let compacted = settings(&[("retention.ms", "604800000"), ("cleanup.policy", "compact")]);
        assert!(!compacted.is_too_old(0, 30 * DAY) && compacted.compacted);
        assert!(!week.is_too_old(2 * DAY, 0), "a clock ahead is not age");
    }

    #[test]
    fn where_the_broker_sets_the_time_ours_is_kept() {
        let append = settings(&[("retention.ms", "1000"), ("message.timestamp.type", "LogAppendTime")]);
        assert!(!append.is_too_old(0, 1000 * DAY));
    }

    #[test]
    fn a_record_is_too_new_where_the_broker_would_refuse_it() {
        let hour = settings(&[("message.timestamp.after.max.ms", "3600000")]);
        assert!(hour.is_too_new(DAY, 0) && !hour.is_too_new(60_000, 0) && !hour.is_too_new(0, DAY));
        let append =
            settings(&[("message.timestamp.after.max.ms", "0"), ("message.timestamp.type", "LogAppendTime")]);
        assert!(!append.is_too_new(DAY, 0));
        assert!(TopicSettings::default().is_too_new(DAY, 0));
    }

    #[test]
    fn kafka_3_has_one_limit_for_both_directions() {
        let both = settings(&[("message.timestamp.difference.max.ms", "3600000")]);
        assert!(both.is_too_old(0, DAY) && both.is_too_new(DAY, 0));
        assert!(!both.is_too_old(0, 60_000) && !both.is_too_new(60_000, 0));
    }

    #[test]
    fn without_permission_kafkas_default_is_assumed() {
        assert!(TopicSettings::default().is_too_old(0, 4 * DAY));
        assert!(!TopicSettings::default().is_too_old(0, 3 * DAY));
        assert_eq!(TopicSettings::default().max_message_bytes, None);
    }
}
