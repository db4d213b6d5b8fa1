//! The threads for one session's blocking calls to Kafka: few, and divided by kind, so that calls of one kind never
//! block those of another.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::sync::Semaphore;

use crate::kafka::scanner::{PartitionScanner, QueryError};

/// Pause before a failed request is retried. It doubles each time, so that partitions whose leader is down leave the
/// threads to others.
pub(super) const PAUSE: Duration = Duration::from_millis(200);
const LONGEST_PAUSE: Duration = Duration::from_secs(3);

#[derive(Clone, Copy, Debug)]
pub(super) enum CallKind {
    /// Reachability of Kafka, and diagnoses of partitions.
    Health,
    /// Topics and their partitions, which every broker knows.
    Metadata,
    /// Offsets of partitions, which only the leader knows, and it may be down.
    Offsets,
    /// Records. One at a time, because the scanner's consumer has one assignment.
    Records,
}

/// The threads for each kind, as permits.
struct Threads {
    health: Arc<Semaphore>,
    metadata: Arc<Semaphore>,
    offsets: Arc<Semaphore>,
    records: Arc<Semaphore>,
}

impl Default for Threads {
    fn default() -> Self {
        let threads = |count| Arc::new(Semaphore::new(count));
        Threads { health: threads(3), metadata: threads(4), offsets: threads(8), records: threads(1) }
    }
}

/// A scanner and its threads.
#[derive(Clone)]
pub(super) struct Caller {
    pub(super) scanner: Arc<PartitionScanner>,
    threads: Arc<Threads>,
}

impl Caller {
    pub(super) fn new(scanner: Arc<PartitionScanner>) -> Caller {
        Caller { scanner, threads: Arc::default() }
    }

    /// Makes a blocking call once, when a thread is free.
    pub(super) async fn call<T: Send + 'static>(
        &self,
        kind: CallKind,
        call: impl FnOnce(&PartitionScanner) -> T + Send + 'static,
    ) -> Result<T, QueryError> {
        let threads = match kind {
            CallKind::Health => &self.threads.health,
            CallKind::Metadata => &self.threads.metadata,
            CallKind::Offsets => &self.threads.offsets,
            CallKind::Records => &self.threads.records,
        };
        let waits = matches!(kind, CallKind::Records).then(|| Waits::new(Arc::clone(&self.scanner)));
        let thread = Arc::clone(threads).acquire_owned().await.map_err(|_| QueryError::Cancelled)?;
        drop(waits);
        let scanner = Arc::clone(&self.scanner);
        let called = tokio::task::spawn_blocking(move || {
            // Held until the call returns, even if its caller is gone.
            let _thread = thread;
            call(&scanner)
        });
        called.await.map_err(|_| QueryError::Cancelled)
    }

    /// Repeats a blocking call until Kafka responds.
    pub(super) async fn persist<T: Send + 'static>(
        &self,
        kind: CallKind,
        call: impl Fn(&PartitionScanner) -> Result<T, QueryError> + Send + Sync + 'static,
    ) -> Result<T, QueryError> {
        let (call, mut pause) = (Arc::new(call), PAUSE);
        loop {
            let attempt = Arc::clone(&call);
            match self.call(kind, move |scanner| attempt(scanner)).await? {
                Err(QueryError::NoResponse(error)) => tracing::debug!(%error, "querying Kafka"),
                result => return result,
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }
}

/// Counts a scan that waits to read records, so that the running one yields.
struct Waits(Arc<PartitionScanner>);

impl Waits {
    fn new(scanner: Arc<PartitionScanner>) -> Waits {
        scanner.waiting.fetch_add(1, Ordering::Relaxed);
        Waits(scanner)
    }
}

impl Drop for Waits {
    fn drop(&mut self) {
        self.0.waiting.fetch_sub(1, Ordering::Relaxed);
    }
}
