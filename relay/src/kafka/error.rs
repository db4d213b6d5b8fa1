//! What an error code of Kafka means: one table, for delivery reports, searches and metadata alike.

use rdkafka::error::RDKafkaErrorCode as Code;

use crate::error::{ErrorKind, RelayError};

/// Whose fault an error code is, which decides what the relay does when a record gets it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The record's. If the broker refuses it alone, it refuses it again each time: the row is poison.
    Row,
    /// The topic's: a person has to change the topic or the relay's permissions.
    Topic,
    /// The brokers', or the network's: the record is sent again until it is acknowledged.
    Cluster,
    /// The producer's: a new producer, a search and a replay replace it.
    Producer,
}

/// What is known of a code.
struct Entry {
    fault: Fault,
    reason: ErrorKind,
    /// What happened and what to do, where the name of the code does not say it.
    meaning: &'static str,
}

/// The reason behind a code of Kafka's or librdkafka's.
///
/// librdkafka retries what is transient, so such a code gets here only when it lasts. What ends a producer is answered by
/// new producers, a search and a replay, which is what every retry does.
pub fn reason_of_kafka(code: Code) -> ErrorKind {
    entry(code).reason
}

/// Whose fault a refused record is.
pub fn fault_of(code: Code) -> Fault {
    entry(code).fault
}

/// The code with its meaning, for a person.
pub fn explained(code: Code) -> String {
    let meaning = entry(code).meaning;
    if meaning.is_empty() { format!("{code:?}") } else { format!("{code:?}: {meaning}") }
}

/// The trouble with `doing`, for example "Kafka refused a record for orders/3".
pub fn error_of(doing: &str, code: Code) -> RelayError {
    RelayError::new(reason_of_kafka(code), format!("{doing}: {}", explained(code)))
}

/// A code that a newer librdkafka adds is retried, as a server error is.
fn entry(code: Code) -> Entry {
    let entries = [of_record, of_topic, of_producer, of_cluster, of_other_requests];
    let known = entries.iter().find_map(|known| known(code));
    let (fault, reason, meaning) = known.unwrap_or((Fault::Cluster, ErrorKind::DeliveryFailed, ""));
    Entry { fault, reason, meaning }
}

