//! Database servers that do not answer: one reconciliation asks again, the others take its answer. A server that swallows packets costs
//! every question several seconds, and a hundred resources on it would leave no time for those on other servers.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use outbox_relay::error::{ErrorKind, RelayError};

/// How long an answer counts for others before the next one asks.
const COUNTS: Duration = Duration::from_secs(5);
/// A refusal that comes sooner costs nothing, and may be about one role or one database only, as their limits of connections are.
const SLOW: Duration = Duration::from_secs(1);

/// By server.
#[derive(Default)]
pub struct Breaker(Mutex<HashMap<String, Failure>>);

struct Failure {
    at: Instant,
    what: String,
    /// One is asking now.
    is_asked: bool,
}

/// The right to ask a server. Dropped without an answer, which is what a limit of time does, it counts as silence.
pub struct Question<'a> {
    breaker: &'a Breaker,
    server: String,
    began: Instant,
}

impl Breaker {
    /// Lets one ask, or answers what the last one was told.
    ///
    /// # Errors
    /// The server has just failed, or did and is being asked.
    pub fn enter(&self, server: &str) -> Result<Question<'_>, RelayError> {
        let mut failures = self.lock();
        if let Some(failure) = failures.get_mut(server) {
            if failure.is_asked || failure.at.elapsed() < COUNTS {
                return Err(RelayError::new(ErrorKind::DatabaseUnreachable, failure.what.clone()));
            }
            failure.is_asked = true;
        }
        Ok(Question { breaker: self, server: server.to_owned(), began: Instant::now() })
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, Failure>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn failed(&self, server: &str, what: String) {
        let failure = Failure { at: Instant::now(), what, is_asked: false };
        self.lock().insert(server.to_owned(), failure);
    }
}

impl Question<'_> {
    /// Takes in the answer. Every answer but silence is one: the server is there.
    pub fn answered<T>(mut self, answer: &Result<T, RelayError>) {
        let server = std::mem::take(&mut self.server);
        match answer {
            Err(error) if error.kind == ErrorKind::DatabaseUnreachable && self.began.elapsed() >= SLOW => {
                self.breaker.failed(&server, error.detail.clone());
            }
            _ => drop(self.breaker.lock().remove(&server)),
        }
    }
}

impl Drop for Question<'_> {
    fn drop(&mut self) {
        if !self.server.is_empty() {
            self.breaker.failed(&self.server, format!("{} did not answer in time", self.server));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(breaker: &Breaker, after: Duration, reason: ErrorKind) {
        let mut question = breaker.enter("db").unwrap();
        question.began -= after;
        question.answered(&Err::<(), _>(RelayError::new(reason, "why")));
    }

    #[test]
    fn a_server_that_failed_is_not_asked_again_at_once_and_others_are() {
        let breaker = Breaker::default();
        let both = (breaker.enter("db").unwrap(), breaker.enter("db").unwrap());
        both.0.answered(&Ok(()));
        both.1.answered(&Ok(()));
        answer(&breaker, SLOW, ErrorKind::DatabaseUnreachable);
        assert_eq!(breaker.enter("db").err().unwrap().detail, "why");
        breaker.enter("other").unwrap().answered(&Ok(()));
    }

    #[test]
    fn one_at_a_time_asks_a_server_that_failed_and_its_answer_ends_that() {
        let breaker = Breaker::default();
        answer(&breaker, SLOW, ErrorKind::DatabaseUnreachable);
        breaker.lock().get_mut("db").unwrap().at -= COUNTS;
        let question = breaker.enter("db").unwrap();
        assert!(breaker.enter("db").is_err(), "it is being asked");
        question.answered(&Err::<(), _>(RelayError::new(ErrorKind::AuthenticationFailed, "it is there")));
        assert!(breaker.enter("db").is_ok());
    }

    #[test]
    fn an_immediate_refusal_does_not_open_the_breaker() {
        let breaker = Breaker::default();
        answer(&breaker, Duration::ZERO, ErrorKind::DatabaseUnreachable);
        breaker.enter("db").unwrap().answered(&Ok(()));
    }

    #[test]
    fn a_question_that_is_given_up_counts_as_silence() {
        let breaker = Breaker::default();
        drop(breaker.enter("db").unwrap());
        assert_eq!(breaker.enter("db").err().unwrap().detail, "db did not answer in time");
    }
}
