//! When to let the socket fill before it is read.

use std::time::{Duration, Instant};

/// While a backlog streams in, a read that returns little is followed by a pause of this length, so that the
/// server's sender fills the socket in large pieces instead of waking us, and itself, for every message: twice
/// the rate at a fraction of the CPU (docs/PERFORMANCE.md). Longer pauses let the socket fill and are slower.
const COALESCE_PAUSE: Duration = Duration::from_micros(300);
/// A read of at least this much needs no pause.
const FULL_READ_BYTES: usize = 64 * 1024;
/// Arriving faster than this is a backlog; live traffic is read at once.
const BACKLOG_BYTES_PER_SECOND: u64 = 12 * 1024 * 1024;

/// Decides when to let the socket fill: see [`COALESCE_PAUSE`].
pub(super) struct ReadPacing {
    since: Instant,
    bytes: u64,
    backlog: bool,
    last: usize,
}

impl Default for ReadPacing {
    fn default() -> Self {
        ReadPacing { since: Instant::now(), bytes: 0, backlog: false, last: 0 }
    }
}

impl ReadPacing {
    /// How long a rate is measured: long enough for a few reads, short enough to follow the traffic.
    const WINDOW: Duration = Duration::from_millis(4);

    /// A read brought `bytes`.
    pub(super) fn on_read(&mut self, bytes: usize) {
        self.last = bytes;
        self.bytes += bytes as u64;
        let elapsed = self.since.elapsed();
        if elapsed >= Self::WINDOW {
            let micros = u64::try_from(elapsed.as_micros()).unwrap_or(u64::MAX).max(1);
            let backlog = self.bytes.saturating_mul(1_000_000) / micros > BACKLOG_BYTES_PER_SECOND;
            *self = ReadPacing { backlog, last: bytes, ..ReadPacing::default() };
        }
    }

    /// Called before each read. Pauses this thread, which does nothing else.
    pub(super) fn pause(&self) {
        if self.backlog && self.last < FULL_READ_BYTES {
            std::thread::sleep(COALESCE_PAUSE);
        }
    }
}