type Known = Option<(Fault, ErrorKind, &'static str)>;

fn of_record(code: Code) -> Known {
    let meaning = match code {
        Code::MessageSizeTooLarge | Code::InvalidMessageSize => {
            "it is larger than max.message.bytes of the topic, or message.max.bytes of the broker; raise the limit"
        }
        Code::MessageBatchTooLarge => "it is larger than segment.bytes of the topic; raise it",
        Code::InvalidRecord => {
            "the broker takes no such record; a compacted topic needs a key, and a broker that checks schemas needs a valid one"
        }
        Code::InvalidMessage => {
            "the broker found the record corrupt; brokers before 2.4 say so of a record without a key in a compacted topic"
        }
        Code::InvalidTimestamp => {
            "its timestamp is outside what message.timestamp.*.max.ms of the topic allow; compare the clocks of brokers and relay"
        }
        Code::PolicyViolation => "a policy of the broker forbids it; ask who administers the cluster",
        Code::UnsupportedForMessageFormat => {
            "the topic's message format is too old for headers; raise message.format.version"
        }
        Code::InvalidTopic => {
            "Kafka takes no records of clients for a topic of that name; correct the routing"
        }
        _ => return None,
    };
    Some((Fault::Row, ErrorKind::DeliveryFailed, meaning))
}

fn of_topic(code: Code) -> Known {
    let (reason, meaning) = match code {
        Code::TopicAuthorizationFailed => {
            (ErrorKind::KafkaPermissionDenied, "the relay may not use the topic")
        }
        Code::UnknownTopicOrPartition
        | Code::UnknownTopic
        | Code::UnknownTopicId
        | Code::UnknownPartition => (ErrorKind::TopicMissing, ""),
        Code::NotEnoughReplicas | Code::NotEnoughReplicasAfterAppend | Code::ISRInsufficient => (
            ErrorKind::DeliveryFailed,
            "fewer replicas are in sync than min.insync.replicas; start the brokers that have them",
        ),
        Code::UnsupportedCompressionType => {
            (ErrorKind::DeliveryFailed, "the broker does not know sink.compression; choose another")
        }
        Code::LogTruncation => {
            (ErrorKind::KafkaLostRecords, "the partition was cut off behind records that were read")
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
        | Code::Inconsistent => "the broker no longer knows this producer, so another takes its place",
        Code::GaplessGuarantee | Code::InvalidDifferentRecord | Code::PurgeQueue | Code::PurgeInflight => {
            "another record of its partition or request was refused"
        }
        Code::NoOffset => {
            "it was acknowledged without an offset, which does not prove that Kafka has it; the partition is searched for it"
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
            "the broker does not understand the relay's request; compare its version with docs/OUTBOX.md"
        }
        _ => return None,
    };
    Some((Fault::Producer, ErrorKind::DeliveryFailed, meaning))
}

fn of_cluster(code: Code) -> Known {
    let (reason, meaning) = match code {
        Code::ClusterAuthorizationFailed => (
            ErrorKind::KafkaPermissionDenied,
            "the relay may write to no topic; brokers before 2.8 ask for IdempotentWrite on the cluster as well",
        ),
        Code::TransactionalIdAuthorizationFailed => (ErrorKind::KafkaPermissionDenied, ""),
        // librdkafka asks for the group that a consumer has to have a name of. The relay joins none, so it needs no
        // permission.
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
            (ErrorKind::DeliveryFailed, "the broker cannot write to its disk; look at its log")
        }
        Code::ThrottlingQuotaExceeded => {
            (ErrorKind::DeliveryFailed, "a quota of the brokers is used up; raise it, or wait")
        }
        Code::Unknown => (ErrorKind::DeliveryFailed, "the broker met an error of its own; look at its log"),
        Code::FencedLeaderEpoch | Code::UnknownLeaderEpoch | Code::OffsetNotAvailable | Code::Retry => {
            (ErrorKind::DeliveryFailed, "a new leader is not ready yet")
        }
        _ => return None,
    };
    Some((Fault::Cluster, reason, meaning))
}

/// Codes that answer none of the relay's requests, or that are no errors of a record. Should one come, it is retried.
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
    fn every_code_leads_to_what_can_be_done_about_it() {
        let table = [
            (Code::TopicAuthorizationFailed, Fault::Topic, ErrorKind::KafkaPermissionDenied, Action::Stop),
            (
                Code::ClusterAuthorizationFailed,
                Fault::Cluster,
                ErrorKind::KafkaPermissionDenied,
                Action::Stop,
            ),
            // It joins no group.
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
            // Fatal to an idempotent producer: rebuilt, searched, replayed.
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
            // Whatever makes a broker fail is not the row's fault as long as the broker does not say so.
            (Code::Unknown, Fault::Cluster, ErrorKind::DeliveryFailed, Action::Retry),
        ];
        for (code, fault, reason, action) in table {
            assert_eq!((fault_of(code), reason_of_kafka(code)), (fault, reason), "{code:?}");
            assert_eq!(reason.action(), action, "{code:?}");
            assert_eq!(reason.side(), "kafka", "{code:?}");
        }
    }

    /// The enum is not exhaustive to the compiler; so every number is asked for.
    #[test]
    fn every_code_there_is_stands_in_one_place_of_the_table() {
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
    fn the_sentence_names_the_code_and_what_it_means() {
        let text = error_of("Kafka refused a record for t/0", Code::MessageSizeTooLarge).detail;
        let said = "Kafka refused a record for t/0: MessageSizeTooLarge: it is larger than max.message.bytes";
        assert!(text.starts_with(said), "{text}");
    }
}
