//! What an error code of Kafka means: one table, for delivery reports, searches and metadata alike.

use rdkafka::error::RDKafkaErrorCode as Code;

use crate::trouble::{Reason, Trouble};

/// The reason behind a code of Kafka's or librdkafka's.
///
/// What passes by itself is retried inside librdkafka and does not get here, except when it lasts; whatever ends a
/// producer for good is answered by new producers, a search, and a replay, which is what every retry does.
pub fn reason_of_kafka(code: Code) -> Reason {
    match code {
        Code::TopicAuthorizationFailed
        | Code::GroupAuthorizationFailed
        | Code::ClusterAuthorizationFailed
        | Code::TransactionalIdAuthorizationFailed => Reason::KafkaPermissionDenied,
        Code::Authentication
        | Code::SaslAuthenticationFailed
        | Code::UnsupportedSASLMechanism
        | Code::IllegalSASLState
        | Code::SecurityDisabled
        | Code::SSL => Reason::KafkaAuthenticationFailed,
        Code::UnknownTopicOrPartition
        | Code::UnknownTopic
        | Code::UnknownPartition
        | Code::UnknownTopicId => Reason::TopicMissing,
        Code::BrokerTransportFailure
        | Code::AllBrokersDown
        | Code::Resolve
        | Code::OperationTimedOut
        | Code::TimedOutQueue
        | Code::NetworkException
        | Code::RequestTimedOut
        | Code::BrokerNotAvailable
        | Code::LeaderNotAvailable
        | Code::NotLeaderForPartition
        | Code::NotController => Reason::KafkaUnreachable,
        Code::LogTruncation => Reason::KafkaLostRecords,
        _ => Reason::DeliveryFailed,
    }
}

/// What a code means to the person on call, where its name does not say it.
fn meaning(code: Code) -> &'static str {
    match code {
        Code::MessageSizeTooLarge | Code::MessageBatchTooLarge | Code::InvalidMessageSize => {
            ": it is larger than max.message.bytes of the topic; the limits are read again now"
        }
        Code::InvalidRecord => {
            ": the broker takes no such record; a compacted topic needs a key, and timestamps may be too old or too new"
        }
        Code::InvalidTimestamp => {
            ": its timestamp is outside what message.timestamp.*.max.ms of the topic allow"
        }
        Code::PolicyViolation => ": a policy of the broker forbids it",
        Code::UnsupportedForMessageFormat => ": the topic's message format is too old for headers",
        Code::OutOfOrderSequenceNumber
        | Code::UnknownProducerId
        | Code::InvalidProducerEpoch
        | Code::InvalidProducerIdMapping
        | Code::ProducerFenced
        | Code::Fenced
        | Code::Fatal
        | Code::Inconsistent => ": the broker no longer knows this producer, so another takes its place",
        Code::GaplessGuarantee | Code::PurgeQueue | Code::PurgeInflight => ": a record before it was refused",
        Code::NotEnoughReplicas | Code::NotEnoughReplicasAfterAppend => {
            ": fewer replicas are in sync than min.insync.replicas"
        }
        Code::MessageTimedOut => ": it was not acknowledged in time",
        Code::NoOffset => {
            ": it was acknowledged without an offset, which does not prove that Kafka has it; the partition is searched for it"
        }
        _ => "",
    }
}

/// The trouble with `doing`, for example "Kafka refused a record for orders/3".
pub fn trouble(doing: &str, code: Code) -> Trouble {
    Trouble::new(reason_of_kafka(code), format!("{doing}: {code:?}{}", meaning(code)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::trouble::Action;

    #[test]
    fn every_code_leads_to_what_can_be_done_about_it() {
        let table = [
            (Code::TopicAuthorizationFailed, Reason::KafkaPermissionDenied, Action::Stop),
            (Code::ClusterAuthorizationFailed, Reason::KafkaPermissionDenied, Action::Stop),
            (Code::SaslAuthenticationFailed, Reason::KafkaAuthenticationFailed, Action::Stop),
            (Code::Authentication, Reason::KafkaAuthenticationFailed, Action::Stop),
            (Code::SSL, Reason::KafkaAuthenticationFailed, Action::Stop),
            (Code::UnknownTopicOrPartition, Reason::TopicMissing, Action::Stop),
            (Code::UnknownTopic, Reason::TopicMissing, Action::Stop),
            (Code::UnknownPartition, Reason::TopicMissing, Action::Stop),
            (Code::BrokerTransportFailure, Reason::KafkaUnreachable, Action::Retry),
            (Code::AllBrokersDown, Reason::KafkaUnreachable, Action::Retry),
            (Code::NotLeaderForPartition, Reason::KafkaUnreachable, Action::Retry),
            (Code::LogTruncation, Reason::KafkaLostRecords, Action::Stop),
            (Code::MessageSizeTooLarge, Reason::DeliveryFailed, Action::Retry),
            (Code::InvalidRecord, Reason::DeliveryFailed, Action::Retry),
            (Code::NotEnoughReplicas, Reason::DeliveryFailed, Action::Retry),
            // Fatal to an idempotent producer: rebuilt, searched, replayed.
            (Code::OutOfOrderSequenceNumber, Reason::DeliveryFailed, Action::Retry),
            (Code::UnknownProducerId, Reason::DeliveryFailed, Action::Retry),
            (Code::InvalidProducerEpoch, Reason::DeliveryFailed, Action::Retry),
            (Code::ProducerFenced, Reason::DeliveryFailed, Action::Retry),
            (Code::Fenced, Reason::DeliveryFailed, Action::Retry),
            (Code::Fatal, Reason::DeliveryFailed, Action::Retry),
            (Code::GaplessGuarantee, Reason::DeliveryFailed, Action::Retry),
            // Nobody has thought of it: tried again.
            (Code::KafkaStorageError, Reason::DeliveryFailed, Action::Retry),
        ];
        for (code, reason, action) in table {
            assert_eq!(reason_of_kafka(code), reason, "{code:?}");
            assert_eq!(reason.action(), action, "{code:?}");
            assert_eq!(reason.side(), "kafka", "{code:?}");
        }
    }

    #[test]
    fn the_sentence_names_the_code_and_what_it_means() {
        let text = trouble("Kafka refused a record for t/0", Code::MessageSizeTooLarge).what;
        let said = "Kafka refused a record for t/0: MessageSizeTooLarge: it is larger than max.message.bytes";
        assert!(text.starts_with(said), "{text}");
    }
}
