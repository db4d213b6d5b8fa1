//! How a backlog is read: in bursts, between which the receive window is closed.
//!
//! The walsender sends Begin, Insert and Commit each with its own `send`. While the receive window is open, each of these
//! messages travels to the relay's socket in the walsender's CPU time. While the window is closed, the walsender only
//! appends to its send queue, at half the cost, and the kernel moves the queue in large segments as soon as a read opens
//! the window. So a backlog is read until a read returns little. Then the relay sleeps until the small receive buffer is
//! full and the send queue behind it has grown (docs/PERFORMANCE.md). Live traffic is read without a pause.

use std::time::{Duration, Instant};

use pg_replication::Stream;

/// A higher rate means a backlog. Live traffic is read without a pause.
const BACKLOG_BYTES_PER_SECOND: u64 = 12 * 1024 * 1024;
/// The window of the rate measurement: a few bursts.
const RATE_WINDOW: Duration = Duration::from_millis(16);

/// The receive buffer during a backlog. Small, because the walsender pays for filling it.
const RECEIVE_BUFFER_BYTES: usize = 64 * 1024;
/// With a longer round trip so small a window would limit the rate, so the kernel keeps tuning it.
const NEARBY: Duration = Duration::from_millis(1);

/// The sleep between two bursts.
const SHORTEST_SLEEP: Duration = Duration::from_micros(300);
const LONGEST_SLEEP: Duration = Duration::from_millis(4);
/// The size of a burst that the sleep is adapted to: the buffer and several times as much from the send queue.
const BURST_BYTES: std::ops::Range<usize> = 4 * RECEIVE_BUFFER_BYTES..12 * RECEIVE_BUFFER_BYTES;

/// Decides when to pause, and for how long.
pub(super) struct ReadPacing {
    window_start: Instant,
    window_bytes: u64,
    backlog: bool,
    /// Whether the receive buffer is limited, or need not be.
    buffer_is_set: bool,
    last_read: usize,
    burst: usize,
    sleep: Duration,
}

impl ReadPacing {
    pub(super) fn new(now: Instant) -> ReadPacing {
        ReadPacing {
            window_start: now,
            window_bytes: 0,
            backlog: false,
            buffer_is_set: false,
            last_read: 0,
            burst: 0,
            sleep: SHORTEST_SLEEP,
        }
    }

    pub(super) fn on_read(&mut self, bytes: usize, now: Instant) {
        self.last_read = bytes;
        self.burst += bytes;
        self.window_bytes += bytes as u64;
        let elapsed = now.saturating_duration_since(self.window_start);
        if elapsed >= RATE_WINDOW {
            let micros = u64::try_from(elapsed.as_micros()).unwrap_or(u64::MAX).max(1);
            self.backlog = self.window_bytes.saturating_mul(1_000_000) / micros > BACKLOG_BYTES_PER_SECOND;
            (self.window_start, self.window_bytes) = (now, 0);
        }
    }

    /// How long to sleep before the next read: not at all while reads return a full buffer.
    fn next_sleep(&mut self) -> Option<Duration> {
        // Two thirds: segments do not divide the buffer evenly.
        if !self.backlog || self.last_read >= RECEIVE_BUFFER_BYTES * 2 / 3 {
            return None;
        }
        let burst = std::mem::take(&mut self.burst);
        if burst < BURST_BYTES.start {
            self.sleep = (self.sleep * 5 / 4).min(LONGEST_SLEEP);
        } else if burst > BURST_BYTES.end {
            self.sleep = (self.sleep * 4 / 5).max(SHORTEST_SLEEP);
        }
        Some(self.sleep)
    }

    /// Called before each read. Blocks the thread, which runs nothing but the event loop.
    pub(super) fn pause(&mut self, stream: &Stream) {
        if self.backlog && !std::mem::replace(&mut self.buffer_is_set, true) && stream.round_trip() <= NEARBY
        {
            // A failure only makes the backlog slower.
            let limited = stream.set_receive_buffer(RECEIVE_BUFFER_BYTES);
            tracing::debug!(round_trip = ?stream.round_trip(), ?limited, "limited the receive buffer for a backlog");
        }
        if let Some(sleep) = self.next_sleep() {
            std::thread::sleep(sleep);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A second with `bursts` bursts of these reads.
    fn second(reads: &[usize], bursts: u32) -> (ReadPacing, Option<Duration>) {
        let start = Instant::now();
        let (mut pacing, mut sleep) = (ReadPacing::new(start), None);
        for n in 1..=bursts {
            for bytes in reads {
                pacing.on_read(*bytes, start + Duration::from_secs(1) * n / bursts);
                sleep = pacing.next_sleep();
            }
        }
        (pacing, sleep)
    }

    #[test]
    fn live_traffic_is_read_at_once() {
        let (pacing, sleep) = second(&[700], 10_000);
        assert_eq!((pacing.backlog, sleep), (false, None));
    }

    #[test]
    fn a_backlog_is_read_without_a_pause_while_reads_come_back_full() {
        let (pacing, sleep) = second(&[RECEIVE_BUFFER_BYTES], 1_000);
        assert_eq!((pacing.backlog, sleep), (true, None));
    }

    #[test]
    fn small_bursts_lengthen_the_sleep_and_large_ones_shorten_it() {
        let (_, small) = second(&[20_000], 1_000);
        assert_eq!(small, Some(LONGEST_SLEEP));
        let (_, large) = second(&[BURST_BYTES.end, 1_000], 1_000);
        assert_eq!(large, Some(SHORTEST_SLEEP));
    }

    #[test]
    fn the_end_of_a_backlog_ends_the_pauses() {
        let (mut pacing, sleep) = second(&[20_000], 1_000);
        assert!(sleep.is_some());
        let end = pacing.window_start;
        (1..=20).for_each(|n| pacing.on_read(500, end + Duration::from_millis(n)));
        assert_eq!(pacing.next_sleep(), None);
    }
}
