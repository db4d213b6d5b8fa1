//! Why a condition is what it is: one word, from one table, which the documents are made from.

use std::fmt::{self, Display, Write};

use outbox_relay::error::{self, Action};
use outbox_relay::status::failover_readiness::FailoverReason;

use super::state::Status;

/// A condition's reason.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reason {
    /// All is well.
    Streaming,
    /// References lead somewhere.
    Resolved,
    /// A server answers.
    Connected,
    /// It is there.
    Present,
    /// Topics are as declared.
    AsDeclared,
    /// All pods are ready, and as they are specified.
    Available,
    /// Some are not.
    RollingOut,
    /// They do not become ready.
    ProgressDeadlineExceeded,
    /// Nothing is suspended.
    Running,
    /// `spec.suspend`, and no pod is left.
    Suspended,
    /// `spec.suspend`, and pods end.
    Suspending,
    /// Something before it failed.
    NotReached,
    /// Other resources have to be able to see which database or cluster it is.
    Registering,
    /// A Secret or a key of it is missing.
    SecretUnusable,
    /// Another operator's resource that is referenced is missing, or does not have what is needed.
    ReferenceUnusable,
    /// Another operator has not finished with a resource that is referenced.
    ReferenceNotReady,
    /// The relay refuses a value.
    SpecificationInvalid,
    /// An older resource has slot or topic.
    ResourceConflict,
    /// The slot is not made yet.
    WaitingForRelay,
    /// The server has no room for another slot.
    NoFreeSlot,
    /// Kafka does not answer.
    KafkaUnreachable,
    /// The client refuses its settings.
    KafkaSettingsUnusable,
    /// Only the relay's pods have credentials.
    NoCredentials,
    /// Something was to be done about a topic and was not.
    TopicFailed,
    /// A topic cannot be made what is declared.
    NotAsDeclared,
    /// Another manager changes a topic's configuration.
    TopicContested,
    /// The API server refuses the relay's objects.
    NotMade,
    /// The API server does not answer, or fails.
    KubernetesUnavailable,
    /// An object of that name has another owner.
    NameTaken,
    /// The API server refuses to create pods.
    PodsRefused,
    /// Its pods are not ready.
    NoPodReady,
    /// There is no pod.
    NoPod,
    /// It is in progress and needs no action.
    NotYet,
    /// Pods do not answer the operator.
    RelayUnreachable,
    /// No relay reports it.
    NotReported,
    /// The resource is being deleted, and something has to be done before.
    Deleting,
    /// One of the relay's own.
    Relay(error::ErrorKind),
    /// One of the relay's own, about failover.
    Failover(FailoverReason),
    /// In the words of a relay or of Kubernetes.
    External(String),
}

