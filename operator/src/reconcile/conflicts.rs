//! Two resources for one slot or one topic: the older keeps it, and the other is told. Databases and Kafka clusters are compared by what
//! they are, not by the names by which they are reached.

use kube::ResourceExt;

use super::Pass;
use crate::desired::configuration::identity;
use crate::resource::{OutboxRelay, OutboxRelayStatus};

impl Pass<'_> {
    /// The resource that has the slot in place of this one, if there is one; among those that this operator looks at.
    pub(super) fn owner(&self) -> Option<String> {
        let database = self.database_identity.as_deref();
        self.context.find_in_relays(|other| has_slot(other, self.relay, database).then(|| identity(other)))
    }

    /// A topic that another resource has, and that resource.
    pub(super) fn topic_owner(&self) -> Option<(String, String)> {
        let kafka = self.kafka_identity.as_deref();
        self.context.find_in_relays(|other| Some((common_topic(other, self.relay, kafka)?, identity(other))))
    }
}

/// Whether `other` is another resource for the same slot of the same database, and the older.
fn has_slot(other: &OutboxRelay, relay: &OutboxRelay, database: Option<&str>) -> bool {
    let slot = |relay: &OutboxRelay| relay.spec.source.postgres.slot.name.clone();
    let known = known(other, |status| &status.database_identity);
    database.is_some() && known == database && slot(other) == slot(relay) && is_older(other, relay)
}

/// A topic of `relay` that `other` declares, too, in the same cluster, where it is the older.
fn common_topic(other: &OutboxRelay, relay: &OutboxRelay, kafka: Option<&str>) -> Option<String> {
    let same = kafka.is_some() && known(other, |status| &status.kafka_identity) == kafka;
    let mut theirs = other.spec.topics.iter().map(|topic| &topic.name);
    let is_ours = |name: &&String| relay.spec.topics.iter().any(|topic| topic.name == **name);
    (same && is_older(other, relay)).then(|| theirs.find(is_ours).cloned()).flatten()
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
        assert!(has_slot(&old, &new, Some("7/d")));
        assert!(!has_slot(&new, &old, Some("7/d")));
        assert!(!has_slot(&old, &old, Some("7/d")), "itself");
        let twin = relay("c", 1, "s", Some("7/d"));
        assert!(has_slot(&old, &twin, Some("7/d")) && !has_slot(&twin, &old, Some("7/d")), "made at once");
    }

    #[test]
    fn another_slot_or_database_is_no_conflict() {
        let new = relay("b", 2, "s", Some("7/d"));
        assert!(!has_slot(&relay("a", 1, "other", Some("7/d")), &new, Some("7/d")));
        assert!(!has_slot(&relay("a", 1, "s", Some("8/d")), &new, Some("7/d")));
        assert!(!has_slot(&relay("a", 1, "s", None), &new, None), "nothing is known of either");
    }

    #[test]
    fn the_older_of_two_for_one_topic_has_it() {
        let (old, new) = (relay("a", 1, "s", None), relay("b", 2, "r", None));
        assert_eq!(common_topic(&old, &new, Some("k")).as_deref(), Some("t"));
        assert_eq!(common_topic(&new, &old, Some("k")), None);
        assert_eq!(common_topic(&old, &new, Some("another")), None);
    }
}
