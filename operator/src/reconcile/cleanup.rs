//! What is done before a resource may go: its relay stops, then what its policies say is deleted, and nothing else. Each side needs its
//! own Secrets and its own part of the specification only: one that cannot be used keeps nothing of the other side. A database or a Kafka
//! that is gone does not hold the resource forever.

use std::error::Error;
use std::time::Duration;

use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::jiff::Timestamp;
use kube::ResourceExt;
use kube::api::DeleteParams;
use outbox_relay::config;
use outbox_relay::error::{ErrorKind, RelayError};
use outbox_relay::postgres::checkpoint;
use outbox_relay::postgres::grants;
use outbox_relay::postgres::slot;
use sqlx::postgres::PgConnection;
use sqlx::{AssertSqlSafe, Connection};

use super::deletion_rights::not_permitted;
use super::owned_topics::{self, OwnedTopics};
use super::resolve::{self, Readers, without_references};
use super::{Context, publication, sink, source, workload};
use crate::desired::configuration::{self, identity};
use crate::resource::{DeletionPolicy, OutboxRelay};

/// Set to "true" on a resource that is being deleted, it lets the resource go at once, whatever is left outside.
pub const FORCE: &str = "outbox.dev/force-delete";
/// So long a resource is held when what its policies say cannot be done: longer than a restart or a failover takes, and no
/// namespace stays for a day because a database is gone.
pub const GIVE_UP_AFTER_SECONDS: i64 = 30 * 60;

/// How long one try may take: a lock or a silent server must not keep a resource forever, and one that is deleted by force is tried
/// once more, for a moment.
pub fn within(relay: &OutboxRelay) -> Duration {
    if is_forced(relay) { Duration::from_secs(5) } else { Duration::from_secs(30) }
}

fn is_forced(relay: &impl ResourceExt) -> bool {
    relay.annotations().get(FORCE).is_some_and(|value| value == "true")
}

/// Whether the resource goes, whatever is left outside.
pub fn is_given_up(relay: &impl ResourceExt, now: Timestamp) -> bool {
    let forced = is_forced(relay);
    let since = relay.meta().deletion_timestamp.as_ref();
    forced || since.is_some_and(|since| now.as_second() - since.0.as_second() > GIVE_UP_AFTER_SECONDS)
}

