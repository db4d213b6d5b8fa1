//! The meaning of Kafka's error codes, in one table for delivery reports, scans and metadata.

use rdkafka::error::RDKafkaErrorCode as Code;

use crate::error::{ErrorKind, RelayError};

/// What an error code is caused by. It decides what the relay does when a record gets the code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The record. If the broker refuses it when it is sent alone, it refuses it every time: the row is poison.
    Row,
    /// The topic, or the relay's permissions on it, which have to be changed.
    Topic,
    /// The brokers or the network. The record is retried until it is acknowledged.
    Cluster,
    /// The producer. The next session has a new one, scans the partition and sends the rows again.
    Producer,
}

struct CodeMeaning {
    fault: Fault,
    reason: ErrorKind,
    /// What happened and what to do, unless the name of the code is enough.
    meaning: &'static str,
}

/// The error kind of a code from Kafka or librdkafka.
///
/// librdkafka retries transient errors, so such a code arrives here only if it persists. A code that ends a producer is
/// handled by the next session, as every retry is: with new producers and a scan.
pub fn reason_of_kafka(code: Code) -> ErrorKind {
    meaning_of(code).reason
}

/// What the refusal of a record is caused by.
pub fn fault_of(code: Code) -> Fault {
    meaning_of(code).fault
}

/// The code with its meaning, for messages.
pub fn explained(code: Code) -> String {
    let meaning = meaning_of(code).meaning;
    if meaning.is_empty() { format!("{code:?}") } else { format!("{code:?}: {meaning}") }
}

/// The error for a failed operation, for example "Kafka refused a record for orders/3".
pub fn error_of(what_failed: &str, code: Code) -> RelayError {
    RelayError::new(reason_of_kafka(code), format!("{what_failed}: {}", explained(code)))
}

/// A code that is not in the table, as a newer librdkafka may add, is retried like a server error.
fn meaning_of(code: Code) -> CodeMeaning {
    let entries = [of_record, of_topic, of_producer, of_cluster, of_other_requests];
    let known = entries.iter().find_map(|known| known(code));
    let (fault, reason, meaning) = known.unwrap_or((Fault::Cluster, ErrorKind::DeliveryFailed, ""));
    CodeMeaning { fault, reason, meaning }
}

