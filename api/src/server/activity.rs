//! What a connection waits for, and since when: the basis of every time limit, and of which connection is closed when
//! there are too many.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;

/// How long a client may keep a connection waiting.
#[derive(Clone, Copy, Debug)]
pub struct Timeouts {
    /// For a request's head, from its first byte; on a new connection, from the start.
    pub head: Duration,
    /// For the next request.
    pub idle: Duration,
    /// For the client to take any more of an answer.
    pub send: Duration,
}

/// What the client keeps a connection waiting for. The first ones are closed first when there are too many connections:
/// a client that is slow before one that is only between two requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Waiting {
    /// It does not read its answer.
    Reader,
    /// It has begun a request's head.
    Head,
    /// It has no request.
    Idle,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Idle,
    Head,
    /// The service executes a request. Its own limits apply.
    Request,
    /// The service has answered; not all of the answer has been handed to the kernel.
    Answer,
}

struct State {
    phase: Phase,
    since: Instant,
    /// Since when the kernel has taken nothing of what is to be sent. Apart from the phase: of pipelined requests, the
    /// next one may have begun.
    blocked: Option<Instant>,
}

/// The state of one connection, shared by its stream, its requests, and the server.
pub struct Activity {
    state: Mutex<State>,
    /// Told when the connection begins to wait for its client.
    waits: Arc<Notify>,
}

impl Activity {
    /// Of a new connection, whose client is expected to send a request.
    pub fn new(waits: Arc<Notify>) -> Activity {
        let state = State { phase: Phase::Head, since: Instant::now(), blocked: None };
        Activity { state: Mutex::new(state), waits }
    }

    /// What the client keeps the connection waiting for, and since when; none while the service works.
    pub fn waiting(&self) -> Option<(Waiting, Instant)> {
        let state = self.state();
        match (state.blocked, state.phase) {
            (Some(since), _) => Some((Waiting::Reader, since)),
            (None, Phase::Head) => Some((Waiting::Head, state.since)),
            (None, Phase::Idle) => Some((Waiting::Idle, state.since)),
            (None, Phase::Request | Phase::Answer) => None,
        }
    }

    /// Until when the client has time.
    pub fn deadline(&self, timeouts: &Timeouts) -> Option<Instant> {
        self.waiting().map(|(waiting, since)| match waiting {
            Waiting::Reader => since + timeouts.send,
            Waiting::Head => since + timeouts.head,
            Waiting::Idle => since + timeouts.idle,
        })
    }

    /// Bytes came from the client. The beginning of a head that came along with an earlier request is not seen: its connection
    /// counts as idle, which any client may be.
    pub fn on_received(&self) {
        let mut state = self.state();
        if state.phase == Phase::Idle {
            state.enter(Phase::Head);
        }
    }

    /// A request's head is complete.
    pub fn on_request(&self) {
        self.state().enter(Phase::Request);
    }

    /// The service has answered the request.
    pub fn on_answer(&self) {
        self.state().enter(Phase::Answer);
    }

    /// The kernel took bytes.
    pub fn on_sent(&self) {
        self.state().blocked = None;
    }

    /// The kernel takes nothing more, because the client has not read what came before.
    pub fn on_blocked(&self) {
        let mut state = self.state();
        if state.blocked.is_none() {
            state.blocked = Some(Instant::now());
            self.waits.notify_one();
        }
    }

    /// The kernel has all bytes there are.
    pub fn on_flushed(&self) {
        let mut state = self.state();
        if state.phase == Phase::Answer {
            state.enter(Phase::Idle);
            self.waits.notify_one();
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn enter(&mut self, phase: Phase) {
        self.phase = phase;
        self.since = Instant::now();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TIMEOUTS: Timeouts = Timeouts {
        head: Duration::from_secs(10),
        idle: Duration::from_secs(75),
        send: Duration::from_secs(15),
    };

    fn waiting(activity: &Activity) -> Option<Waiting> {
        activity.waiting().map(|(waiting, _)| waiting)
    }

    #[tokio::test]
    async fn a_connection_waits_for_its_client_except_while_a_request_is_executed() {
        let activity = Activity::new(Arc::default());
        let (_, start) = activity.waiting().unwrap();
        assert_eq!(activity.deadline(&TIMEOUTS), Some(start + TIMEOUTS.head));
        activity.on_received();
        activity.on_request();
        activity.on_flushed();
        assert_eq!(activity.deadline(&TIMEOUTS), None);
        activity.on_answer();
        let answered = Instant::now();
        activity.on_flushed();
        assert!(activity.deadline(&TIMEOUTS) >= Some(answered + TIMEOUTS.idle));
        activity.on_received();
        assert_eq!(waiting(&activity), Some(Waiting::Head));
    }

    #[tokio::test]
    async fn a_client_that_does_not_read_is_waited_for_from_its_last_progress_whatever_it_sent_since() {
        let activity = Activity::new(Arc::default());
        activity.on_request();
        activity.on_answer();
        activity.on_blocked();
        let (_, blocked) = activity.waiting().unwrap();
        activity.on_request();
        activity.on_blocked();
        assert_eq!(activity.waiting(), Some((Waiting::Reader, blocked)));
        assert_eq!(activity.deadline(&TIMEOUTS), Some(blocked + TIMEOUTS.send));
        activity.on_sent();
        assert_eq!(waiting(&activity), None);
    }
}
