//! What Kafka did not do, and why.

use rdkafka::error::RDKafkaErrorCode;

/// See the module's text.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("Kafka: {doing}: {problem}")]
pub struct KafkaError {
    doing: String,
    problem: String,
    /// The code of the broker or of the client library, where there is one.
    pub code: Option<RDKafkaErrorCode>,
    /// Whether brokers and client do not trust each other: a certificate or credentials.
    pub is_distrust: bool,
}

impl KafkaError {
    pub(super) fn failed(doing: &str, error: &rdkafka::error::KafkaError) -> KafkaError {
        KafkaError::new(doing, error.to_string(), error.rdkafka_error_code())
    }

    pub(super) fn refused(doing: &str, code: RDKafkaErrorCode) -> KafkaError {
        KafkaError::new(doing, code.to_string(), Some(code))
    }

    pub(super) fn asked(doing: &str, error: &kafka_admin::Error) -> KafkaError {
        KafkaError::new(doing, error.to_string(), error.code())
    }

    pub(super) fn new(doing: &str, problem: String, code: Option<RDKafkaErrorCode>) -> KafkaError {
        KafkaError { doing: doing.to_owned(), problem, code, is_distrust: false }
    }

    /// The same failure, in the words of the library about the connection.
    pub(super) fn not_trusted(self, why: String) -> KafkaError {
        KafkaError { problem: why, is_distrust: true, ..self }
    }

    pub(super) fn with_problem(self, problem: &str) -> KafkaError {
        KafkaError { problem: problem.to_owned(), ..self }
    }
}
