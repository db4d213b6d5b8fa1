//! What can go wrong while servers are fetched, started and stopped.

use std::path::PathBuf;
use std::process::ExitStatus;
use std::time::Duration;

/// Why the testbed could not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A program of the machine is missing.
    #[error("'{tool}' is not installed; install {package} and try again")]
    MissingTool {
        /// The program.
        tool: &'static str,
        /// What brings it.
        package: &'static str,
    },
    /// A program of the machine failed.
    #[error("{doing} failed ({status}): {output}")]
    Failed {
        /// What was being done.
        doing: String,
        /// How it ended.
        status: ExitStatus,
        /// The end of what it printed.
        output: String,
    },
    /// A file or folder cannot be used.
    #[error("cannot {doing} {path}")]
    File {
        /// What was being done.
        doing: &'static str,
        /// To which.
        path: PathBuf,
        /// What the operating system said.
        source: std::io::Error,
    },
    /// Any other call of the operating system.
    #[error("cannot {doing}")]
    System {
        /// What was being done.
        doing: &'static str,
        /// What the operating system said.
        source: std::io::Error,
    },
    /// Something did not come about in time.
    #[error("{what} did not happen within {limit:?}; last seen: {seen}")]
    Timeout {
        /// What was awaited.
        what: String,
        /// For how long.
        limit: Duration,
        /// The last observation.
        seen: String,
    },
    /// PostgreSQL refused.
    #[error("PostgreSQL: {doing} failed")]
    Postgres {
        /// What was being done.
        doing: &'static str,
        /// What the driver says.
        source: sqlx::Error,
    },
    /// Kafka refused.
    #[error("Kafka: {doing} failed: {detail}")]
    Kafka {
        /// What was being done.
        doing: String,
        /// What it said.
        detail: String,
    },
    /// The browser refused.
    #[error("the browser: {doing} failed: {detail}")]
    Browser {
        /// What was being done.
        doing: String,
        /// What it said.
        detail: String,
    },
    /// A server ended unexpectedly.
    #[error("{server} ended while it was starting; the end of its log:\n{log}")]
    Ended {
        /// Which.
        server: String,
        /// The end of its log.
        log: String,
    },
}

impl Error {
    pub(crate) fn file(
        doing: &'static str,
        path: impl Into<PathBuf>,
    ) -> impl FnOnce(std::io::Error) -> Error {
        let path = path.into();
        move |source| Error::File { doing, path, source }
    }

    pub(crate) fn system(doing: &'static str) -> impl FnOnce(std::io::Error) -> Error {
        move |source| Error::System { doing, source }
    }

    pub(crate) fn postgres(doing: &'static str) -> impl FnOnce(sqlx::Error) -> Error {
        move |source| Error::Postgres { doing, source }
    }
}
