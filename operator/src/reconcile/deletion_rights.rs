//! Whether what the deletion policies say could be done now. It is reported while the resource lives: a right that is missing when the
//! resource is deleted would keep it until the operator gives up.

use outbox_relay::config;
use outbox_relay::error::RelayError;
use outbox_relay::postgres::grants;
use sqlx::postgres::PgConnection;

use super::{Context, publication};
use crate::conditions::ConditionType;
use crate::events::EventType;
use crate::resource::{Condition, OutboxRelay};

/// A right that the deletion needs and the role lacks.
pub(super) struct MissingRight {
    /// To which its note is added. Delivery needs none of these rights, so no condition turns False.
    pub(super) condition: ConditionType,
    pub(super) note: String,
}

/// Which rights are missing; publishes each once. `source` has the role that will delete.
pub(super) async fn missing(
    relay: &OutboxRelay,
    context: &Context,
    sql: &mut PgConnection,
    source: &config::Source,
) -> Vec<MissingRight> {
    let checked = [
        (ConditionType::SlotReady, missing_for_slot(relay, sql, source).await),
        (ConditionType::PublicationReady, missing_for_publication(relay, sql, source).await),
    ];
    let mut missing = Vec::new();
    for (condition, grant) in checked {
        match grant {
            Ok(None) => {
                context.cache.with(relay, |cached| cached.missing_rights.remove(&condition));
            }
            Ok(Some(grant)) => {
                let right = MissingRight { condition, note: not_permitted(source, &grant) };
                publish(relay, context, &right);
                missing.push(right);
            }
            Err(error) => tracing::debug!(%error, "rights for the deletion were not looked at"),
        }
    }
    missing
}

async fn missing_for_slot(
    relay: &OutboxRelay,
    sql: &mut PgConnection,
    source: &config::Source,
) -> Result<Option<String>, RelayError> {
    if !relay.spec.deletes_slot() {
        return Ok(None);
    }
    grants::to_drop_slot(sql, source, &source.user).await
}

async fn missing_for_publication(
    relay: &OutboxRelay,
    sql: &mut PgConnection,
    source: &config::Source,
) -> Result<Option<String>, RelayError> {
    let name = &source.publication.name;
    if !relay.spec.deletes_publication() || !publication::is_own(sql, name, relay).await? {
        return Ok(None);
    }
    grants::to_drop_publication(sql, name, &source.user).await
}

/// Publishes an Event, unless this process did so before, or its status, which another process may have written, already says it.
fn publish(relay: &OutboxRelay, context: &Context, MissingRight { condition, note }: &MissingRight) {
    let before = context.cache.with(relay, |cached| cached.missing_rights.insert(*condition, note.clone()));
    let type_ = condition.to_string();
    let says_so = |before: &Condition| before.type_ == type_ && before.message.contains(note);
    let is_in_status = relay.status.iter().flat_map(|status| &status.conditions).any(says_so);
    if before.as_ref() != Some(note) && !is_in_status {
        context.publish_event(relay, EventType::Warning, "DeletionNotPermitted", note);
    }
}

/// Which role lacks what, and what to do.
pub(super) fn not_permitted(source: &config::Source, grant: &str) -> String {
    let (role, database) = (&source.user, &source.database);
    format!(
        "role {role} lacks rights for deletionPolicy Delete; run in database {database}: {grant}; or name a role that has them in \
         adminCredentialsSecretRef, or set the policy to Retain"
    )
}
