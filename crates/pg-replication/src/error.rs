//! The errors, typed so that a caller can decide to wait, to retry, or to alert a person.

use std::io;
use std::time::Duration;

use crate::report::ServerError;
use crate::wire::WireError;
use crate::{EndLsn, FailedHost, Lsn, SqlState, TlsError};

/// Why a connection or stream failed.
///
/// After any error of a [`Stream`](crate::Stream) the connection cannot be used any more: drop it and connect again. No
/// error contains the password.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// No connection could be made.
    #[error("cannot reach PostgreSQL at {server}; check that it runs there and accepts connections")]
    Connect {
        /// Host and port, or the path of the socket.
        server: String,
        /// The operating system's error.
        source: io::Error,
    },
    /// The connection broke.
    #[error("the connection to PostgreSQL broke; connect again")]
    Io(#[source] io::Error),
    /// The connection cannot be encrypted, or the server cannot be trusted, as required.
    #[error("no TLS connection to PostgreSQL: {0}")]
    Tls(TlsError),
    /// The server accepts no writes.
    #[error("{server} {why}; add the primary's host, or allow any server")]
    ReadOnly {
        /// Host and port, or the path of the socket.
        server: String,
        /// Why it is read-only; completes the sentence.
        why: &'static str,
    },
    /// Several servers were tried, and none can be used.
    #[error("no server can be used: {}", list(skipped))]
    NoServer {
        /// Every server in the order tried, with the reason it was skipped.
        skipped: Vec<FailedHost>,
    },
    /// The server reported an error; its [`SqlState`] tells what to do.
    #[error(transparent)]
    Server(#[from] Box<ServerError>),
    /// The server did not answer in time.
    #[error("PostgreSQL did not {what} within {limit:?}; it may be overloaded, stopped or unreachable")]
    Timeout {
        /// What was awaited; completes "did not …".
        what: &'static str,
        /// The timeout.
        limit: Duration,
    },
    /// Nothing arrived while streaming, although a reply was requested.
    #[error(
        "PostgreSQL has been silent for {silence:?} and does not reply to a status request; connect again"
    )]
    Silent {
        /// For how long nothing arrived; at least half of `wal_sender_timeout`.
        silence: Duration,
    },
    /// The server ended the connection or the stream without an error, as it does when it shuts down.
    #[error("PostgreSQL closed the connection, as it does when it shuts down; connect again")]
    Closed,
    /// The peer does not follow the protocol.
    #[error("unexpected answer from PostgreSQL: {what}; is a pooler or proxy in between?")]
    Protocol {
        /// What was received.
        what: String,
    },
    /// The client does not support, or does not allow, the authentication the server requires.
    #[error("cannot authenticate: {what}")]
    Auth {
        /// The reason, and what to do.
        what: String,
    },
    /// The server is too old for the requested feature.
    #[error("{what} needs PostgreSQL {since} or newer, this server is {version}; upgrade it or do without")]
    Unsupported {
        /// The feature.
        what: &'static str,
        /// The first major version that has it.
        since: u32,
        /// The server's major version.
        version: u32,
    },
    /// A command was abandoned before its result was read.
    #[error("an earlier command on this connection was abandoned before it completed; connect again")]
    Interrupted,
    /// More was confirmed than was received: a bug of the caller, which would skip transactions.
    #[error("{confirmed} cannot be confirmed: only what lies up to {received} was received")]
    NotReceived {
        /// The position to be confirmed.
        confirmed: EndLsn,
        /// The position received.
        received: Lsn,
    },
}

impl Error {
    /// The SQLSTATE, if the server reported an error; of the first server that did, if several were tried.
    pub fn sqlstate(&self) -> Option<SqlState> {
        match self {
            Error::Server(error) => Some(error.code),
            Error::NoServer { skipped } => skipped.iter().find_map(|server| server.error.sqlstate()),
            _ => None,
        }
    }

    pub(crate) fn protocol(what: impl Into<String>) -> Self {
        Error::Protocol { what: what.into() }
    }

    pub(crate) fn auth(what: impl Into<String>) -> Self {
        Error::Auth { what: what.into() }
    }
}

fn list(skipped: &[FailedHost]) -> String {
    if skipped.is_empty() {
        return "no host was given".to_owned();
    }
    let all: Vec<String> = skipped.iter().map(FailedHost::to_string).collect();
    all.join(" | ")
}

impl From<io::Error> for Error {
    /// Separates TLS errors from network errors. An I/O error may contain an error of this crate.
    fn from(error: io::Error) -> Self {
        let error = match error.downcast::<Error>() {
            Ok(ours) => return ours,
            Err(error) => error,
        };
        match TlsError::behind(&error) {
            Some(problem) => Error::Tls(problem),
            // TLS reports a connection closed without close_notify in this way, as by a server that fails.
            None if error.kind() == io::ErrorKind::UnexpectedEof => Error::Closed,
            None => Error::Io(error),
        }
    }
}

impl From<TlsError> for Error {
    fn from(problem: TlsError) -> Self {
        Error::Tls(problem)
    }
}

impl From<WireError> for Error {
    fn from(flaw: WireError) -> Self {
        Error::protocol(format!("a message {}", flaw.0))
    }
}

impl From<ServerError> for Error {
    fn from(error: ServerError) -> Self {
        Error::Server(Box::new(error))
    }
}