/// Those of the operator: the conditions that have it, with their status, and what it means or what to do.
const TABLE: [(Reason, &str, &str); 36] = [
    (Reason::Streaming, "`Streaming`, `Ready` True", "a relay delivers, by its own account"),
    (Reason::Resolved, "`ReferencesResolved` True", ""),
    (Reason::Connected, "`DatabaseReachable`, `KafkaReachable` True", ""),
    (Reason::Present, "`PublicationReady`, `SlotReady` True", ""),
    (Reason::AsDeclared, "`TopicsReady` True", ""),
    (Reason::Available, "`WorkloadAvailable` True", ""),
    (Reason::Running, "`Suspended` False", ""),
    (
        Reason::Suspended,
        "`Suspended`, `Ready` True; `WorkloadAvailable`, `Streaming` False",
        "`spec.suspend` is true: no pods run, and PostgreSQL retains WAL for the slot",
    ),
    (
        Reason::Suspending,
        "`Suspended`, `Ready` False",
        "nothing: `spec.suspend` is true, and pods are about to end, whatever other problems exist",
    ),
    (
        Reason::RollingOut,
        "`WorkloadAvailable` False",
        "nothing at first: pods of this specification replace the others. If it lasts, the message has the problem of a new pod",
    ),
    (
        Reason::ProgressDeadlineExceeded,
        "`WorkloadAvailable` False",
        "pods of this specification did not become ready within the Deployment's `progressDeadlineSeconds`, 10 minutes; those of the earlier one keep \
         running. The message has the problem of a new pod: correct the specification, or take the change back",
    ),
    (
        Reason::Registering,
        "`PublicationReady`, `SlotReady`, `TopicsReady` Unknown",
        "nothing: the resource has just written into its status which database or Kafka cluster it uses, so that of two resources for one slot or \
         topic one is seen; the rest follows within a second",
    ),
    (Reason::NotReached, "any, Unknown", "something before it failed: look at the conditions that are False"),
    (
        Reason::SecretUnusable,
        "`ReferencesResolved` False",
        "the message names Secret and key: put it right; it is read again",
    ),
    (
        Reason::ReferenceUnusable,
        "`ReferencesResolved` False",
        "a Cluster, Kafka or KafkaUser that `clusterRef`, `userRef` name is missing, may not be read, or does not have what is needed: the message \
         says which, and what to do",
    ),
    (
        Reason::ReferenceNotReady,
        "`ReferencesResolved` False",
        "nothing at first: CloudNativePG or Strimzi has not finished with the resource that the message names. Where it lasts, look at that resource",
    ),
    (
        Reason::SpecificationInvalid,
        "`ReferencesResolved` False",
        "the relay refuses a value, the pod template overrides what it may not, or the resource's name cannot work: the message names the field",
    ),
    (
        Reason::ResourceConflict,
        "`SlotReady`, `TopicsReady` False",
        "an older resource has this slot of this database, or this topic of this Kafka cluster, by whatever name it reaches them: \
         name another here, or delete one of the two resources",
    ),
    (
        Reason::NoFreeSlot,
        "`SlotReady` False",
        "all of the server's slots are in use: drop one that is not read, or raise `max_replication_slots`, which needs a restart",
    ),
    (Reason::WaitingForRelay, "`SlotReady` False", "nothing: the relay makes the slot when it first starts"),
    (
        Reason::KafkaUnreachable,
        "`KafkaReachable` False",
        "check that Kafka runs, and that `sink.kafka` leads to it. Rejected credentials and certificates have another reason, `KafkaAuthenticationFailed`",
    ),
    (Reason::KafkaSettingsUnusable, "`KafkaReachable` False", "the message has the client's words"),
    (
        Reason::NoCredentials,
        "`KafkaReachable` Unknown",
        "nothing: the credentials for Kafka are in the relay's pods only, so the operator neither checks nor creates topics; `Streaming` tells \
         whether the relay reaches Kafka",
    ),
    (
        Reason::TopicFailed,
        "`TopicsReady` False",
        "the message names the topic and Kafka's code; the operator's Kafka user needs DESCRIBE, DESCRIBE_CONFIGS, ALTER, ALTER_CONFIGS and CREATE",
    ),
    (
        Reason::NotAsDeclared,
        "`TopicsReady` False",
        "it has more partitions or other replicas than declared, which the operator does not change: declare what there is, or \
         move replicas with Kafka's tools",
    ),
    (
        Reason::TopicContested,
        "`TopicsReady` False",
        "something else, for example Strimzi's Topic Operator, sets a declared key of a topic back each time the operator sets it: declare \
         the key in one place. The operator sets it once a minute at most; the condition ends ten minutes after it was last set back",
    ),
    (
        Reason::NotMade,
        "`WorkloadAvailable` False",
        "the API server refuses one of the relay's objects; the message has its answer",
    ),
    (
        Reason::KubernetesUnavailable,
        "`WorkloadAvailable` Unknown",
        "the API server did not answer, or failed, while the operator applied the relay's objects; the operator tries again, and pods that run \
         keep running. The message has its answer",
    ),
    (
        Reason::NameTaken,
        "`WorkloadAvailable` False",
        "an object of the name that the relay's has is there, and is not this resource's: the message names it. Delete it, or give the \
         resource another name. Nothing of it was changed",
    ),
    (
        Reason::PodsRefused,
        "`WorkloadAvailable` False",
        "the message has what the API server says to Kubernetes when it creates a pod: a ResourceQuota is used up, or Pod Security, a security context \
         constraint of OpenShift or an admission webhook refuses the pod. Raise the quota, or change `spec.relay` or the policy; Kubernetes tries again",
    ),
    (
        Reason::NoPodReady,
        "`WorkloadAvailable` False",
        "`Streaming` has the relay's own words; Kubernetes' own reasons, such as `Unschedulable` or `ImagePullBackOff`, stand here as they are",
    ),
    (Reason::NoPod, "`Streaming` False", "see `WorkloadAvailable`"),
    (
        Reason::NotYet,
        "`Streaming`, `WorkloadAvailable` False",
        "nothing, where no other condition is False: the objects are about to be made, or a relay has begun or waits for another to end; the message has its phase",
    ),
    (
        Reason::RelayUnreachable,
        "`Streaming` Unknown",
        "the operator has to reach port 9100 of the pods: look for a NetworkPolicy",
    ),
    (
        Reason::NotReported,
        "`FailoverReady` Unknown",
        "nothing, while no relay is active; otherwise its image is older than this condition",
    ),
    (
        Reason::Deleting,
        "`Ready` False",
        "the message says what deletion waits for: [Deletion](OPERATOR.md#deletion)",
    ),
];

/// What a condition that is not True is waiting for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outlook {
    /// Time: it is a step on the way, or is tried again.
    Passes,
    /// A person: nothing changes until something is corrected.
    NeedsAction,
}

