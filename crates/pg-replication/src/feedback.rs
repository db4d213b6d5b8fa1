//! When to send which status update, and when the connection counts as dead. Pure: no socket, no clock.
//!
//! - The flush position only grows, never passes what was received, and is 0/0 until something was confirmed
//!   (older servers would move the slot *back* to a lower one).
//! - A server that ends a stream at shutdown requests a reply again after each reply; immediate replies would be
//!   hundreds of thousands of messages. So replies keep a minimum distance.
//! - Silence counts from a read that found nothing. A stream that is not being read is not silent.

use std::time::Duration;

use tokio::time::Instant;

use crate::{EndLsn, Error, Lsn};

/// Confirmations are sent at most this often: more cost the server a slot update per transaction.
const CONFIRM_EVERY: Duration = Duration::from_millis(100);

/// Requested replies without news are at least this far apart.
const REPLY_EVERY: Duration = Duration::from_millis(50);

/// The longest time without a status, PostgreSQL's own `wal_receiver_status_interval`.
const MAX_INTERVAL: Duration = Duration::from_secs(10);

/// PostgreSQL's default, used when the server's own timeout is disabled: a dead server must be noticed all the same.
const DEFAULT_WAL_SENDER_TIMEOUT: Duration = Duration::from_secs(60);

/// The content of a status update.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Status {
    /// The last LSN received.
    pub(crate) write: Lsn,
    /// Everything before this LSN is confirmed and not needed again.
    pub(crate) flush: EndLsn,
    /// Whether a reply is requested.
    pub(crate) reply: bool,
}

#[derive(Debug)]
pub(crate) struct Feedback {
    /// The longest time without a status.
    interval: Duration,
    /// The silence after which a reply is requested, and then again the time the server has for it.
    probe_interval: Duration,
    received: Lsn,
    confirmed: EndLsn,
    /// The content of the last status, written or not.
    last_sent: EndLsn,
    last_status: Instant,
    reply_wanted: bool,
    silent_since: Option<Instant>,
    probed_at: Option<Instant>,
}

impl Feedback {
    pub(crate) fn new(wal_sender_timeout: Duration, start: EndLsn, now: Instant) -> Self {
        let timeout = match wal_sender_timeout {
            Duration::ZERO => DEFAULT_WAL_SENDER_TIMEOUT,
            set => set,
        };
        Feedback {
            // The server requests a reply at half of its timeout; this leaves three chances before that.
            interval: (timeout / 6).min(MAX_INTERVAL),
            probe_interval: timeout / 4,
            received: start.lsn(),
            confirmed: EndLsn::ZERO,
            last_sent: EndLsn::ZERO,
            last_status: now,
            reply_wanted: false,
            silent_since: None,
            probed_at: None,
        }
    }

    pub(crate) fn silence_limit(&self) -> Duration {
        self.probe_interval * 2
    }

    pub(crate) fn received(&self) -> Lsn {
        self.received
    }

    pub(crate) fn confirmed(&self) -> EndLsn {
        self.confirmed
    }

    pub(crate) fn on_received(&mut self, lsn: Lsn) {
        self.received = self.received.max(lsn);
    }

    pub(crate) fn on_reply_wanted(&mut self) {
        self.reply_wanted = true;
    }

    pub(crate) fn confirm(&mut self, end: EndLsn) -> Result<(), Error> {
        if end.lsn() > self.received {
            return Err(Error::NotReceived { confirmed: end, received: self.received });
        }
        self.confirmed = self.confirmed.max(end);
        Ok(())
    }

    /// A read returned data.
    pub(crate) fn on_read(&mut self) {
        self.silent_since = None;
        self.probed_at = None;
    }

    /// A read found nothing; a server that does not reply to a probe in time counts as dead.
    pub(crate) fn on_empty(&mut self, now: Instant) -> Result<(), Error> {
        let since = *self.silent_since.get_or_insert(now);
        match self.probed_at {
            Some(probed) if now >= probed + self.probe_interval => {
                Err(Error::Silent { silence: now - since })
            }
            _ => Ok(()),
        }
    }

