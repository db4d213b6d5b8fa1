//! Waiting for conditions, never for time to pass.

use std::fmt::Display;
use std::time::{Duration, Instant};

use crate::Error;

/// The shortest and the longest pause between two looks.
const PAUSE: (Duration, Duration) = (Duration::from_millis(20), Duration::from_millis(500));

/// Looks again and again until `look` answers `Ok`; its `Err` is what was seen instead.
///
/// It pauses for as long as a look takes: one that starts a program or reads a topic would
/// otherwise take the processors from the very thing it waits for.
///
/// # Errors
/// [`Error::Timeout`] after `limit`, with the last observation.
pub async fn until<T, E: Display>(
    what: impl Into<String>,
    limit: Duration,
    mut look: impl AsyncFnMut() -> Result<T, E>,
) -> Result<T, Error> {
    let deadline = Instant::now() + limit;
    loop {
        let started = Instant::now();
        match look().await {
            Ok(found) => return Ok(found),
            Err(seen) if Instant::now() >= deadline => {
                return Err(Error::Timeout { what: what.into(), limit, seen: seen.to_string() });
            }
            Err(_) => tokio::time::sleep(started.elapsed().clamp(PAUSE.0, PAUSE.1)).await,
        }
    }
}
