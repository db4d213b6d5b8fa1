//! What can go wrong, typed so that a caller can decide to wait, to retry, or to ask a person.

use std::io;
use std::time::Duration;

use crate::report::ServerError;
use crate::wire::WireError;
use crate::{EndLsn, FailedHost, Lsn, SqlState, TlsError};

/// Why a connection or stream failed.
///
/// After any error of a [`Stream`](crate::Stream) the connection is of no further use: drop it and connect
/// again. No error contains the password.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// No connection could be made.
    #[error("cannot reach PostgreSQL at {server}; check that it runs there and accepts connections")]
    Connect {
        /// Host and port, or the path of the socket.
        server: String,
        /// What the operating system said.
        source: io::Error,
    },
    /// The connection broke.
    #[error("the connection to PostgreSQL broke; connect again")]
    Io(#[source] io::Error),
    /// The connection cannot be encrypted, or the server not trusted, as demanded.
    #[error("no TLS connection to PostgreSQL: {0}")]
    Tls(TlsError),
    /// The server takes no writes.
    #[error("{server} {why}; give the host of the primary, too, or allow any server")]
    ReadOnly {
        /// Host and port, or the path of the socket.
        server: String,
        /// What is read-only about it; completes the sentence.
        why: &'static str,
    },
    /// Several servers were tried, and none of them can be used.
    #[error("no server can be used: {}", list(skipped))]
    NoServer {
        /// Each one, in the order in which they were tried, and why it was skipped.
        skipped: Vec<FailedHost>,
    },
    /// The server refused or failed; [`SqlState`] tells what to do.
    #[error(transparent)]
    Server(#[from] Box<ServerError>),
    /// The server did not answer in time.
    #[error("PostgreSQL did not {what} within {limit:?}; it may be overloaded, stopped or unreachable")]
    Timeout {
        /// What was awaited; completes "did not …".
        what: &'static str,
        /// How long was waited.
        limit: Duration,
    },
    /// Nothing was heard while streaming, although an answer was asked for.
    #[error("PostgreSQL has been silent for {silence:?} and answers no status request; connect again")]
    Silent {
        /// For how long nothing arrived; at least half of `wal_sender_timeout`.
        silence: Duration,
    },
    /// The server ended the connection or the stream without an error, as it does when it shuts down.
    #[error("PostgreSQL closed the connection, as it does when it shuts down; connect again")]
    Closed,
    /// The server or something between does not speak the protocol.
    #[error("unexpected answer from PostgreSQL: {what}; is a pooler or proxy in between?")]
    Protocol {
        /// What was seen.
        what: String,
    },
    /// The client cannot or will not authenticate in the way the server wants.
    #[error("cannot authenticate: {what}")]
    Auth {
        /// What is in the way, and what to do.
        what: String,
    },
    /// The server is too old for what was asked.
    #[error("{what} needs PostgreSQL {since} or newer, this server is {version}; upgrade it or do without")]
    Unsupported {
        /// What was asked for.
        what: &'static str,
        /// The first major version that has it.
        since: u32,
        /// The server's major version.
        version: u32,
    },
    /// A command was given up before its answer was read.
    #[error("an earlier command on this connection was abandoned before it was answered; connect again")]
    Interrupted,
    /// More was confirmed than was received. Confirming it would skip transactions: a bug of the caller.
    #[error("{confirmed} cannot be confirmed: only what lies up to {received} was received")]
    NotReceived {
        /// What was to be confirmed.
        confirmed: EndLsn,
        /// What was received.
        received: Lsn,
    },
}

impl Error {
    /// The code of the server's error, if it was the server that spoke; of the first that did, if several were
    /// tried.
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
    /// Tells what TLS has to say from what the network has. An error of this crate may have been passed on as one of I/O.
    fn from(error: io::Error) -> Self {
        let error = match error.downcast::<Error>() {
            Ok(ours) => return ours,
            Err(error) => error,
        };
        match TlsError::behind(&error) {
            Some(problem) => Error::Tls(problem),
            // How TLS names a connection that was closed without good-bye, as a server that fails does.
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