    /// The status to send now, if one is due; counts it as sent.
    ///
    /// `unsent` says that the socket has not accepted the last one yet. Then only a probe is added, once: the output
    /// must not grow while the server does not read.
    pub(crate) fn due(&mut self, now: Instant, unsent: bool) -> Option<Status> {
        if self.probe_at().is_some_and(|at| now >= at) {
            self.probed_at = Some(now);
            return Some(self.status(now, true));
        }
        (!unsent && now >= self.status_at()).then(|| self.status(now, false))
    }

    /// The status as of now; counts it as sent.
    pub(crate) fn status(&mut self, now: Instant, reply: bool) -> Status {
        self.last_sent = self.confirmed;
        self.last_status = now;
        self.reply_wanted = false;
        Status { write: self.received, flush: self.confirmed, reply }
    }

    /// When to check again although nothing arrives, while reading.
    pub(crate) fn wake_reader_at(&self, unsent: bool) -> Option<Instant> {
        let judged_at = self.probed_at.map(|at| at + self.probe_interval);
        let status_at = self.wake_writer_at(unsent);
        [self.probe_at(), judged_at, status_at].into_iter().flatten().min()
    }

    /// When to check again while not reading.
    pub(crate) fn wake_writer_at(&self, unsent: bool) -> Option<Instant> {
        (!unsent).then(|| self.status_at())
    }

    fn status_at(&self) -> Instant {
        let news = self.confirmed > self.last_sent;
        let wait = match (self.reply_wanted, news) {
            (true, true) => Duration::ZERO,
            (true, false) => REPLY_EVERY,
            (false, true) => CONFIRM_EVERY,
            (false, false) => self.interval,
        };
        self.last_status + wait.min(self.interval)
    }

