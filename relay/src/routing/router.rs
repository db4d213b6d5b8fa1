//! The topic and the partition of an event: pure functions of the row and the configuration.

use regex::Regex;

use crate::error::excerpt;
use crate::routing::rule::Routing;
use crate::topics::partitions::PartitionNumber;

/// The longest topic name that Kafka accepts.
const MAX_TOPIC_BYTES: usize = 249;

/// Kafka's internal topics. Brokers refuse records from clients there.
const INTERNAL_TOPICS: [&str; 4] =
    ["__consumer_offsets", "__transaction_state", "__share_group_state", "__cluster_metadata"];

/// The routing rule cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("'{regex}' is not a regular expression: {detail}")]
pub struct InvalidRule {
    regex: String,
    detail: String,
}

/// Why an event has no topic. Such a row is poison, because skipping it would lose the event.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unroutable {
    #[error("the routing column is NULL")]
    NoValue,
    #[error("'{}' does not match routing.regex", excerpt(value))]
    NoMatch {
        /// The value of the routing column.
        value: String,
    },
    /// The rule results in a name that Kafka refuses.
    #[error(
        "'{}' is not a topic name (letters, digits, '.', '_', '-', at most {MAX_TOPIC_BYTES})",
        excerpt(topic)
    )]
    IllegalTopic { topic: String },
    #[error("'{topic}' is an internal topic of Kafka, which accepts no events")]
    InternalTopic { topic: String },
    /// The rule results in the dead-letter topic, where every record has to be a dead letter.
    #[error("'{topic}' is delivery.deadLetterTopic, which accepts only dead letters")]
    DeadLetterTopic { topic: String },
}

/// The routing rule of Debezium's outbox event router: a regular expression over one column, and a replacement.
pub struct Router {
    rule: Regex,
    replacement: String,
    dead_letter_topic: Option<String>,
}

impl Router {
    /// Compiles the rule. As in Debezium, the expression must match the whole value.
    pub fn new(routing: &Routing) -> Result<Router, InvalidRule> {
        let anchored = format!("^(?:{})$", routing.regex);
        // Compile the expression alone first: the added parentheses would make an invalid one such as `a)|(b` valid.
        let rule = Regex::new(&routing.regex)
            .and_then(|_| Regex::new(&anchored))
            .map_err(|error| InvalidRule { regex: routing.regex.clone(), detail: error.to_string() })?;
        Ok(Router { rule, replacement: routing.replacement.clone(), dead_letter_topic: None })
    }

    /// Routes no event to `topic`.
    #[must_use]
    pub fn excluding(mut self, topic: Option<&str>) -> Router {
        self.dead_letter_topic = topic.map(str::to_owned);
        self
    }

    /// The topic for a value of the routing column.
    pub fn topic(&self, value: &str) -> Result<String, Unroutable> {
        let groups = self.rule.captures(value);
        let groups = groups.ok_or_else(|| Unroutable::NoMatch { value: excerpt(value) })?;
        let mut topic = String::new();
        groups.expand(&self.replacement, &mut topic);
        if !is_topic_name(&topic) {
            return Err(Unroutable::IllegalTopic { topic: excerpt(&topic) });
        }
        if is_internal(&topic) {
            return Err(Unroutable::InternalTopic { topic });
        }
        if self.dead_letter_topic.as_ref() == Some(&topic) {
            return Err(Unroutable::DeadLetterTopic { topic });
        }
        Ok(topic)
    }
}

/// Whether Kafka accepts `name` as a topic name.
pub fn is_topic_name(name: &str) -> bool {
    let legal = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-');
    let well_formed = !name.is_empty() && name.len() <= MAX_TOPIC_BYTES && name.bytes().all(legal);
    well_formed && name != "." && name != ".."
}

/// Whether this is the name of an internal topic of Kafka.
pub fn is_internal(name: &str) -> bool {
    INTERNAL_TOPICS.contains(&name)
}

/// The partition that Kafka's Java client chooses: `(murmur2(key) & 0x7fffffff) % partitions`. librdkafka's default is
/// another hash, with which two producers would send one key to two partitions.
pub fn partition(key: &[u8], partitions: i32) -> PartitionNumber {
    let positive = murmur2(key) & 0x7fff_ffff;
    let count = u32::try_from(partitions).unwrap_or(1).max(1);
    PartitionNumber(i32::try_from(positive % count).unwrap_or(0))
}

