//! References to the custom resources of other operators: CloudNativePG's Cluster, and Strimzi's Kafka and KafkaUser. They are read again in
//! each full reconciliation, and replaced by the fields that they stand for. Everything after that, the checks of identity and ownership
//! above all, is the same as for a resource that has the fields itself.

pub mod cloudnative_pg;
mod reader;
pub mod strimzi;

use std::fmt::{self, Display};
use std::sync::Arc;

use kube::ResourceExt;

pub use self::reader::{Kind, LookError, Reader, ReferenceError};
use crate::resource::{KafkaSink, OutboxRelay, PostgresSource};

/// What `relay` says of PostgreSQL, without references.
///
/// # Errors
/// What is referenced cannot be used, or not be read now.
pub async fn postgres(relay: &OutboxRelay, reader: &Reader<'_>) -> Result<PostgresSource, LookError> {
    let mut postgres = relay.spec.source.postgres.clone();
    if let Some(reference) = postgres.cluster_ref.take() {
        let namespace = relay.namespace().unwrap_or_default();
        let cluster = reader.read(&cloudnative_pg::CLUSTER, &namespace, &reference.name).await?;
        cloudnative_pg::fill_in(&mut postgres, &reference, &cluster, &namespace)?;
        check_database(relay, &postgres)?;
    }
    Ok(postgres)
}

/// What `relay` says of Kafka, without references.
///
/// # Errors
/// What is referenced cannot be used, or not be read now.
pub async fn kafka(relay: &OutboxRelay, reader: &Reader<'_>) -> Result<KafkaSink, LookError> {
    let mut kafka = relay.spec.sink.kafka.clone();
    let namespace = relay.namespace().unwrap_or_default();
    if let Some(reference) = kafka.cluster_ref.take() {
        let place = reference.namespace.as_deref().unwrap_or(&namespace);
        let cluster = reader.read(&strimzi::KAFKA, place, &reference.name).await?;
        strimzi::fill_in_cluster(&mut kafka, &reference, &cluster)?;
    }
    if let Some(reference) = kafka.user_ref.take() {
        let user = reader.read(&strimzi::KAFKA_USER, &namespace, &reference.name).await?;
        strimzi::fill_in_user(&mut kafka, &reference, &user)?;
    }
    Ok(kafka)
}

/// Where a reference gives the database, the rule that it cannot change is kept here: the slot belongs to it.
fn check_database(relay: &OutboxRelay, postgres: &PostgresSource) -> Result<(), ReferenceError> {
    let identity = relay.status.as_ref().and_then(|status| status.database_identity.as_deref());
    // `<system identifier>/<database>`.
    let before = identity.and_then(|identity| identity.split_once('/')).map(|(_, database)| database);
    match (before, &postgres.database) {
        (Some(before), Some(now)) if before != now => Err(ReferenceError::Unusable(format!(
            "the Cluster's database is {now} now, and was {before}; the database cannot change, because the slot belongs to it: make another \
             OutboxRelay"
        ))),
        _ => Ok(()),
    }
}

/// What a resource says of each side without references, as it was when they were read last.
#[derive(Clone, Default)]
pub struct LastRead {
    /// Of PostgreSQL.
    pub postgres: Option<Arc<PostgresSource>>,
    /// Of Kafka.
    pub kafka: Option<Arc<KafkaSink>>,
}

/// What the references of a resource lead to, for its condition; empty where it has none.
pub struct Summary<'a> {
    /// The resource as it is written.
    pub relay: &'a OutboxRelay,
    /// Without references, where they can be used.
    pub postgres: Option<&'a PostgresSource>,
    /// Without references, where they can be used.
    pub kafka: Option<&'a KafkaSink>,
}

impl Display for Summary<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let spec = &self.relay.spec;
        let postgres = self.postgres.filter(|_| spec.source.postgres.cluster_ref.is_some());
        let kafka = self.kafka.filter(|_| spec.sink.kafka.cluster_ref.is_some());
        let mut separator = "";
        if let Some(PostgresSource { host: Some(host), database: Some(database), port, .. }) = postgres {
            write!(f, "PostgreSQL is database {database} of {host}:{port}")?;
            separator = "; ";
        }
        if let Some(KafkaSink { bootstrap_servers: Some(brokers), .. }) = kafka {
            write!(f, "{separator}Kafka is {brokers}")?;
        }
        Ok(())
    }
}
