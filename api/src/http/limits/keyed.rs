//! Permits by key: each key has the same number of them, and one that nothing uses takes no memory.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

type Semaphores<K> = HashMap<K, Arc<Semaphore>>;

/// A number of permits for each key.
pub struct Keyed<K> {
    each: usize,
    semaphores: Mutex<Semaphores<K>>,
}

/// One permit of a key, or a place in the queue for it.
pub struct Permit<K: Eq + Hash> {
    of: Arc<Keyed<K>>,
    key: K,
    held: Option<OwnedSemaphorePermit>,
}

impl<K: Clone + Eq + Hash> Keyed<K> {
    /// `each` permits for every key.
    pub fn new(each: usize) -> Arc<Keyed<K>> {
        Arc::new(Keyed { each, semaphores: Mutex::default() })
    }

    /// Permits of each key.
    pub fn each(&self) -> usize {
        self.each
    }

    /// A permit of `key`, if one is free.
    pub fn try_acquire(self: &Arc<Self>, key: K) -> Option<Permit<K>> {
        let (mut permit, semaphore) = self.queue(key);
        permit.held = Some(semaphore.try_acquire_owned().ok()?);
        Some(permit)
    }

    /// A permit of `key`, in the order of the calls.
    pub async fn acquire(self: &Arc<Self>, key: K) -> Permit<K> {
        let (mut permit, semaphore) = self.queue(key);
        // Fails only when the semaphore is closed, which it never is.
        permit.held = semaphore.acquire_owned().await.ok();
        permit
    }

    fn queue(self: &Arc<Self>, key: K) -> (Permit<K>, Arc<Semaphore>) {
        let mut semaphores = self.semaphores();
        let new = || Arc::new(Semaphore::new(self.each));
        let semaphore = Arc::clone(semaphores.entry(key.clone()).or_insert_with(new));
        (Permit { of: Arc::clone(self), key, held: None }, semaphore)
    }
}

impl<K> Keyed<K> {
    fn semaphores(&self) -> MutexGuard<'_, Semaphores<K>> {
        self.semaphores.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The last one to leave a key takes it out of the map: a holder, or one that no longer waits.
impl<K: Eq + Hash> Drop for Permit<K> {
    fn drop(&mut self) {
        let mut semaphores = self.of.semaphores();
        self.held = None;
        if semaphores.get(&self.key).is_some_and(|semaphore| Arc::strong_count(semaphore) == 1) {
            semaphores.remove(&self.key);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::FutureExt;

    #[tokio::test]
    async fn a_key_that_nothing_uses_or_waits_for_is_forgotten() {
        let permits = Keyed::new(1);
        let held = permits.acquire("a").await;
        let waiting = permits.acquire("a").now_or_never();
        assert!(
            waiting.is_none() && permits.try_acquire("a").is_none() && permits.try_acquire("b").is_some()
        );
        assert_eq!(permits.semaphores().len(), 1);
        drop(held);
        assert!(permits.semaphores().is_empty());
    }
}
