//! When to let the socket buffer fill before the next read.

use std::time::{Duration, Instant};

/// During a backlog, a read that returned little is followed by a pause of this length. The walsender then fills the
/// socket in large pieces instead of waking both sides for every message: twice the rate at a fraction of the CPU
/// (docs/PERFORMANCE.md). Longer pauses let the socket buffer fill up and are slower.
const COALESCE_PAUSE: Duration = Duration::from_micros(300);
/// A read of at least this size needs no pause.
const FULL_READ_BYTES: usize = 64 * 1024;
/// A higher rate means a backlog. Live traffic is read without a pause.
const BACKLOG_BYTES_PER_SECOND: u64 = 12 * 1024 * 1024;

/// Decides when to pause before a read: see [`COALESCE_PAUSE`].
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
    /// The window of the rate measurement: long enough for a few reads, short enough to follow the traffic.
    const WINDOW: Duration = Duration::from_millis(4);

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

    /// Called before each read. Blocks the thread, which runs nothing but the event loop.
    pub(super) fn pause(&self) {
        if self.backlog && self.last < FULL_READ_BYTES {
            std::thread::sleep(COALESCE_PAUSE);
        }
    }
}
