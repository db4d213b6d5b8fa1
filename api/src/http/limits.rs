//! How much one caller, and all of them, may ask for at once.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::problem::{Problem, kinds};

/// Callers whose rate is remembered. Beyond that, those that have been quiet the longest start afresh.
const MAX_CALLERS: usize = 10_000;

/// The limits of the service.
pub struct RequestLimits {
    under_way: Arc<Semaphore>,
    rate: Option<Rate>,
}

struct Rate {
    per_second: f64,
    callers: Mutex<HashMap<String, Bucket>>,
}

/// A token bucket that holds a second's worth.
struct Bucket {
    tokens: f64,
    filled: Instant,
}

impl RequestLimits {
    /// At most `under_way` requests at once, and `per_second` of one principal; 0 for any number.
    pub fn new(under_way: usize, per_second: u32) -> RequestLimits {
        let rate = Rate { per_second: f64::from(per_second), callers: Mutex::default() };
        RequestLimits {
            under_way: Arc::new(Semaphore::new(under_way)),
            rate: (per_second > 0).then_some(rate),
        }
    }

    /// Room for one more request, until the permit is dropped.
    pub fn room(&self) -> Result<OwnedSemaphorePermit, Problem> {
        let full =
            |_| Problem::later(&kinds::TOO_MANY, "too many requests are under way; repeat it in a moment");
        Arc::clone(&self.under_way).try_acquire_owned().map_err(full)
    }

    /// Counts a request of `principal`.
    pub fn count(&self, principal: &str, now: Instant) -> Result<(), Problem> {
        let Some(rate) = &self.rate else { return Ok(()) };
        if rate.takes(principal, now) {
            return Ok(());
        }
        let detail = format!("more than {} requests a second; repeat it in a moment", rate.per_second);
        Err(Problem::later(&kinds::TOO_MANY, detail))
    }
}

impl Rate {
    fn takes(&self, principal: &str, now: Instant) -> bool {
        let mut callers = self.callers.lock().unwrap_or_else(PoisonError::into_inner);
        if callers.len() >= MAX_CALLERS && !callers.contains_key(principal) {
            // A full bucket is as good as none.
            callers.retain(|_, bucket| now.duration_since(bucket.filled).as_secs_f64() < 1.0);
        }
        let fresh = || Bucket { tokens: self.per_second, filled: now };
        let bucket = callers.entry(principal.to_owned()).or_insert_with(fresh);
        let refill = now.duration_since(bucket.filled).as_secs_f64() * self.per_second;
        bucket.tokens = (bucket.tokens + refill).min(self.per_second);
        bucket.filled = now;
        let enough = bucket.tokens >= 1.0;
        if enough {
            bucket.tokens -= 1.0;
        }
        enough
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn a_caller_has_its_own_rate_which_fills_up_again() {
        let (limits, start) = (RequestLimits::new(1, 2), Instant::now());
        assert!(limits.count("ann", start).is_ok() && limits.count("ann", start).is_ok());
        assert!(limits.count("ann", start).is_err());
        assert!(limits.count("bob", start).is_ok());
        assert!(limits.count("ann", start + Duration::from_millis(500)).is_ok());
        assert!(limits.count("ann", start + Duration::from_millis(500)).is_err());
    }

    #[test]
    fn room_is_given_back() {
        let limits = RequestLimits::new(1, 0);
        let first = limits.room().unwrap();
        assert!(limits.room().is_err());
        drop(first);
        assert!(limits.room().is_ok());
    }
}
