//! Requests per second of each principal.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

/// Principals whose rate is remembered. Beyond that, those that have been quiet for a second start with a full bucket.
const MAX_PRINCIPALS: usize = 10_000;

/// A token bucket for each principal.
pub struct Rate {
    per_second: u32,
    principals: Mutex<HashMap<String, Bucket>>,
}

/// A token bucket that holds a second's worth.
struct Bucket {
    tokens: f64,
    filled: Instant,
}

impl Rate {
    /// `per_second` requests of each.
    pub fn new(per_second: u32) -> Rate {
        Rate { per_second, principals: Mutex::default() }
    }

    /// The limit.
    pub fn per_second(&self) -> u32 {
        self.per_second
    }

    /// Counts a request, if `principal` has any left.
    pub fn allows(&self, principal: &str, now: Instant) -> bool {
        let mut principals = self.principals.lock().unwrap_or_else(PoisonError::into_inner);
        if principals.len() >= MAX_PRINCIPALS && !principals.contains_key(principal) {
            // A full bucket is as good as none.
            principals.retain(|_, bucket| now.duration_since(bucket.filled).as_secs_f64() < 1.0);
        }
        let capacity = f64::from(self.per_second);
        let full = || Bucket { tokens: capacity, filled: now };
        let bucket = principals.entry(principal.to_owned()).or_insert_with(full);
        let refill = now.duration_since(bucket.filled).as_secs_f64() * capacity;
        bucket.tokens = (bucket.tokens + refill).min(capacity);
        bucket.filled = now;
        let allowed = bucket.tokens >= 1.0;
        if allowed {
            bucket.tokens -= 1.0;
        }
        allowed
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn a_principal_has_its_own_rate_which_fills_up_again() {
        let (rate, start) = (Rate::new(2), Instant::now());
        assert!(rate.allows("ann", start) && rate.allows("ann", start));
        assert!(!rate.allows("ann", start));
        assert!(rate.allows("bob", start));
        assert!(rate.allows("ann", start + Duration::from_millis(500)));
        assert!(!rate.allows("ann", start + Duration::from_millis(500)));
    }
}
