//! The heartbeat: a logical message written into the WAL over SQL that has to come back through the stream. It proves
//! the whole path from WAL to relay, walsender included, while no rows are written; and its age shows how far the relay
//! is behind, whatever else the cluster writes.
//!
//! The message is non-transactional: it takes no transaction ID, creates no row, and needs no confirmation. Only one is
//! in flight at a time, so that a stalled stream does not fill up with heartbeats. Messages from other writers and from
//! earlier runs of this relay are ignored.

use std::time::{Duration, Instant, SystemTime};

use crate::config::Config;

#[derive(Debug, Default)]
pub struct Heartbeat {
    /// Zero disables heartbeats.
    interval: Duration,
    /// The prefix of this relay's logical messages.
    prefix: String,
    /// Distinguishes this run's messages from those of earlier runs.
    run: u128,
    sent: u64,
    /// The one in flight, and when it was sent.
    in_flight: Option<(u64, Instant)>,
    /// The role lacks the privilege, and a warning was logged.
    refused: bool,
    /// When the next may be sent.
    next: Option<Instant>,
    /// When the newest that came back was sent; before the first comes back, when the first stream was opened.
    newest: Option<Instant>,
}

impl Heartbeat {
    pub fn new(config: &Config) -> Heartbeat {
        Heartbeat {
            interval: Duration::from_secs(config.heartbeat.interval_seconds.into()),
            prefix: format!("outbox-relay:{}", config.source.slot.name),
            // A process ID does not identify a run: in containers it is the same each time.
            run: SystemTime::UNIX_EPOCH.elapsed().map_or(0, |elapsed| elapsed.as_micros()),
            ..Heartbeat::default()
        }
    }

    pub fn prefix(&self) -> &str {
        &self.prefix
    }

    /// Time between two heartbeats; zero when they are disabled.
    pub fn interval(&self) -> Duration {
        self.interval
    }

    /// A stream was opened. The heartbeat in flight may lie before its start and never arrive.
    pub fn on_stream_opened(&mut self, now: Instant) {
        self.in_flight = None;
        self.newest.get_or_insert(now);
    }

    /// The content of the message to send now, if one is due; counts it as sent.
    pub fn take_due(&mut self, now: Instant) -> Option<String> {
        let early = self.next.is_some_and(|next| now < next);
        if self.interval.is_zero() || self.in_flight.is_some() || early {
            return None;
        }
        self.sent += 1;
        self.in_flight = Some((self.sent, now));
        self.next = Some(now + self.interval);
        Some(self.content(self.sent))
    }

    /// The one in flight could not be sent.
    pub fn on_send_failed(&mut self) {
        self.in_flight = None;
    }

    /// The server refused a heartbeat. Returns whether for the first time.
    pub fn on_refused(&mut self) -> bool {
        self.in_flight = None;
        !std::mem::replace(&mut self.refused, true)
    }

    /// A logical message arrived through the stream.
    pub fn on_returned(&mut self, prefix: &str, content: &[u8]) {
        if let Some((number, sent_at)) = self.in_flight
            && prefix == self.prefix
            && content == self.content(number).as_bytes()
        {
            self.in_flight = None;
            self.newest = Some(sent_at);
        }
    }

    /// Time since the newest heartbeat that came back was sent; `None` before the first stream, and when heartbeats are
    /// disabled.
    pub fn age(&self, now: Instant) -> Option<Duration> {
        let newest = self.newest.filter(|_| !self.interval.is_zero());
        newest.map(|newest| now.saturating_duration_since(newest))
    }

    fn content(&self, number: u64) -> String {
        format!("{}/{number}", self.run)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const INTERVAL: Duration = Duration::from_secs(10);

    fn heartbeat(now: Instant) -> Heartbeat {
        let mut heartbeat =
            Heartbeat { interval: INTERVAL, prefix: "outbox-relay:s".into(), run: 7, ..Heartbeat::default() };
        heartbeat.on_stream_opened(now);
        heartbeat
    }

    #[test]
    fn the_age_counts_from_when_the_newest_that_came_back_was_sent() {
        let start = Instant::now();
        let second = Duration::from_secs(1);
        let mut heartbeat = heartbeat(start);
        let content = heartbeat.take_due(start + second).unwrap();
        assert_eq!(heartbeat.age(start + 3 * second), Some(3 * second), "none has come back");
        heartbeat.on_returned("outbox-relay:s", content.as_bytes());
        assert_eq!(heartbeat.age(start + 3 * second), Some(2 * second));
        assert_eq!(heartbeat.take_due(start + 10 * second), None, "too early");
        assert!(heartbeat.take_due(start + 11 * second).is_some());
        assert_eq!(heartbeat.take_due(start + 100 * second), None, "one is in flight");
    }

    #[test]
    fn messages_of_others_are_ignored() {
        let start = Instant::now();
        let mut heartbeat = heartbeat(start);
        let content = heartbeat.take_due(start).unwrap();
        for (prefix, content) in
            [("outbox-relay:t", &*content), ("outbox-relay:s", "8/1"), ("outbox-relay:s", "")]
        {
            heartbeat.on_returned(prefix, content.as_bytes());
            assert_eq!(
                heartbeat.take_due(start + INTERVAL),
                None,
                "{prefix} {content} was taken for the one in flight"
            );
        }
    }

    #[test]
    fn a_new_stream_does_not_wait_for_a_heartbeat_before_its_start() {
        let start = Instant::now();
        let mut heartbeat = heartbeat(start);
        let lost = heartbeat.take_due(start).unwrap();
        heartbeat.on_stream_opened(start + INTERVAL);
        assert!(heartbeat.take_due(start + INTERVAL).is_some());
        heartbeat.on_returned("outbox-relay:s", lost.as_bytes());
        assert_eq!(heartbeat.age(start + INTERVAL), Some(INTERVAL));
    }

    #[test]
    fn disabled_heartbeats_are_not_sent_and_have_no_age() {
        let mut heartbeat = Heartbeat::default();
        heartbeat.on_stream_opened(Instant::now());
        assert_eq!(heartbeat.take_due(Instant::now()), None);
        assert_eq!(heartbeat.age(Instant::now()), None);
    }
}