/// MurmurHash2 as in `org.apache.kafka.common.utils.Utils.murmur2`: 32 bits, little-endian words.
fn murmur2(data: &[u8]) -> u32 {
    const SEED: u32 = 0x9747_b28c;
    const M: u32 = 0x5bd1_e995;
    const R: u32 = 24;

    let length = u32::try_from(data.len()).unwrap_or(u32::MAX);
    let mut hash = SEED ^ length;
    let (words, tail) = data.as_chunks::<4>();
    for word in words {
        let mut k = u32::from_le_bytes(*word).wrapping_mul(M);
        k ^= k >> R;
        hash = hash.wrapping_mul(M) ^ k.wrapping_mul(M);
    }
    for (shift, byte) in tail.iter().enumerate().rev() {
        hash ^= u32::from(*byte) << (8 * shift);
    }
    if !tail.is_empty() {
        hash = hash.wrapping_mul(M);
    }
    hash ^= hash >> 13;
    hash = hash.wrapping_mul(M);
    hash ^ (hash >> 15)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn router(regex: &str, replacement: &str) -> Router {
        Router::new(&Routing { regex: regex.into(), replacement: replacement.into(), ..Routing::default() })
            .unwrap()
    }

    #[test]
    fn murmur2_equals_kafkas() {
        // The vectors of Apache Kafka's UtilsTest.testMurmur2.
        let vectors: [(&[u8], i32); 7] = [
            (b"21", -973_932_308),
            (b"foobar", -790_332_482),
            (b"a-little-bit-long-string", -985_981_536),
            (b"a-little-bit-longer-string", -1_486_304_829),
            (b"lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8", -58_897_971),
            (b"abc", 479_470_107),
            (b"", 275_646_681),
        ];
        for (key, hash) in vectors {
            assert_eq!(murmur2(key) as i32, hash, "{}", String::from_utf8_lossy(key));
        }
    }

    proptest! {
        /// With each of these rules, any text results in a topic name that Kafka accepts, or in an error.
        #[test]
        fn any_text_results_in_a_legal_topic_or_an_error(
            value in prop_oneof![any::<String>(), "[a-z._-]{0,260}"],
            rule in prop::sample::select(vec![
                ("(?<routedByValue>.*)", "outbox.event.${routedByValue}"),
                ("(?s)(.*)", "$1"),
                ("([a-z]+)?(.*)", "$1.$2$3"),
                ("(.)(.*)", "$2"),
            ]),
        ) {
            if let Ok(topic) = router(rule.0, rule.1).topic(&value) {
                prop_assert!((1..=249).contains(&topic.len()));
                prop_assert!(topic.chars().all(|c| c.is_ascii_alphanumeric() || ".-_".contains(c)), "{}", topic);
                prop_assert!(topic != "." && topic != "..");
            }
        }

        /// The rule must match the whole value: an alternative in it must not match a part.
        #[test]
        fn a_rule_matches_the_whole_value_only(first in "[a-c]{1,3}", second in "[a-c]{1,3}", value in "[a-c\n]{0,6}") {
            let matches = router(&format!("{first}|{second}"), "t").topic(&value).is_ok();
            prop_assert_eq!(matches, value == first || value == second);
        }

        #[test]
        fn any_key_has_a_partition_that_exists(key: Vec<u8>, count in 1i32..2_000) {
            prop_assert!((0..count).contains(&partition(&key, count).0));
        }
    }

    /// The wrapping that anchors a rule must not complete it.
    #[test]
    fn half_a_rule_is_not_a_rule() {
        let half = Routing { regex: "a)|(b".into(), ..Routing::default() };
        assert!(Router::new(&half).is_err());
    }

    /// `Utils.toPositive(murmur2(key)) % 12`, from the vectors above.
    #[test]
    fn partitions_are_those_of_the_java_client() {
        let partitions = [("21", 0), ("foobar", 6), ("abc", 3), ("", 9)];
        for (key, expected) in partitions {
            assert_eq!(partition(key.as_bytes(), 12), PartitionNumber(expected), "{key}");
        }
    }

    #[test]
    fn the_default_rule_is_debeziums() {
        let router = Router::new(&Routing::default()).unwrap();
        assert_eq!(router.topic("basket").as_deref(), Ok("outbox.event.basket"));
    }

    #[test]
    fn a_configured_rule_can_use_groups_and_must_match_the_whole_value() {
        let router = router("shop-(?<kind>[a-z]+)", "events.${kind}.v1");
        assert_eq!(router.topic("shop-basket").as_deref(), Ok("events.basket.v1"));
        assert_eq!(router.topic("xshop-basket"), Err(Unroutable::NoMatch { value: "xshop-basket".into() }));
    }

    #[test]
    fn no_event_goes_to_the_dead_letter_topic() {
        let router = router("(.*)", "$1").excluding(Some("dead"));
        assert_eq!(router.topic("dead"), Err(Unroutable::DeadLetterTopic { topic: "dead".into() }));
        assert_eq!(router.topic("dead2").as_deref(), Ok("dead2"));
    }

    #[test]
    fn a_topic_name_that_kafka_would_refuse_is_an_error() {
        for value in ["a b", "ä", "x/y", &"x".repeat(300)] {
            let refused = Router::new(&Routing::default()).unwrap().topic(value);
            assert!(matches!(refused, Err(Unroutable::IllegalTopic { .. })), "{value}: {refused:?}");
        }
        for value in [".", "..", ""] {
            assert!(matches!(router("(.*)", "$1").topic(value), Err(Unroutable::IllegalTopic { .. })));
        }
    }

    #[test]
    fn no_event_goes_to_an_internal_topic_of_kafka() {
        for topic in INTERNAL_TOPICS {
            let refused = router("(.*)", "$1").topic(topic);
            assert_eq!(refused, Err(Unroutable::InternalTopic { topic: topic.into() }));
        }
        assert_eq!(router("(.*)", "$1").topic("__mine").as_deref(), Ok("__mine"));
    }
}
