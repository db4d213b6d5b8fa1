//! The threads on which one session waits for Kafka: few, and divided by what they wait for, so that no kind of question
//! keeps another from being asked, however many there are.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::sync::Semaphore;

use crate::kafka::scanner::{PartitionScanner, QueryError};

/// Pause before a request that failed is made again; each lasts twice as long as the one before, so that partitions whose
/// leader is away leave the threads to others.
pub(super) const PAUSE: Duration = Duration::from_millis(200);
const LONGEST_PAUSE: Duration = Duration::from_secs(3);

/// What a call waits for.
#[derive(Clone, Copy, Debug)]
pub(super) enum Lane {
    /// Whether Kafka and its partitions are well.
    Health,
    /// Topics and their partitions: every broker knows them.
    Metadata,
    /// Where partitions end: only the leader knows, and it may be away.
    Offsets,
    /// Records. The searcher's consumer has one assignment.
    Records,
}

/// See the module's text.
pub(super) struct Lanes {
    health: Arc<Semaphore>,
    metadata: Arc<Semaphore>,
    offsets: Arc<Semaphore>,
    records: Arc<Semaphore>,
}

impl Default for Lanes {
    fn default() -> Self {
        let threads = |count| Arc::new(Semaphore::new(count));
        Lanes { health: threads(3), metadata: threads(4), offsets: threads(8), records: threads(1) }
    }
}

/// A searcher and the threads it may use.
#[derive(Clone)]
pub(super) struct Caller {
    pub(super) searcher: Arc<PartitionScanner>,
    lanes: Arc<Lanes>,
}

impl Caller {
    pub(super) fn new(searcher: Arc<PartitionScanner>) -> Caller {
        Caller { searcher, lanes: Arc::default() }
    }

    /// Makes a blocking call once, when a thread is free.
    pub(super) async fn call<T: Send + 'static>(
        &self,
        lane: Lane,
        call: impl FnOnce(&PartitionScanner) -> T + Send + 'static,
    ) -> Result<T, QueryError> {
        let threads = match lane {
            Lane::Health => &self.lanes.health,
            Lane::Metadata => &self.lanes.metadata,
            Lane::Offsets => &self.lanes.offsets,
            Lane::Records => &self.lanes.records,
        };
        let waits = matches!(lane, Lane::Records).then(|| Waits::new(Arc::clone(&self.searcher)));
        let thread = Arc::clone(threads).acquire_owned().await.map_err(|_| QueryError::Cancelled)?;
        drop(waits);
        let searcher = Arc::clone(&self.searcher);
        let called = tokio::task::spawn_blocking(move || {
            // Held until the call returns, even when its caller is gone.
            let _thread = thread;
            call(&searcher)
        });
        called.await.map_err(|_| QueryError::Cancelled)
    }

    /// Makes a blocking call until Kafka answers it.
    pub(super) async fn persist<T: Send + 'static>(
        &self,
        lane: Lane,
        call: impl Fn(&PartitionScanner) -> Result<T, QueryError> + Send + Sync + 'static,
    ) -> Result<T, QueryError> {
        let (call, mut pause) = (Arc::new(call), PAUSE);
        loop {
            let attempt = Arc::clone(&call);
            match self.call(lane, move |searcher| attempt(searcher)).await? {
                Err(QueryError::Unanswered(error)) => tracing::debug!(%error, "asking Kafka"),
                answer => return answer,
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }

    /// Waits for a place among the questions about topics, for a call that needs no thread.
    pub(super) async fn metadata_place(&self) -> Option<tokio::sync::SemaphorePermit<'_>> {
        self.lanes.metadata.acquire().await.ok()
    }
}

/// Counts one that waits to read records, so that the one that reads gives way.
struct Waits(Arc<PartitionScanner>);

impl Waits {
    fn new(searcher: Arc<PartitionScanner>) -> Waits {
        searcher.waiting.fetch_add(1, Ordering::Relaxed);
        Waits(searcher)
    }
}

impl Drop for Waits {
    fn drop(&mut self) {
        self.0.waiting.fetch_sub(1, Ordering::Relaxed);
    }
}
