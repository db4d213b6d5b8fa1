//! Two resources for one slot or one topic: the older keeps it, and the other is told. Databases and Kafka clusters are compared by what
//! they are, not by the names by which they are reached.

use kube::ResourceExt;

use super::Context;
use crate::desired::configuration::identity;
use crate::resource::{OutboxRelay, OutboxRelayStatus};

/// The resource that has the slot in place of `relay`, if there is one among those that this operator watches.
pub(super) fn slot_owner(relay: &OutboxRelay, context: &Context, database: &str) -> Option<String> {
    context.find_in_relays(|other| has_slot(other, relay, database).then(|| identity(other)))
}

/// A topic that another resource has, and that resource.
pub(super) struct TakenTopic {
    pub(super) topic: String,
    pub(super) owner: String,
}

/// The first topic of `relay` that another resource has. Without the identity of the cluster none is known.
pub(super) fn taken_topic(
    relay: &OutboxRelay,
    context: &Context,
    cluster: Option<&str>,
) -> Option<TakenTopic> {
    let cluster = cluster?;
    context.find_in_relays(|other| {
        let topic = common_topic(other, relay, cluster)?;
        Some(TakenTopic { topic, owner: identity(other) })
    })
}

/// Whether `other` is another resource for the same slot of the same database, and the older.
fn has_slot(other: &OutboxRelay, relay: &OutboxRelay, database: &str) -> bool {
    let [theirs, ours] = [other, relay].map(|relay| relay.spec.source.postgres.slot.name.as_str());
    theirs == ours
        && known(other, |status| &status.database_identity) == Some(database)
        && is_older(other, relay)
}

/// A topic of `relay` that `other` declares, too, in the same cluster, where it is the older.
fn common_topic(other: &OutboxRelay, relay: &OutboxRelay, cluster: &str) -> Option<String> {
    let is_same = known(other, |status| &status.kafka_identity) == Some(cluster);
    let mut theirs = other.spec.topics.iter().map(|topic| &topic.name);
    let is_ours = |name: &&String| relay.spec.topics.iter().any(|topic| topic.name == **name);
    if !is_same {
        return None;
    }
    theirs.find(is_ours).filter(|_| is_older(other, relay)).cloned()
}

fn known(relay: &OutboxRelay, what: impl Fn(&OutboxRelayStatus) -> &Option<String>) -> Option<&str> {
    relay.status.as_ref().and_then(|status| what(status).as_deref())
}

/// Of two that were made in the same second, one has to be, always the same.
fn is_older(other: &OutboxRelay, relay: &OutboxRelay) -> bool {
    let age = |relay: &OutboxRelay| {
        let created = relay.metadata.creation_timestamp.as_ref().map(|time| time.0);
        (created, relay.uid())
    };
    age(other) < age(relay)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn relay(uid: &str, second: u32, slot: &str, identity: Option<&str>) -> OutboxRelay {
        serde_json::from_value(json!({
            "apiVersion": "outbox.dev/v1beta1",
            "kind": "OutboxRelay",
            "metadata": {"name": uid, "uid": uid, "creationTimestamp": format!("2026-01-01T00:00:{second:02}Z")},
            "spec": {
                "source": {"postgres": {
                    "host": uid, "database": "d", "credentialsSecretRef": {"name": "s"},
                    "publication": {"name": "p"}, "slot": {"name": slot},
                }},
                "sink": {"kafka": {"bootstrapServers": "k:1"}},
                "topics": [{"name": "t", "partitions": 1}, {"name": uid, "partitions": 1}],
            },
            "status": {"databaseIdentity": identity, "kafkaIdentity": "k"},
        }))
        .unwrap()
    }

    #[test]
    fn the_older_of_two_for_one_slot_has_it() {
        let (old, new) = (relay("a", 1, "s", Some("7/d")), relay("b", 2, "s", Some("7/d")));
        assert!(has_slot(&old, &new, "7/d"));
        assert!(!has_slot(&new, &old, "7/d"));
        assert!(!has_slot(&old, &old, "7/d"), "itself");
        let same_age = relay("c", 1, "s", Some("7/d"));
        assert!(has_slot(&old, &same_age, "7/d") && !has_slot(&same_age, &old, "7/d"), "made at once");
    }

    #[test]
    fn another_slot_or_database_is_no_conflict() {
        let new = relay("b", 2, "s", Some("7/d"));
        assert!(!has_slot(&relay("a", 1, "other", Some("7/d")), &new, "7/d"));
        assert!(!has_slot(&relay("a", 1, "s", Some("8/d")), &new, "7/d"));
        assert!(!has_slot(&relay("a", 1, "s", None), &new, "7/d"), "its database is not known yet");
    }

    #[test]
    fn the_older_of_two_for_one_topic_has_it() {
        let (old, new) = (relay("a", 1, "s", None), relay("b", 2, "r", None));
        assert_eq!(common_topic(&old, &new, "k").as_deref(), Some("t"));
        assert_eq!(common_topic(&new, &old, "k"), None);
        assert_eq!(common_topic(&old, &new, "another"), None);
    }
}