/// Why the resource is still there.
#[derive(Debug, thiserror::Error)]
pub enum Pending {
    /// Its relay still holds the slot.
    #[error("waiting for the relay to release slot {0}")]
    SlotHeld(String),
    /// A Secret, a reference or the specification cannot be used any more, or not now.
    #[error("{what} cannot be deleted: {problem}")]
    Unresolved {
        /// What is to be deleted.
        what: &'static str,
        /// Names the Secret, the object or the field.
        problem: String,
    },
    /// The role lacks a right.
    #[error("{0}")]
    NotPermitted(String),
    /// The database refused.
    #[error("database: {0}")]
    Database(RelayError),
    /// Kafka refused.
    #[error(transparent)]
    Kafka(#[from] crate::topics::KafkaError),
    /// Something takes too long: a lock, or a server that is silent.
    #[error("{what}: not deleted within {within:?}; a lock may be held, or a server is silent")]
    Late {
        /// What is to be deleted.
        what: &'static str,
        /// So long it was tried.
        within: Duration,
    },
    /// Both sides have a reason.
    #[error("{0}; {1}")]
    Both(Box<Pending>, Box<Pending>),
    /// The API server refused.
    #[error("Kubernetes: {0}")]
    Kubernetes(#[from] kube::Error),
}

impl From<RelayError> for Pending {
    fn from(error: RelayError) -> Self {
        Pending::Database(error)
    }
}

/// What is deleted of each side, as messages say it.
const OF_POSTGRES: &str = "slot and publication";
const OF_KAFKA: &str = "topics";

/// Does everything that has to be done before the resource may go. Doing it twice is no error.
pub(super) async fn clean_up(relay: &OutboxRelay, context: &Context) -> Result<(), Pending> {
    stop_relay(relay, context).await?;
    let mut readers = Readers::new(relay, context);
    let cleaned = clean_sides(relay, context, &mut readers).await;
    // The next try needs it, when the Secrets are gone by then.
    resolve::remember(relay, context, readers.into_used());
    cleaned
}

async fn clean_sides(
    relay: &OutboxRelay,
    context: &Context,
    readers: &mut Readers<'_>,
) -> Result<(), Pending> {
    // A silent server of one side leaves time for the other.
    let within = within(relay) / 2;
    let late = |what| Err(Pending::Late { what, within });
    let database = tokio::time::timeout(within, clean_database(relay, context, readers)).await;
    let database = database.unwrap_or_else(|_| late(OF_POSTGRES));
    if matches!(database, Err(Pending::SlotHeld(_))) {
        // The relay still writes to its topics.
        return database;
    }
    let topics = tokio::time::timeout(within, clean_topics(relay, context, readers)).await;
    match (database, topics.unwrap_or_else(|_| late(OF_KAFKA))) {
        (Err(database), Err(topics)) => Err(Pending::Both(database.into(), topics.into())),
        (database, topics) => database.and(topics),
    }
}

/// In a namespace that is being deleted the operator's Role there may go before the resource: then it may not look at the Deployment,
/// which is deleted with the namespace, and the slot tells whether a relay still runs.
async fn stop_relay(relay: &OutboxRelay, context: &Context) -> Result<(), kube::Error> {
    let deployments = context.namespaced::<Deployment>(relay);
    match workload::delete_own(&context.metrics, &deployments, relay, DeleteParams::foreground()).await {
        Err(kube::Error::Api(refusal)) if refusal.code == 403 => Ok(()),
        stopped => stopped,
    }
}

async fn clean_database(
    relay: &OutboxRelay,
    context: &Context,
    readers: &mut Readers<'_>,
) -> Result<(), Pending> {
    let name = &relay.spec.source.postgres.publication.name;
    let (drops_slot, drops_publication) = (relay.spec.deletes_slot(), relay.spec.deletes_publication());
    if !drops_slot && !drops_publication {
        return Ok(());
    }
    let (postgres, secrets) = readers.postgres().await.map_err(|error| unresolved(OF_POSTGRES, &error))?;
    let resolved = without_references(relay, Some(postgres), None);
    let source = configuration::source(&resolved, &secrets.user);
    let source = source.map_err(|invalid| unresolved(OF_POSTGRES, &invalid))?;
    let admin = source::administrator(relay, &source, &secrets);
    let mut database = source::connect(context, &admin, &secrets).await?;
    let sql = &mut database.sql;
    if drops_slot {
        end_slot(sql, &admin, relay).await?;
    }
    if drops_publication && publication::is_own(sql, name, relay).await? {
        if let Some(grant) = grants::to_drop_publication(sql, name, &admin.user).await? {
            return Err(Pending::NotPermitted(not_permitted(&admin, &grant)));
        }
        publication::drop(sql, name).await?;
    }
    drop(database.sql.close().await);
    Ok(())
}

async fn clean_topics(
    relay: &OutboxRelay,
    context: &Context,
    readers: &mut Readers<'_>,
) -> Result<(), Pending> {
    let owned = OwnedTopics::of(relay);
    let is_declared = |name: &str| relay.spec.topics.iter().any(|topic| topic.name == name);
    let to_delete: Vec<_> = owned
        .topics
        .iter()
        .filter(|topic| topic.deletion_policy == DeletionPolicy::Delete && is_declared(&topic.name))
        .collect();
    if to_delete.is_empty() {
        return Ok(());
    }
    let (kafka, secrets) = readers.kafka().await.map_err(|error| unresolved(OF_KAFKA, &error))?;
    let resolved = without_references(relay, None, Some(kafka));
    let sink = configuration::sink(&resolved).map_err(|invalid| unresolved(OF_KAFKA, &invalid))?;
    let cluster = sink::connect(relay, context, &sink, &secrets).await;
    let cluster = cluster.map_err(|problem| Pending::Unresolved { what: OF_KAFKA, problem })?;
    for topic in to_delete {
        owned_topics::delete(relay, context, &cluster, owned.cluster_identity.as_deref(), topic).await?;
    }
    Ok(())
}

fn unresolved(what: &'static str, problem: &dyn Error) -> Pending {
    Pending::Unresolved { what, problem: problem.to_string() }
}

/// Drops the slot where it is the relay's own and the relay does not read it any more.
async fn end_slot(
    sql: &mut PgConnection,
    source: &config::Source,
    resource: &OutboxRelay,
) -> Result<(), Pending> {
    let relay = &identity(resource);
    match ownership(sql, source, relay, &configuration::owner(resource)).await? {
        Ownership::Ours => {}
        Ownership::NotRegistered => return Ok(()),
        Ownership::OtherOwner(owner) => {
            let slot = &source.slot.name;
            tracing::warn!(
                %slot,
                relay,
                owner,
                "kept the slot: the relay that last held it belongs to another resource, or to none"
            );
            return Ok(());
        }
    }
    let state = slot::state(sql, &source.slot.name).await.map_err(RelayError::from)?;
    let state = state.filter(|state| state.database.as_ref() == Some(&source.database));
    if state.is_some_and(|state| state.active_pid.is_some()) {
        return Err(Pending::SlotHeld(source.slot.name.clone()));
    }
    if let Some(grant) = grants::to_drop_slot(sql, source, &source.user).await? {
        return Err(Pending::NotPermitted(not_permitted(source, &grant)));
    }
    Ok(drop_slot(sql, source, relay).await?)
}

/// Whose the slot is, as the checkpoint says.
enum Ownership {
    /// A relay of this resource was the last that held it, or registered for it.
    Ours,
    /// No relay of this resource's name has registered for the slot: what it never had is not its own to drop.
    NotRegistered,
    /// The resource was declared again, in this Kubernetes cluster or in another, and that resource's relay has held the slot since.
    OtherOwner(String),
}

async fn ownership(
    sql: &mut PgConnection,
    source: &config::Source,
    relay: &str,
    own: &str,
) -> Result<Ownership, RelayError> {
    let table = source.table.sibling(checkpoint::TABLE);
    // A table without migration 0006 has no such column.
    let select = format!("SELECT to_jsonb(c) ->> 'owner' FROM {table} AS c WHERE relay = $1 AND slot = $2");
    let select = sqlx::query_scalar(AssertSqlSafe(select)).bind(relay).bind(&source.slot.name);
    let row: Result<Option<Option<String>>, RelayError> =
        select.fetch_optional(sql).await.map_err(RelayError::from);
    match row {
        // The table is gone, and with it everything that rests on it.
        Err(error) if error.kind == ErrorKind::TableMissing => Ok(Ownership::NotRegistered),
        Err(error) => Err(error),
        Ok(None) => Ok(Ownership::NotRegistered),
        Ok(Some(Some(owner))) if owner != own => Ok(Ownership::OtherOwner(owner)),
        Ok(Some(_)) => Ok(Ownership::Ours),
    }
}

/// The slot, if it is one of this database, and the row by which retention waits for this relay. Slots are the server's: another database's
/// relay may use the name of one that was lost. The row is deleted first, in a transaction that ends after the slot is gone: where one of
/// them cannot go, both stay, and the next try finds them.
async fn drop_slot(sql: &mut PgConnection, source: &config::Source, relay: &str) -> Result<(), RelayError> {
    let slot = &source.slot.name;
    let mut transaction = sql.begin().await?;
    let table = source.table.sibling(checkpoint::TABLE);
    let delete = format!("DELETE FROM {table} WHERE relay = $1 AND slot = $2");
    sqlx::query(AssertSqlSafe(delete)).bind(relay).bind(slot).execute(&mut *transaction).await?;
    sqlx::query(
        "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots
         WHERE slot_name = $1 AND database = current_database()",
    )
    .bind(slot)
    .execute(&mut *transaction)
    .await?;
    transaction.commit().await?;
    tracing::info!(%slot, relay, "dropped the slot, and deregistered the relay");
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_deletion_ends_after_half_an_hour_or_when_it_is_forced() {
        let relay = |deleted: Option<&str>, force: &str| -> OutboxRelay {
            serde_json::from_value(json!({
                "apiVersion": "outbox.dev/v1beta1",
                "kind": "OutboxRelay",
                "metadata": {"name": "r", "deletionTimestamp": deleted, "annotations": {FORCE: force}},
                "spec": {
                    "source": {"postgres": {
                        "host": "h", "database": "d", "credentialsSecretRef": {"name": "s"},
                        "publication": {"name": "p"}, "slot": {"name": "s"},
                    }},
                    "sink": {"kafka": {"bootstrapServers": "k:1"}},
                },
            }))
            .unwrap()
        };
        let now: Timestamp = "2026-01-01T12:00:00Z".parse().unwrap();
        assert!(!is_given_up(&relay(None, "false"), now));
        assert!(!is_given_up(&relay(Some("2026-01-01T11:30:00Z"), "false"), now));
        assert!(is_given_up(&relay(Some("2026-01-01T11:29:59Z"), "false"), now));
        assert!(is_given_up(&relay(Some("2026-01-01T12:00:00Z"), "true"), now));
    }
}
