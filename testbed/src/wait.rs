//! Waiting for conditions, never for time to pass.

use std::fmt::Display;
use std::time::{Duration, Instant};

use crate::Error;

/// How often a condition is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// Looks again and again until `look` answers `Ok`; its `Err` is what was seen instead.
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
        match look().await {
            Ok(found) => return Ok(found),
            Err(seen) if Instant::now() >= deadline => {
                return Err(Error::Timeout { what: what.into(), limit, seen: seen.to_string() });
            }
            Err(_) => tokio::time::sleep(LOOK_EVERY).await,
        }
    }
}
