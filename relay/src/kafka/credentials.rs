//! Credentials for Kafka that are rotated while the relay runs.
//!
//! librdkafka keeps the credentials that a client was created with. So a session regularly compares the files with them.
//! When they differ the session ends, and the next one creates its clients with the new credentials.

use std::time::Duration;

use tokio::sync::watch;

use crate::config::{Config, Sink, SinkAccess};
use crate::error::{ErrorKind, RelayError};

/// The new content of a mounted secret reaches a pod within about a minute, and brokers accept the old credentials for a
/// while, so a few seconds more do not matter.
const CHECK_INTERVAL: Duration = Duration::from_secs(5);

/// `config` with the present content of the files with credentials for Kafka.
pub fn current(config: &Config) -> Result<Config, RelayError> {
    let unreadable = |error: crate::config::ConfigError| {
        RelayError::new(ErrorKind::CredentialsUnreadable, error.to_string())
    };
    let access = SinkAccess::read(&config.sink).map_err(unreadable)?;
    Ok(Config { sink: Sink { access, ..config.sink.clone() }, ..config.clone() })
}

/// Returns when the files differ from what `sink` was created with. A file that cannot be read is being written.
pub async fn rotated(sink: &Sink, stop: watch::Receiver<bool>) -> RelayError {
    loop {
        tokio::time::sleep(CHECK_INTERVAL).await;
        // A relay that is stopping keeps the credentials it has.
        if !*stop.borrow() && SinkAccess::read(sink).is_ok_and(|now| now != sink.access) {
            return RelayError::new(
                ErrorKind::CredentialsRotated,
                "the files with the credentials for Kafka hold others now",
            );
        }
    }
}
