//! Values of topics' configurations as Kafka understands them. It stores what it has parsed, so that the text it answers with differs from
//! the text that was set.

use std::collections::BTreeSet;

/// Keys whose values are lists in which the order means nothing. Kafka's admin API has the types of keys, librdkafka's does not.
const SETS: [&str; 3] =
    ["cleanup.policy", "leader.replication.throttled.replicas", "follower.replication.throttled.replicas"];

/// Whether `one` and `other` mean the same to Kafka.
pub(super) fn are_same(key: &str, one: &str, other: &str) -> bool {
    let (one, other) = (one.trim(), other.trim());
    one == other
        || are_same_booleans(one, other)
        || are_same_numbers(one, other)
        || are_same_lists(key, one, other)
}

fn are_same_booleans(one: &str, other: &str) -> bool {
    ["true", "false"].iter().any(|value| one.eq_ignore_ascii_case(value) && other.eq_ignore_ascii_case(value))
}

fn are_same_numbers(one: &str, other: &str) -> bool {
    if let (Ok(one), Ok(other)) = (one.parse::<i64>(), other.parse::<i64>()) {
        return one == other;
    }
    match (decimal(one), decimal(other)) {
        // Both are read as Kafka reads them: the same text of a number is the same double.
        (Some(one), Some(other)) => one.to_bits() == other.to_bits(),
        _ => false,
    }
}

/// Without the words that Rust reads as numbers, and Kafka does not.
fn decimal(text: &str) -> Option<f64> {
    let is_digit_or_sign = |byte: u8| matches!(byte, b'0'..=b'9' | b'+' | b'-' | b'.' | b'e' | b'E');
    text.bytes().all(is_digit_or_sign).then(|| text.parse().ok()).flatten()
}

fn are_same_lists(key: &str, one: &str, other: &str) -> bool {
    let items = |text: &str| text.split(',').map(|item| item.trim().to_owned()).collect::<Vec<_>>();
    let (one, other) = (items(one), items(other));
    if SETS.contains(&key) {
        return one.into_iter().collect::<BTreeSet<_>>() == other.into_iter().collect();
    }
    one == other
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_means_the_same_is_the_same() {
        for (key, one, other) in [
            ("cleanup.policy", "compact, delete", "compact,delete"),
            ("cleanup.policy", "delete,compact", " compact , delete "),
            ("leader.replication.throttled.replicas", "0:1,1:2", "1:2, 0:1"),
            ("some.plugins.list", "b, a", "b,a"),
            ("unclean.leader.election.enable", "True", "true"),
            ("preallocate", "FALSE ", "false"),
            ("retention.ms", " 600000 ", "600000"),
            ("retention.ms", "+007", "7"),
            ("retention.ms", "-1", "-1"),
            ("min.cleanable.dirty.ratio", "0.50", "0.5"),
            ("min.cleanable.dirty.ratio", ".5", "5e-1"),
            ("min.cleanable.dirty.ratio", "1", "1.0"),
        ] {
            assert!(are_same(key, one, other) && are_same(key, other, one), "{key}: {one:?} {other:?}");
        }
    }

    #[test]
    fn what_does_not_is_not() {
        for (key, one, other) in [
            ("cleanup.policy", "compact,delete", "compact"),
            ("cleanup.policy", "delete", "Delete"),
            ("some.plugins.list", "b,a", "a,b"),
            ("unclean.leader.election.enable", "true", "false"),
            ("compression.type", "NaN", "nan"),
            ("compression.type", "inf", "infinity"),
            ("retention.ms", "600000", "60000"),
            // Doubles of this size are further apart than one.
            ("retention.ms", "9223372036854775807", "9223372036854775806"),
            ("min.cleanable.dirty.ratio", "0.5", "0.51"),
            ("retention.ms", "", "0"),
        ] {
            assert!(!are_same(key, one, other) && !are_same(key, other, one), "{key}: {one:?} {other:?}");
        }
    }
}
