//! When events arrive at a consumer, and how long after their COMMIT.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use hdrhistogram::Histogram;
use testbed::records::Tail;
use testbed::wait;
use tokio::task::JoinHandle;
use uuid::Uuid;

use super::site::Site;
use crate::Failure;

/// Longest latency that is told apart, and that of an event that does not arrive.
pub const LONGEST: Duration = Duration::from_secs(60);

/// Times of events.
pub type Times = HashMap<Uuid, SystemTime>;

/// Notes when each event arrives, whatever else happens meanwhile.
pub struct Arrivals {
    times: Arc<Mutex<Times>>,
    receiving: JoinHandle<Result<(), Failure>>,
}

impl Arrivals {
    /// Of all events that a site delivers from now on.
    ///
    /// # Errors
    /// Kafka cannot be read.
    pub async fn of(site: &Site) -> Result<Arrivals, Failure> {
        let topics: Vec<&str> = site.topics.iter().map(String::as_str).collect();
        let tail = Tail::start(&site.bootstrap, &topics).await?;
        let times = Arc::new(Mutex::new(Times::new()));
        let receiving = tokio::spawn(receive(tail, times.clone()));
        Ok(Arrivals { times, receiving })
    }

    /// How many have arrived.
    pub fn count(&self) -> u64 {
        self.with(|times| times.len() as u64)
    }

    /// Waits until all of `events` have arrived, but no longer than `limit`; returns what has arrived.
    ///
    /// # Errors
    /// A record could not be read, or has no id.
    pub async fn all_of(mut self, events: &Times, limit: Duration) -> Result<Times, Failure> {
        let arrived = wait::until("the last events", limit, async || {
            let missing = self.with(|times| events.keys().filter(|id| !times.contains_key(id)).count());
            if missing == 0 || self.receiving.is_finished() { Ok(()) } else { Err(missing.to_string()) }
        });
        // Events that have not arrived by now are missing from what is returned.
        drop(arrived.await);
        if self.receiving.is_finished() {
            (&mut self.receiving).await??;
        }
        Ok(self.with(std::mem::take))
    }

    fn with<T>(&self, read: impl FnOnce(&mut Times) -> T) -> T {
        read(&mut self.times.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Drop for Arrivals {
    fn drop(&mut self) {
        self.receiving.abort();
    }
}

/// Ends only with an error.
async fn receive(tail: Tail, times: Arc<Mutex<Times>>) -> Result<(), Failure> {
    loop {
        let record = tail.next().await?;
        let arrived = SystemTime::now();
        let id = record.event_id().ok_or("a record without the id of its event")?;
        times.lock().unwrap_or_else(PoisonError::into_inner).entry(id).or_insert(arrived);
    }
}

/// The events that were committed in this time, as PostgreSQL timed them.
pub async fn committed(site: &Site, from: SystemTime, until: SystemTime) -> Result<Times, Failure> {
    let micros = |time: SystemTime| -> Result<i64, Failure> {
        Ok(i64::try_from(time.duration_since(SystemTime::UNIX_EPOCH)?.as_micros())?)
    };
    let sql = "SELECT id, micros FROM outbox, LATERAL
                   (SELECT (extract(epoch FROM pg_xact_commit_timestamp(xid::xid)) * 1000000)::bigint) AS commits (micros)
               WHERE micros >= $1 AND micros < $2";
    let mut connection = site.database.connect().await?;
    let rows: Vec<(Uuid, i64)> =
        sqlx::query_as(sql).bind(micros(from)?).bind(micros(until)?).fetch_all(&mut connection).await?;
    let time = |micros: i64| SystemTime::UNIX_EPOCH + Duration::from_micros(micros.unsigned_abs());
    Ok(rows.into_iter().map(|(id, micros)| (id, time(micros))).collect())
}

/// Microseconds from commit to arrival of every event that was committed. One machine, one clock.
pub fn latencies(committed: &Times, arrived: &Times) -> Result<Histogram<u64>, Failure> {
    let longest = LONGEST.as_micros() as u64;
    let mut histogram = Histogram::new_with_bounds(1, longest, 3)?;
    for (id, committed) in committed {
        let took = arrived.get(id).map(|arrived| arrived.duration_since(*committed).unwrap_or_default());
        let micros = took.map_or(longest, |took| took.as_micros() as u64);
        histogram.record(micros.clamp(1, longest))?;
    }
    Ok(histogram)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_that_does_not_arrive_has_the_longest_latency() {
        let start = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000);
        let [fast, slow, lost, earlier] = [1, 2, 3, 4].map(Uuid::from_u128);
        let committed = Times::from([(fast, start), (slow, start), (lost, start)]);
        let after = |millis| start + Duration::from_millis(millis);
        let arrived = Times::from([(fast, after(2)), (slow, after(70_000)), (earlier, after(1))]);
        let found = latencies(&committed, &arrived).unwrap();
        let at = |percentile| found.value_at_percentile(percentile) / 1_000;
        assert_eq!((found.len(), at(33.0), found.count_at(LONGEST.as_micros() as u64)), (3, 2, 2));
    }
}
