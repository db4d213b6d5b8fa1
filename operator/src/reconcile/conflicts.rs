//! Two resources for one slot: the older keeps it, and the other is told. Databases are compared by what they are, not by the names by
//! which they are reached.

use kube::ResourceExt;

use super::Pass;
use crate::desired::configuration::identity;
use crate::resource::OutboxRelay;

impl Pass<'_> {
    /// The resource that has the slot in place of this one, if there is one; among those that this operator looks at.
    pub(super) fn rival(&self) -> Option<String> {
        let database = self.database_identity.as_deref();
        self.context.relays().iter().find(|other| has_priority(other, self.relay, database)).map(identity)
    }
}

/// Whether `other` is another resource for the same slot of the same database, and the older.
fn has_priority(other: &OutboxRelay, relay: &OutboxRelay, identity: Option<&str>) -> bool {
    let slot = |relay: &OutboxRelay| relay.spec.source.postgres.slot.name.clone();
    let known = other.status.as_ref().and_then(|status| status.database_identity.as_deref());
    let age = |relay: &OutboxRelay| {
        let created = relay.metadata.creation_timestamp.as_ref().map(|time| time.0);
        (created, relay.uid())
    };
    identity.is_some() && known == identity && slot(other) == slot(relay) && age(other) < age(relay)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn relay(uid: &str, second: u32, slot: &str, identity: Option<&str>) -> OutboxRelay {
        serde_json::from_value(json!({
            "apiVersion": "outbox.dev/v1alpha1",
            "kind": "OutboxRelay",
            "metadata": {"name": uid, "uid": uid, "creationTimestamp": format!("2026-01-01T00:00:{second:02}Z")},
            "spec": {
                "source": {"postgres": {
                    "host": uid, "database": "d", "credentialsSecretRef": {"name": "s"},
                    "publication": {"name": "p"}, "slot": {"name": slot},
                }},
                "sink": {"kafka": {"bootstrapServers": "k:1"}},
            },
            "status": {"databaseIdentity": identity},
        }))
        .unwrap()
    }

    #[test]
    fn the_older_of_two_for_one_slot_has_it() {
        let (old, new) = (relay("a", 1, "s", Some("7/d")), relay("b", 2, "s", Some("7/d")));
        assert!(has_priority(&old, &new, Some("7/d")));
        assert!(!has_priority(&new, &old, Some("7/d")));
        assert!(!has_priority(&old, &old, Some("7/d")), "itself");
        let twin = relay("c", 1, "s", Some("7/d"));
        assert!(
            has_priority(&old, &twin, Some("7/d")) && !has_priority(&twin, &old, Some("7/d")),
            "made at once"
        );
    }

    #[test]
    fn another_slot_or_database_is_no_conflict() {
        let new = relay("b", 2, "s", Some("7/d"));
        assert!(!has_priority(&relay("a", 1, "other", Some("7/d")), &new, Some("7/d")));
        assert!(!has_priority(&relay("a", 1, "s", Some("8/d")), &new, Some("7/d")));
        assert!(!has_priority(&relay("a", 1, "s", None), &new, None), "nothing is known of either");
    }
}
