//! One condition: its type, and what was found about it.

use std::fmt::{self, Display};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use outbox_relay::error::RelayError;

use super::field_names::of_the_resource;
use super::reason::Reason;

/// A type of condition.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum ConditionType {
    /// Everything else, summed up.
    Ready,
    /// The Secrets are there, and the specification means something.
    ReferencesResolved,
    /// PostgreSQL answers, and can be used.
    DatabaseReachable,
    /// Kafka answers.
    KafkaReachable,
    /// The publication is there and suits.
    PublicationReady,
    /// The slot is there and suits.
    SlotReady,
    /// The topics are as they are declared.
    TopicsReady,
    /// A pod runs and is ready.
    WorkloadAvailable,
    /// The relay delivers, by its own account.
    Streaming,
    /// Delivery would continue if a standby of the database were promoted.
    FailoverReady,
    /// Nothing is meant to run.
    Suspended,
    /// kstatus: what is missing comes without help.
    Reconciling,
    /// kstatus: what is missing does not come without help.
    Stalled,
}

impl ConditionType {
    /// All of them, in the order in which things are done.
    pub const ALL: [ConditionType; 13] = [
        ConditionType::Ready,
        ConditionType::ReferencesResolved,
        ConditionType::DatabaseReachable,
        ConditionType::KafkaReachable,
        ConditionType::PublicationReady,
        ConditionType::SlotReady,
        ConditionType::TopicsReady,
        ConditionType::WorkloadAvailable,
        ConditionType::Streaming,
        ConditionType::FailoverReady,
        ConditionType::Suspended,
        ConditionType::Reconciling,
        ConditionType::Stalled,
    ];

    /// Whether `Ready` depends on it. The others sum up what was found, or are about the future.
    pub(super) fn counts_for_ready(self) -> bool {
        !matches!(
            self,
            ConditionType::Ready
                | ConditionType::FailoverReady
                | ConditionType::Suspended
                | ConditionType::Reconciling
                | ConditionType::Stalled
        )
    }
}

impl Display for ConditionType {
    /// API: the type of the condition, and a label of a metric.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            ConditionType::Ready => "Ready",
            ConditionType::ReferencesResolved => "ReferencesResolved",
            ConditionType::DatabaseReachable => "DatabaseReachable",
            ConditionType::KafkaReachable => "KafkaReachable",
            ConditionType::PublicationReady => "PublicationReady",
            ConditionType::SlotReady => "SlotReady",
            ConditionType::TopicsReady => "TopicsReady",
            ConditionType::WorkloadAvailable => "WorkloadAvailable",
            ConditionType::Streaming => "Streaming",
            ConditionType::FailoverReady => "FailoverReady",
            ConditionType::Suspended => "Suspended",
            ConditionType::Reconciling => "Reconciling",
            ConditionType::Stalled => "Stalled",
        })
    }
}

/// The status of a condition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    /// It is as it should be.
    True,
    /// It is not.
    False,
    /// It could not be observed.
    Unknown,
}

impl Status {
    /// All of them.
    pub const ALL: [Status; 3] = [Status::True, Status::False, Status::Unknown];

    /// API: the status of the condition, and a label of a metric.
    pub fn as_str(self) -> &'static str {
        match self {
            Status::True => "True",
            Status::False => "False",
            Status::Unknown => "Unknown",
        }
    }
}

/// What was found about one type of condition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConditionState {
    /// Whether it is as it should be.
    pub status: Status,
    /// In one word.
    pub reason: Reason,
    /// In a sentence, with what to do.
    pub message: String,
}

impl ConditionState {
    /// It is as it should be.
    pub fn yes(reason: Reason, message: impl Into<String>) -> ConditionState {
        ConditionState::new(Status::True, reason, message.into())
    }

    /// It is not.
    pub fn no(reason: impl Into<Reason>, message: impl Into<String>) -> ConditionState {
        ConditionState::new(Status::False, reason.into(), message.into())
    }

    /// Whether a condition that was written says the same.
    pub fn is_written_as(&self, condition: &Condition) -> bool {
        condition.status == self.status.as_str()
            && condition.reason == self.reason.to_string()
            && condition.message == self.message
    }

    /// It could not be observed.
    pub fn unknown(reason: Reason, message: impl Into<String>) -> ConditionState {
        ConditionState::new(Status::Unknown, reason, message.into())
    }

    /// A message may come from the relay or its code.
    fn new(status: Status, reason: Reason, message: String) -> ConditionState {
        ConditionState { status, reason, message: of_the_resource(&message) }
    }
}

/// What keeps a database from being used.
impl From<&RelayError> for ConditionState {
    fn from(error: &RelayError) -> Self {
        ConditionState::no(error.kind, error.to_string())
    }
}