impl Reason {
    /// Whether a condition that is not True for this reason becomes True without your help. The relay's reasons go by what the relay does
    /// about them.
    pub fn outlook(&self) -> Outlook {
        match self {
            Reason::Relay(reason) => match reason.action() {
                Action::Retry | Action::StandBy => Outlook::Passes,
                Action::Stop => Outlook::NeedsAction,
            },
            // A node may be on its way.
            Reason::External(word) if word == "Unschedulable" => Outlook::Passes,
            Reason::KafkaUnreachable
            | Reason::KubernetesUnavailable
            | Reason::ReferenceNotReady
            | Reason::RelayUnreachable
            | Reason::NoPod
            | Reason::NoPodReady
            | Reason::NotReached => Outlook::Passes,
            step if step.passes() => Outlook::Passes,
            _ => Outlook::NeedsAction,
        }
    }

    /// Whether this is one of the steps of a normal start, stop or change, about which there is nothing to do.
    pub fn passes(&self) -> bool {
        matches!(
            self,
            Reason::WaitingForRelay
                | Reason::Registering
                | Reason::NotYet
                | Reason::RollingOut
                | Reason::Suspended
                | Reason::Suspending
                | Reason::Deleting
        )
    }
}

impl Display for Reason {
    /// API: the reason of a condition, and of the Event about readiness.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Reason::Streaming => "Streaming",
            Reason::Resolved => "Resolved",
            Reason::Connected => "Connected",
            Reason::Present => "Present",
            Reason::AsDeclared => "AsDeclared",
            Reason::Available => "Available",
            Reason::RollingOut => "RollingOut",
            Reason::ProgressDeadlineExceeded => "ProgressDeadlineExceeded",
            Reason::Running => "Running",
            Reason::Suspended => "Suspended",
            Reason::Suspending => "Suspending",
            Reason::NotReached => "NotReached",
            Reason::Registering => "Registering",
            Reason::SecretUnusable => "SecretUnusable",
            Reason::ReferenceUnusable => "ReferenceUnusable",
            Reason::ReferenceNotReady => "ReferenceNotReady",
            Reason::SpecificationInvalid => "SpecificationInvalid",
            Reason::ResourceConflict => "ResourceConflict",
            Reason::WaitingForRelay => "WaitingForRelay",
            Reason::NoFreeSlot => "NoFreeSlot",
            Reason::KafkaUnreachable => "KafkaUnreachable",
            Reason::KafkaSettingsUnusable => "KafkaSettingsUnusable",
            Reason::NoCredentials => "NoCredentials",
            Reason::TopicFailed => "TopicFailed",
            Reason::NotAsDeclared => "NotAsDeclared",
            Reason::TopicContested => "TopicContested",
            Reason::NotMade => "NotMade",
            Reason::KubernetesUnavailable => "KubernetesUnavailable",
            Reason::NameTaken => "NameTaken",
            Reason::PodsRefused => "PodsRefused",
            Reason::NoPodReady => "NoPodReady",
            Reason::NoPod => "NoPod",
            Reason::NotYet => "NotYet",
            Reason::RelayUnreachable => "RelayUnreachable",
            Reason::NotReported => "NotReported",
            Reason::Deleting => "Deleting",
            Reason::Relay(kind) => kind.name(),
            Reason::Failover(reason) => reason.name(),
            Reason::External(word) => word,
        })
    }
}

impl From<error::ErrorKind> for Reason {
    fn from(kind: error::ErrorKind) -> Self {
        Reason::Relay(kind)
    }
}

impl From<FailoverReason> for Reason {
    fn from(reason: FailoverReason) -> Self {
        Reason::Failover(reason)
    }
}

const HEAD: &str = "# Reasons of an OutboxRelay's conditions

Written by `cargo xtask crds` from the program. The other reasons of `DatabaseReachable`, `PublicationReady`, `SlotReady` and
`Streaming` are the relay's: [OPERATIONS.md](OPERATIONS.md#reasons) says what to do about each.

| reason | condition | meaning, or what to do |
|---|---|---|
";

/// The table, as Markdown.
pub fn markdown() -> String {
    let mut table = HEAD.to_owned();
    for (reason, conditions, meaning) in &TABLE {
        // Writing to a String cannot fail.
        let _ = writeln!(table, "| `{reason}` | {conditions} | {meaning} |");
    }
    for reason in FailoverReason::ALL {
        let status = match reason.is_ready() {
            Some(true) => Status::True,
            Some(false) => Status::False,
            None => Status::Unknown,
        };
        let (name, status, remedy) = (reason.name(), status.as_str(), reason.remedy());
        let _ = writeln!(table, "| `{name}` | `FailoverReady` {status} | {remedy} |");
    }
    table
}
