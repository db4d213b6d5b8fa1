//! Maps errors of the database connection to error kinds.

use pg_replication::SqlState;

use super::{ErrorKind, RelayError};

/// The kind for an SQLSTATE. Classes 08, 53 and 57 mean that the server is starting, stopping, or out of resources.
pub fn reason_of_sqlstate(code: &str) -> ErrorKind {
    match code {
        "55006" => ErrorKind::SlotActive,
        "3D000" => ErrorKind::DatabaseMissing,
        "42501" => ErrorKind::PermissionDenied,
        "42P01" => ErrorKind::TableMissing,
        // The transaction is read-only: the setting was changed, or the server became a standby.
        "25006" => ErrorKind::NoWritableHost,
        "22021" | "22P05" => ErrorKind::TextUntranslatable,
        // PostgreSQL never sends these for the relay's statements. Poolers send 08P01 for what they do not support, and
        // lose or mix up the prepared statements of their clients.
        "08P01" | "26000" | "42P05" => ErrorKind::ConnectionPooler,
        _ if code.starts_with("28") => ErrorKind::AuthenticationFailed,
        _ if ["08", "53", "57"].iter().any(|class| code.starts_with(class)) => ErrorKind::DatabaseUnreachable,
        _ => ErrorKind::DatabaseError,
    }
}

impl From<pg_replication::Error> for RelayError {
    fn from(error: pg_replication::Error) -> Self {
        let kind = match &error {
            pg_replication::Error::Server(server) => reason_of_slot_error(&server.code),
            other => reason_of_connection(other),
        };
        RelayError::new(kind, format!("replication connection: {}", chain(&error)))
    }
}

/// The kind for an error while connecting, when no slot is involved yet.
pub fn reason_of_connection(error: &pg_replication::Error) -> ErrorKind {
    use pg_replication::{Error, TlsError};
    match error {
        Error::Server(server) => reason_of_sqlstate(server.code.as_str()),
        Error::Protocol { .. } => ErrorKind::ProtocolViolation,
        Error::Auth { .. } => ErrorKind::AuthenticationFailed,
        Error::Tls(TlsError::NotOffered) => ErrorKind::TlsNotOffered,
        Error::Tls(TlsError::NotTrusted { .. }) => ErrorKind::CertificateNotTrusted,
        Error::Tls(TlsError::WrongHost { .. }) => ErrorKind::CertificateForOtherHost,
        Error::Tls(TlsError::Authorities { .. } | TlsError::Identity { .. }) => {
            ErrorKind::CredentialsUnreadable
        }
        Error::Tls(_) => ErrorKind::TlsFailed,
        Error::ReadOnly { .. } => ErrorKind::NoWritableHost,
        Error::NoServer { skipped } => {
            reason_of_all(skipped.iter().map(|server| reason_of_connection(&server.error)))
        }
        _ => ErrorKind::DatabaseUnreachable,
    }
}

/// One kind for the failures of several hosts: a fault that needs a person takes precedence over one that may pass, and
/// a host that answered over those that did not.
pub fn reason_of_all(reasons: impl IntoIterator<Item = ErrorKind>) -> ErrorKind {
    let weight = |reason: &ErrorKind| match reason {
        ErrorKind::DatabaseUnreachable => 0,
        ErrorKind::NoWritableHost => 1,
        _ => 2,
    };
    // The first of those with the highest weight: hosts are listed in order of importance.
    let mut weightiest = ErrorKind::DatabaseUnreachable;
    for reason in reasons {
        if weight(&reason) > weight(&weightiest) {
            weightiest = reason;
        }
    }
    weightiest
}

/// On a replication connection two codes are about the slot: 42704 (it does not exist) and 55000 (it is invalidated).
fn reason_of_slot_error(code: &SqlState) -> ErrorKind {
    match code.as_str() {
        "42704" | "55000" => ErrorKind::SlotLost,
        "08P01" => ErrorKind::ProtocolViolation,
        other => reason_of_sqlstate(other),
    }
}

impl From<sqlx::Error> for RelayError {
    fn from(error: sqlx::Error) -> Self {
        let code = error.as_database_error().and_then(|error| error.code()).map(|code| code.into_owned());
        let (kind, detail) = match (error, code) {
            (error, Some(code)) => (reason_of_sqlstate(&code), chain(&error)),
            // A TLS failure arrives as an I/O error: classify both in one place.
            (sqlx::Error::Io(error), None) => {
                let error = pg_replication::Error::from(error);
                (reason_of_connection(&error), chain(&error))
            }
            (error @ sqlx::Error::Tls(_), None) => (ErrorKind::TlsFailed, chain(&error)),
            (error @ (sqlx::Error::PoolTimedOut | sqlx::Error::Protocol(_)), None) => {
                (ErrorKind::DatabaseUnreachable, chain(&error))
            }
            (error, None) => (ErrorKind::DatabaseError, chain(&error)),
        };
        RelayError::new(kind, format!("SQL connection: {detail}"))
    }
}

/// An error with its sources, as one line.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        source = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Action;

    #[test]
    fn a_restarting_server_is_retried_and_bad_credentials_are_not() {
        for code in ["57P01", "57P03", "53300", "08006"] {
            assert_eq!(reason_of_sqlstate(code).action(), Action::Retry, "{code}");
        }
        assert_eq!(reason_of_sqlstate("28P01").action(), Action::Stop);
        assert_eq!(reason_of_sqlstate("55006").action(), Action::StandBy);
    }

    #[test]
    fn of_several_hosts_the_fault_that_needs_a_person_gives_the_kind() {
        use ErrorKind::{AuthenticationFailed, CertificateNotTrusted, DatabaseUnreachable, NoWritableHost};
        let cases = [
            (vec![DatabaseUnreachable, DatabaseUnreachable], DatabaseUnreachable),
            (vec![DatabaseUnreachable, NoWritableHost], NoWritableHost),
            (vec![NoWritableHost, AuthenticationFailed, CertificateNotTrusted], AuthenticationFailed),
            (vec![], DatabaseUnreachable),
        ];
        for (reasons, expected) in cases {
            assert_eq!(reason_of_all(reasons.clone()), expected, "{reasons:?}");
        }
        let skipped = |error| pg_replication::FailedHost { server: "db".into(), error };
        let read_only = pg_replication::Error::ReadOnly { server: "db".into(), why: "is a standby" };
        let all = vec![skipped(pg_replication::Error::Closed), skipped(read_only)];
        assert_eq!(reason_of_connection(&pg_replication::Error::NoServer { skipped: all }), NoWritableHost);
    }
}