    fn probe_at(&self) -> Option<Instant> {
        match self.probed_at {
            Some(_) => None,
            None => self.silent_since.map(|since| since + self.probe_interval),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const MS: Duration = Duration::from_millis(1);

    fn end(lsn: u64) -> EndLsn {
        EndLsn::new(Lsn::from(lsn))
    }

    /// A stream from 0/0 with a timeout of 60 s that has received up to 1000.
    fn feedback() -> (Feedback, Instant) {
        let now = Instant::now();
        let mut feedback = Feedback::new(Duration::from_secs(60), EndLsn::ZERO, now);
        feedback.on_received(Lsn::from(1000));
        (feedback, now)
    }

    #[test]
    fn the_interval_follows_the_servers_timeout() {
        let due_after = |timeout: Duration| {
            let now = Instant::now();
            Feedback::new(timeout, EndLsn::ZERO, now).status_at() - now
        };
        assert_eq!(due_after(Duration::from_secs(60)), Duration::from_secs(10));
        assert_eq!(due_after(Duration::from_secs(3600)), Duration::from_secs(10));
        assert_eq!(due_after(Duration::from_secs(30)), Duration::from_secs(5));
        assert_eq!(due_after(Duration::ZERO), Duration::from_secs(10));
    }

    #[test]
    fn nothing_is_flushed_until_something_is_confirmed() {
        let now = Instant::now();
        let mut feedback = Feedback::new(Duration::from_secs(60), end(500), now);
        let status = feedback.status(now, false);
        assert_eq!(status, Status { write: Lsn::from(500), flush: EndLsn::ZERO, reply: false });
    }

    #[test]
    fn a_confirmation_waits_for_the_throttle_and_no_longer() {
        let (mut feedback, now) = feedback();
        feedback.confirm(end(700)).unwrap();
        assert_eq!(feedback.due(now + 99 * MS, false), None);
        let status = feedback.due(now + 100 * MS, false).unwrap();
        assert_eq!(status, Status { write: Lsn::from(1000), flush: end(700), reply: false });
        assert_eq!(feedback.due(now + 200 * MS, false), None, "said once");
    }

    #[test]
    fn confirming_never_goes_back_nor_beyond_the_received_lsn() {
        let (mut feedback, _) = feedback();
        feedback.confirm(end(700)).unwrap();
        feedback.confirm(end(600)).unwrap();
        assert_eq!(feedback.confirmed(), end(700));
        let refused = feedback.confirm(end(1001));
        assert!(matches!(refused, Err(Error::NotReceived { .. })));
        assert_eq!(feedback.confirmed(), end(700));
    }

    #[test]
    fn requested_replies_keep_their_distance_when_nothing_is_new() {
        let (mut feedback, now) = feedback();
        let mut sent = 0;
        for ms in 0..1000 {
            feedback.on_reply_wanted();
            sent += u32::from(feedback.due(now + ms * MS, false).is_some());
        }
        assert_eq!(sent, 19, "one each 50 ms");
        feedback.on_reply_wanted();
        feedback.confirm(end(800)).unwrap();
        assert!(feedback.due(now + 951 * MS, false).is_some(), "news is an answer at once");
    }

    #[test]
    fn a_silent_server_gets_one_probe_and_then_counts_as_dead() {
        let (mut feedback, now) = feedback();
        let quarter = Duration::from_secs(15);
        feedback.on_empty(now).unwrap();
        assert_eq!(feedback.due(now + quarter - MS, false).map(|status| status.reply), Some(false));
        assert_eq!(feedback.wake_reader_at(false), Some(now + quarter));
        assert_eq!(feedback.due(now + quarter, false).map(|status| status.reply), Some(true));
        assert_eq!(feedback.due(now + quarter, false), None, "asked once");
        feedback.on_empty(now + 2 * quarter - MS).unwrap();
        let given_up = feedback.on_empty(now + 2 * quarter);
        assert!(matches!(given_up, Err(Error::Silent { silence }) if silence == 2 * quarter));
    }

    #[test]
    fn an_answer_ends_the_silence() {
        let (mut feedback, now) = feedback();
        let quarter = Duration::from_secs(15);
        feedback.on_empty(now).unwrap();
        feedback.due(now + quarter, false).unwrap();
        feedback.on_read();
        feedback.on_empty(now + 2 * quarter).unwrap();
        assert!(feedback.on_empty(now + 3 * quarter).is_ok());
    }

    #[test]
    fn not_reading_for_long_is_not_silence() {
        let (mut feedback, now) = feedback();
        feedback.on_empty(now).unwrap();
        let later = now + Duration::from_secs(3600);
        feedback.on_empty(later).unwrap();
        assert_eq!(feedback.due(later, false).map(|status| status.reply), Some(true));
    }

    #[test]
    fn a_server_that_does_not_read_gets_one_probe_and_no_more() {
        let (mut feedback, now) = feedback();
        feedback.on_empty(now).unwrap();
        let later = now + Duration::from_secs(20);
        assert!(feedback.due(later, true).is_some_and(|status| status.reply));
        assert_eq!(feedback.due(later + Duration::from_secs(60), true), None);
        assert_eq!(feedback.wake_writer_at(true), None, "no timer to spin on");
    }

    proptest! {
        /// In any order of calls, the flush position only grows, and stays within what was received.
        #[test]
        fn flush_is_monotonic_and_covered(steps in prop::collection::vec((0..5_u8, 0..2000_u64), 1..200)) {
            let (mut feedback, mut now) = feedback();
            let mut flushed = EndLsn::ZERO;
            for (step, value) in steps {
                match step {
                    0 => feedback.on_received(Lsn::from(value)),
                    1 => drop(feedback.confirm(end(value))),
                    2 => feedback.on_reply_wanted(),
                    3 => feedback.on_read(),
                    _ => drop(feedback.on_empty(now)),
                }
                now += Duration::from_millis(value);
                if let Some(status) = feedback.due(now, false) {
                    prop_assert!(status.flush >= flushed);
                    prop_assert!(status.flush.lsn() <= status.write);
                    flushed = status.flush;
                    prop_assert!(feedback.status_at() > now, "it would be sent again at once");
                }
            }
        }
    }
}
