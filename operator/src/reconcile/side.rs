//! The output of the steps for the two sides, PostgreSQL and Kafka.

use crate::topics::Cluster;

/// How far one side, PostgreSQL or Kafka, is. The conditions of its step say why.
pub(super) enum Side<T> {
    /// A relay can be started, with this.
    Ready(T),
    /// Nothing is wrong: the status has to name the server first, so that of two resources for one slot or topic one is seen. Nothing is
    /// created until then.
    Registering,
    /// A relay cannot be started.
    NotReady,
}

/// The sides whose server could not be used now. Their part of a configuration that pods have already may not change.
#[derive(Clone, Copy)]
pub(super) struct Unusable {
    pub(super) source: bool,
    pub(super) sink: bool,
}

/// What can check the cluster of a resource.
pub(super) enum KafkaAccess {
    /// The operator, and the relay.
    Operator(Cluster),
    /// The operator has no credentials; the relay reports whether it can use the cluster.
    RelayOnly,
}
