//! The heartbeat: a message written into the server's log over SQL that has to come back through the stream. It
//! proves the way from log to relay, walsender included, while no rows travel on it; and its age says how far the
//! relay is behind, whatever else the cluster does.
//!
//! It is sent outside of transactions: it takes no transaction number, makes no row, and is nothing to confirm. One
//! is under way at a time, so that a stream that stands still is not filled with them. Messages of others, those of
//! this relay's former runs among them, are passed over.

use std::time::{Duration, Instant, SystemTime};

use crate::config::Config;

/// See the module's text.
#[derive(Debug, Default)]
pub struct Heartbeat {
    /// Zero: none are sent.
    every: Duration,
    /// What a message of this relay is called in the log.
    prefix: String,
    /// Tells this run's messages from those of former ones.
    run: u128,
    sent: u64,
    /// The one under way, and when it was sent.
    under_way: Option<(u64, Instant)>,
    /// The role may not send them, and that was said.
    refused: bool,
    /// When the next may be sent.
    next: Option<Instant>,
    /// When the newest that came back was sent; until one has, when the first stream was opened.
    newest: Option<Instant>,
}

impl Heartbeat {
    /// Heartbeats as configured.
    pub fn new(config: &Config) -> Heartbeat {
        Heartbeat {
            every: Duration::from_secs(config.heartbeat.interval_seconds.into()),
            prefix: format!("outbox-relay:{}", config.source.slot.name),
            // A process number is no name: in containers it is the same each time.
            run: SystemTime::UNIX_EPOCH.elapsed().map_or(0, |elapsed| elapsed.as_micros()),
            ..Heartbeat::default()
        }
    }

    /// The prefix of this relay's messages.
    pub fn prefix(&self) -> &str {
        &self.prefix
    }

    /// Time between two heartbeats; zero when none are sent.
    pub fn interval(&self) -> Duration {
        self.every
    }

    /// A stream was opened. What was under way before may lie behind where it begins.
    pub fn on_stream_opened(&mut self, now: Instant) {
        self.under_way = None;
        self.newest.get_or_insert(now);
    }

    /// The content of the message to send now, if one is due; it counts as sent.
    pub fn take_due(&mut self, now: Instant) -> Option<String> {
        let early = self.next.is_some_and(|next| now < next);
        if self.every.is_zero() || self.under_way.is_some() || early {
            return None;
        }
        self.sent += 1;
        self.under_way = Some((self.sent, now));
        self.next = Some(now + self.every);
        Some(self.content(self.sent))
    }

    /// The one under way could not be sent.
    pub fn on_send_failed(&mut self) {
        self.under_way = None;
    }

    /// The server refused to take one; whether for the first time.
    pub fn is_first_refusal(&mut self) -> bool {
        !std::mem::replace(&mut self.refused, true)
    }

    /// A message came through the stream.
    pub fn on_returned(&mut self, prefix: &str, content: &[u8]) {
        if let Some((number, sent_at)) = self.under_way
            && prefix == self.prefix
            && content == self.content(number).as_bytes()
        {
            self.under_way = None;
            self.newest = Some(sent_at);
        }
    }

    /// Time since the newest heartbeat that came back was sent; `None` before the first stream, and when none are
    /// sent.
    pub fn age(&self, now: Instant) -> Option<Duration> {
        let newest = self.newest.filter(|_| !self.every.is_zero());
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
            Heartbeat { every: INTERVAL, prefix: "outbox-relay:s".into(), run: 7, ..Heartbeat::default() };
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
        assert_eq!(heartbeat.take_due(start + 100 * second), None, "one is under way");
    }

    #[test]
    fn what_others_send_is_passed_over() {
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
                "{prefix} {content} was taken for the one under way"
            );
        }
    }

    #[test]
    fn a_new_stream_does_not_wait_for_what_may_lie_behind_it() {
        let start = Instant::now();
        let mut heartbeat = heartbeat(start);
        let lost = heartbeat.take_due(start).unwrap();
        heartbeat.on_stream_opened(start + INTERVAL);
        assert!(heartbeat.take_due(start + INTERVAL).is_some());
        heartbeat.on_returned("outbox-relay:s", lost.as_bytes());
        assert_eq!(heartbeat.age(start + INTERVAL), Some(INTERVAL));
    }

    #[test]
    fn switched_off_it_sends_nothing_and_has_no_age() {
        let mut heartbeat = Heartbeat::default();
        heartbeat.on_stream_opened(Instant::now());
        assert_eq!(heartbeat.take_due(Instant::now()), None);
        assert_eq!(heartbeat.age(Instant::now()), None);
    }
}