type Known = Option<(Fault, ErrorKind, &'static str)>;

fn of_record(code: Code) -> Known {
    let meaning = match code {
        Code::MessageSizeTooLarge | Code::InvalidMessageSize => {
            "it is larger than max.message.bytes of the topic, or message.max.bytes of the broker; raise the limit"
        }
        Code::MessageBatchTooLarge => "it is larger than segment.bytes of the topic; raise that setting",
        Code::InvalidRecord => {
            "the broker does not accept the record; a compacted topic requires a key, and a broker that validates \
             schemas requires a valid one"
        }
        Code::InvalidMessage => {
            "the broker found the record corrupt; brokers before 2.4 also report this for a record without a key in a \
             compacted topic"
        }
        Code::InvalidTimestamp => {
            "its timestamp is outside the limits message.timestamp.*.max.ms of the topic; compare the clocks of \
             brokers and relay"
        }
        Code::PolicyViolation => "a policy of the broker forbids it; ask the administrators of the cluster",
        Code::UnsupportedForMessageFormat => {
            "the topic's message format is too old for headers; raise message.format.version"
        }
        Code::InvalidTopic => {
            "Kafka does not accept records from clients for a topic of this name; correct the routing"
        }
        _ => return None,
    };
    Some((Fault::Row, ErrorKind::DeliveryFailed, meaning))
}

fn of_topic(code: Code) -> Known {
    let (reason, meaning) = match code {
        Code::TopicAuthorizationFailed => {
            (ErrorKind::KafkaPermissionDenied, "the relay lacks a permission on the topic")
        }
        Code::UnknownTopicOrPartition
        | Code::UnknownTopic
        | Code::UnknownTopicId
        | Code::UnknownPartition => (ErrorKind::TopicMissing, ""),
        Code::NotEnoughReplicas | Code::NotEnoughReplicasAfterAppend | Code::ISRInsufficient => (
            ErrorKind::DeliveryFailed,
            "fewer replicas are in sync than min.insync.replicas requires; start the brokers that have the other \
             replicas",
        ),
        Code::UnsupportedCompressionType => (
            ErrorKind::DeliveryFailed,
            "the broker does not support the codec of sink.compression; choose another",
        ),
        Code::LogTruncation => {
            (ErrorKind::KafkaLostRecords, "the partition was truncated before records that were read")
        }
        _ => return None,
    };
    Some((Fault::Topic, reason, meaning))
}

fn of_producer(code: Code) -> Known {
    let meaning = match code {
        Code::OutOfOrderSequenceNumber
        | Code::DuplicateSequenceNumber
        | Code::UnknownProducerId
        | Code::InvalidProducerEpoch
        | Code::InvalidProducerIdMapping
        | Code::InvalidTransactionalState
        | Code::ConcurrentTransactions
        | Code::ProducerFenced
        | Code::Fenced
        | Code::Fatal
        | Code::Inconsistent => "the broker no longer knows this producer, so a new one replaces it",
        Code::GaplessGuarantee | Code::InvalidDifferentRecord | Code::PurgeQueue | Code::PurgeInflight => {
            "Kafka refused another record of the same partition or request"
        }
        Code::NoOffset => {
            "it was acknowledged without an offset, which does not prove that Kafka has it; the relay scans the \
             partition for it"
        }
        Code::MessageTimedOut => "it was not acknowledged in time",
        Code::QueueFull => "the producer's queue is full",
        Code::InvalidRequiredAcks
        | Code::InvalidArgument
        | Code::InvalidConfig
        | Code::InvalidType
        | Code::State
        | Code::Conflict
        | Code::NotConfigured
        | Code::UnsupportedFeature
        | Code::UnsupportedVersion
        | Code::InvalidRequest => {
            "the broker does not support the relay's request; compare its version with docs/OUTBOX.md"
        }
        _ => return None,
    };
    Some((Fault::Producer, ErrorKind::DeliveryFailed, meaning))
}

fn of_cluster(code: Code) -> Known {
    let (reason, meaning) = match code {
        Code::ClusterAuthorizationFailed => (
            ErrorKind::KafkaPermissionDenied,
            "the relay may not write to any topic; brokers before 2.8 also require IdempotentWrite on the cluster",
        ),
        Code::TransactionalIdAuthorizationFailed => (ErrorKind::KafkaPermissionDenied, ""),
        // librdkafka requires a group name for a consumer and queries that group. The relay joins no group, so it needs
        // no permission.
        Code::GroupAuthorizationFailed => (ErrorKind::DeliveryFailed, ""),
        Code::Authentication
        | Code::SaslAuthenticationFailed
        | Code::UnsupportedSASLMechanism
        | Code::IllegalSASLState
        | Code::SecurityDisabled
        | Code::DelegationTokenAuthDisabled
        | Code::DelegationTokenNotFound
        | Code::DelegationTokenOwnerMismatch
        | Code::DelegationTokenRequestNotAllowed
        | Code::DelegationTokenAuthorizationFailed
        | Code::DelegationTokenExpired
        | Code::SSL => (ErrorKind::KafkaAuthenticationFailed, ""),
        Code::BrokerTransportFailure
        | Code::AllBrokersDown
        | Code::Resolve
        | Code::OperationTimedOut
        | Code::TimedOutQueue
        | Code::NetworkException
        | Code::RequestTimedOut
        | Code::BrokerNotAvailable
        | Code::LeaderNotAvailable
        | Code::ReplicaNotAvailable
        | Code::NotLeaderForPartition
        | Code::NotController
        | Code::RebootstrapRequired
        | Code::BrokerDestroy
        | Code::DestroyBroker
        | Code::UnknownBroker
        | Code::NodeUpdate => (ErrorKind::KafkaUnreachable, ""),
        Code::KafkaStorageError | Code::LogDirNotFound => {
            (ErrorKind::DeliveryFailed, "the broker cannot write to its disk; check the broker's log")
        }
        Code::ThrottlingQuotaExceeded => {
            (ErrorKind::DeliveryFailed, "a quota of the brokers is exceeded; raise it, or wait")
        }
        Code::Unknown => {
            (ErrorKind::DeliveryFailed, "the broker had an internal error; check the broker's log")
        }
        Code::FencedLeaderEpoch | Code::UnknownLeaderEpoch | Code::OffsetNotAvailable | Code::Retry => {
            (ErrorKind::DeliveryFailed, "a new leader is not ready yet")
        }
        _ => return None,
    };
    Some((Fault::Cluster, reason, meaning))
}

/// Codes that no request of the relay returns, or that are not errors of a record. Such a code is retried.
fn of_other_requests(code: Code) -> Known {
    match code {
        Code::Begin
        | Code::End
        | Code::EndAll
        | Code::NoError
        | Code::BadMessage
        | Code::BadCompression
        | Code::Fail
        | Code::CriticalSystemResource
        | Code::PartitionEOF
        | Code::FileSystem
        | Code::WaitingForCoordinator
        | Code::UnknownGroup
        | Code::InProgress
        | Code::PreviousInProgress
        | Code::ExistingSubscription
        | Code::AssignPartitions
        | Code::RevokePartitions
        | Code::UnknownProtocol
        | Code::NotImplemented
        | Code::Outdated
        | Code::WaitCache
        | Code::Interrupted
        | Code::KeySerialization
        | Code::ValueSerialization
        | Code::KeyDeserialization
        | Code::ValueDeserialization
        | Code::Partial
        | Code::ReadOnly
        | Code::NoEnt
        | Code::Underflow
        | Code::PollExceeded
        | Code::Application
        | Code::AssignmentLost
        | Code::Noop
        | Code::AutoOffsetReset
        | Code::OffsetOutOfRange
        | Code::StaleControllerEpoch
        | Code::OffsetMetadataTooLarge
        | Code::CoordinatorLoadInProgress
        | Code::CoordinatorNotAvailable
        | Code::NotCoordinator
        | Code::IllegalGeneration
        | Code::InconsistentGroupProtocol
        | Code::InvalidGroupId
        | Code::UnknownMemberId
        | Code::InvalidSessionTimeout
        | Code::RebalanceInProgress
        | Code::InvalidCommitOffsetSize
        | Code::TopicAlreadyExists
        | Code::InvalidPartitions
        | Code::InvalidReplicationFactor
        | Code::InvalidReplicaAssignment
        | Code::InvalidTransactionTimeout
        | Code::TransactionCoordinatorFenced
        | Code::OperationNotAttempted
        | Code::ReassignmentInProgress
        | Code::InvalidPrincipalType
        | Code::NonEmptyGroup
        | Code::GroupIdNotFound
        | Code::FetchSessionIdNotFound
        | Code::InvalidFetchSessionEpoch
        | Code::ListenerNotFound
        | Code::TopicDeletionDisabled
        | Code::StaleBrokerEpoch
        | Code::MemberIdRequired
        | Code::PreferredLeaderNotAvailable
        | Code::GroupMaxSizeReached
        | Code::FencedInstanceId
        | Code::EligibleLeadersNotAvailable
        | Code::ElectionNotNeeded
        | Code::NoReassignmentInProgress
        | Code::GroupSubscribedToTopic
        | Code::UnstableOffsetCommit
        | Code::ResourceNotFound
        | Code::DuplicateResource
        | Code::UnacceptableCredential
        | Code::InconsistentVoterSet
        | Code::InvalidUpdateVersion
        | Code::FeatureUpdateFailed
        | Code::PrincipalDeserializationFailure
        | Code::FencedMemberEpoch
        | Code::UnreleasedInstanceId
        | Code::UnsupportedAssignor
        | Code::StaleMemberEpoch
        | Code::UnknownSubscriptionId
        | Code::TelemetryTooLarge => Some((Fault::Cluster, ErrorKind::DeliveryFailed, "")),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use rdkafka::types::RDKafkaRespErr;

    use super::*;
    use crate::error::Action;

    #[test]
    fn every_code_has_the_right_fault_and_action() {
        let table = [
            (Code::TopicAuthorizationFailed, Fault::Topic, ErrorKind::KafkaPermissionDenied, Action::Stop),
            (
                Code::ClusterAuthorizationFailed,
                Fault::Cluster,
                ErrorKind::KafkaPermissionDenied,
                Action::Stop,
            ),
            // The relay joins no group.
            (Code::GroupAuthorizationFailed, Fault::Cluster, ErrorKind::DeliveryFailed, Action::Retry),
            (
                Code::SaslAuthenticationFailed,
                Fault::Cluster,
                ErrorKind::KafkaAuthenticationFailed,
                Action::Stop,
            ),
            (Code::Authentication, Fault::Cluster, ErrorKind::KafkaAuthenticationFailed, Action::Stop),
            (Code::SSL, Fault::Cluster, ErrorKind::KafkaAuthenticationFailed, Action::Stop),
            (Code::UnknownTopicOrPartition, Fault::Topic, ErrorKind::TopicMissing, Action::Stop),
            (Code::UnknownTopic, Fault::Topic, ErrorKind::TopicMissing, Action::Stop),
            (Code::UnknownPartition, Fault::Topic, ErrorKind::TopicMissing, Action::Stop),
            (Code::BrokerTransportFailure, Fault::Cluster, ErrorKind::KafkaUnreachable, Action::Retry),
            (Code::AllBrokersDown, Fault::Cluster, ErrorKind::KafkaUnreachable, Action::Retry),
            (Code::NotLeaderForPartition, Fault::Cluster, ErrorKind::KafkaUnreachable, Action::Retry),
            (Code::LogTruncation, Fault::Topic, ErrorKind::KafkaLostRecords, Action::Stop),
            (Code::MessageSizeTooLarge, Fault::Row, ErrorKind::DeliveryFailed, Action::Retry),
            (Code::MessageBatchTooLarge, Fault::Row, ErrorKind::DeliveryFailed, Action::Retry),
            (Code::InvalidRecord, Fault::Row, ErrorKind::DeliveryFailed, Action::Retry),
            (Code::InvalidTimestamp, Fault::Row, ErrorKind::DeliveryFailed, Action::Retry),
            (Code::PolicyViolation, Fault::Row, ErrorKind::DeliveryFailed, Action::Retry),
            (Code::UnsupportedForMessageFormat, Fault::Row, ErrorKind::DeliveryFailed, Action::Retry),
            (Code::InvalidTopic, Fault::Row, ErrorKind::DeliveryFailed, Action::Retry),
            (Code::NotEnoughReplicas, Fault::Topic, ErrorKind::DeliveryFailed, Action::Retry),
            (Code::UnsupportedCompressionType, Fault::Topic, ErrorKind::DeliveryFailed, Action::Retry),
            // Fatal to an idempotent producer: it is rebuilt, the partition scanned, and the rows sent again.
            (Code::OutOfOrderSequenceNumber, Fault::Producer, ErrorKind::DeliveryFailed, Action::Retry),
            (Code::UnknownProducerId, Fault::Producer, ErrorKind::DeliveryFailed, Action::Retry),
            (Code::InvalidProducerEpoch, Fault::Producer, ErrorKind::DeliveryFailed, Action::Retry),
            (Code::ProducerFenced, Fault::Producer, ErrorKind::DeliveryFailed, Action::Retry),
            (Code::Fenced, Fault::Producer, ErrorKind::DeliveryFailed, Action::Retry),
            (Code::Fatal, Fault::Producer, ErrorKind::DeliveryFailed, Action::Retry),
            (Code::GaplessGuarantee, Fault::Producer, ErrorKind::DeliveryFailed, Action::Retry),
            (Code::InvalidRequiredAcks, Fault::Producer, ErrorKind::DeliveryFailed, Action::Retry),
            (Code::KafkaStorageError, Fault::Cluster, ErrorKind::DeliveryFailed, Action::Retry),
            (Code::ThrottlingQuotaExceeded, Fault::Cluster, ErrorKind::DeliveryFailed, Action::Retry),
            // A failure of the broker is not caused by the row, unless the broker says so.
            (Code::Unknown, Fault::Cluster, ErrorKind::DeliveryFailed, Action::Retry),
        ];
        for (code, fault, reason, action) in table {
            assert_eq!((fault_of(code), reason_of_kafka(code)), (fault, reason), "{code:?}");
            assert_eq!(reason.action(), action, "{code:?}");
            assert_eq!(reason.side(), "kafka", "{code:?}");
        }
    }

    /// The enum is non-exhaustive for the compiler, so the test tries every number.
    #[test]
    fn every_code_is_in_exactly_one_part_of_the_table() {
        let mut codes = 0;
        for number in -1_000..1_000 {
            let Ok(code) = RDKafkaRespErr::try_from(number) else { continue };
            let code = Code::from(code);
            let places = [of_record, of_topic, of_producer, of_cluster, of_other_requests];
            let found = places.iter().filter(|known| known(code).is_some()).count();
            assert_eq!(found, 1, "{code:?}");
            codes += 1;
        }
        assert!(codes > 150, "{codes} codes");
    }

    #[test]
    fn the_message_names_the_code_and_its_meaning() {
        let text = error_of("Kafka refused a record for t/0", Code::MessageSizeTooLarge).detail;
        let said = "Kafka refused a record for t/0: MessageSizeTooLarge: it is larger than max.message.bytes";
        assert!(text.starts_with(said), "{text}");
    }
}
