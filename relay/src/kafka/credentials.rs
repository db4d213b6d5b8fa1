//! Credentials for Kafka that are rotated while the relay runs.
//!
//! librdkafka keeps what a client was made with. So the files are looked at while a session lasts; when they hold
//! something else the session ends, and the next one has clients that know it.

use std::time::Duration;

use tokio::sync::watch;

use crate::config::{Config, Sink, SinkAccess};
use crate::error::{ErrorKind, RelayError};

/// A secret's new content reaches a pod within a minute or so, and the old one is accepted for a while: a few seconds
/// more are nothing.
const LOOK_EVERY: Duration = Duration::from_secs(5);

/// `config` with the credentials for Kafka as their files have them now.
pub fn current(config: &Config) -> Result<Config, RelayError> {
    let unreadable = |error: crate::config::ConfigError| {
        RelayError::new(ErrorKind::CredentialsUnreadable, error.to_string())
    };
    let access = SinkAccess::read(&config.sink).map_err(unreadable)?;
    Ok(Config { sink: Sink { access, ..config.sink.clone() }, ..config.clone() })
}

/// Returns when the files hold something else than `sink` was made with. One that cannot be read is being written.
pub async fn rotated(sink: &Sink, stop: watch::Receiver<bool>) -> RelayError {
    loop {
        tokio::time::sleep(LOOK_EVERY).await;
        // A relay that is stopping keeps the credentials it has.
        if !*stop.borrow() && SinkAccess::read(sink).is_ok_and(|now| now != sink.access) {
            return RelayError::new(
                ErrorKind::CredentialsRotated,
                "the files with the credentials for Kafka hold others now",
            );
        }
    }
}
