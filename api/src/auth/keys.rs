//! The issuer's keys as requests see them. One task reads them; a request never does, so that a client that leaves, or
//! an issuer that does not answer, stops no reading and no other request.
//!
//! A set that cannot be read changes nothing: the keys that are known stay in use.

use std::time::Duration;

use tokio::sync::{Notify, Semaphore, watch};
use tokio::time::{Instant, sleep, timeout};

use super::key_set::Key;
use super::key_source::{KeyReader, KeySource, SetUpError};
use crate::metrics::Metrics;

/// How often the set is read again: issuers announce a new key a good while before they sign with it.
const READ_EVERY: Duration = Duration::from_secs(300);
/// A token with an unknown key makes the set be read early, but not sooner than this after the last reading: anyone can
/// invent key ids.
const READ_AT_MOST_EVERY: Duration = Duration::from_secs(10);
/// The same while no key is known at all.
const READ_FIRST_EVERY: Duration = Duration::from_secs(2);
/// How long a request with an unknown key waits for an early reading.
const WAIT_FOR_READING: Duration = Duration::from_secs(1);
/// Requests that may wait so at once. Others are told to repeat: they take the place of requests with known keys.
const MAX_WAITING: usize = 16;

/// Which key a token names.
pub enum Found {
    /// This one.
    Key(Box<Key>),
    /// None that the issuer publishes.
    Unknown,
    /// Perhaps one that was not read yet.
    NotYet,
}

/// The keys, kept fresh.
pub struct Keys {
    reader: KeyReader,
    known: watch::Sender<Known>,
    /// A request has met a key that is not known.
    wanted: Notify,
    waiting: Semaphore,
}

#[derive(Default)]
struct Known {
    keys: Vec<Key>,
    /// When the last reading ended, successful or not.
    read_at: Option<Instant>,
}

impl Keys {
    /// Keys of `source`; none before the first reading.
    pub fn new(source: KeySource) -> Result<Keys, SetUpError> {
        Ok(Keys {
            reader: KeyReader::new(source)?,
            known: watch::Sender::default(),
            wanted: Notify::new(),
            waiting: Semaphore::new(MAX_WAITING),
        })
    }

    /// Whether the set was ever read.
    pub fn are_known(&self) -> bool {
        !self.known.borrow().keys.is_empty()
    }

    /// The key named `id`. An unknown one may be new: then the set is read early, unless that has just been done.
    pub async fn find(&self, id: Option<&str>) -> Found {
        let read_at = match self.known.borrow().find(id) {
            Ok(found) => return found,
            Err(read_at) => read_at,
        };
        self.wanted.notify_one();
        let Ok(_waiting) = self.waiting.try_acquire() else { return Found::NotYet };
        let mut known = self.known.subscribe();
        let reading = known.wait_for(|known| known.read_at != read_at);
        match timeout(WAIT_FOR_READING, reading).await {
            Ok(Ok(known)) => known.find(id).unwrap_or(Found::NotYet),
            _ => Found::NotYet,
        }
    }

    /// Reads the set now and again, without end.
    pub async fn keep_fresh(&self, metrics: &Metrics) {
        loop {
            let keys = self.reader.read().await;
            metrics.token_keys_read(keys.is_ok());
            if let Err(error) = &keys {
                tracing::warn!(
                    error = error as &dyn std::error::Error,
                    "the token issuer's keys cannot be read; those that are known stay in use"
                );
            }
            self.known.send_modify(|known| {
                known.read_at = Some(Instant::now());
                known.keys = keys.unwrap_or_else(|_| std::mem::take(&mut known.keys));
            });
            if !self.are_known() {
                sleep(READ_FIRST_EVERY).await;
                continue;
            }
            sleep(READ_AT_MOST_EVERY).await;
            let _ = timeout(READ_EVERY - READ_AT_MOST_EVERY, self.wanted.notified()).await;
        }
    }
}

impl Known {
    /// The key, or that there is none; as an error, when the last reading was, if another one may find it.
    fn find(&self, id: Option<&str>) -> Result<Found, Option<Instant>> {
        if let Some(key) = self.key(id) {
            return Ok(Found::Key(Box::new(key.clone())));
        }
        match self.read_at {
            Some(read_at) if read_at.elapsed() < READ_AT_MOST_EVERY && self.keys.is_empty() => {
                Ok(Found::NotYet)
            }
            Some(read_at) if read_at.elapsed() < READ_AT_MOST_EVERY => Ok(Found::Unknown),
            read_at => Err(read_at),
        }
    }

    /// A token without a key id means the only key there is.
    fn key(&self, id: Option<&str>) -> Option<&Key> {
        match (id, self.keys.as_slice()) {
            (None, [only]) => Some(only),
            (None, _) => None,
            (Some(id), keys) => keys.iter().find(|key| key.id.as_deref() == Some(id)),
        }
    }
}
