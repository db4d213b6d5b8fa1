//! The thread that keeps the clients with the same credentials supplied with tokens.
//!
//! Refreshers are found by everything that their tokens are fetched with, secrets included, so that no client gets a token that it could not
//! have fetched. They belong to the process and not to a session: a session that is retried every few seconds must not request a token each
//! time.

use std::collections::HashMap;
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use kafka_admin::Token;

use super::TokenClient;
use super::fetcher::{Fetcher, TokenError};
use crate::config::TokenCredentials;
use crate::error::jitter;

/// How often a token file is read: another process replaces it at any time.
const READ_FILE_EVERY: Duration = Duration::from_secs(5);
/// How often a refresher checks whether it still has clients, and whether brokers have rejected its token.
const TICK: Duration = Duration::from_secs(1);
const FIRST_PAUSE: Duration = Duration::from_secs(1);
/// With jitter still below 10 s, within which the end of a fault has to show.
const LONGEST_PAUSE: Duration = Duration::from_secs(7);
/// A token is renewed after this part of its remaining lifetime, as librdkafka does it: the rest is for attempts that fail.
const RENEW_AFTER: f64 = 0.8;
/// A rejected token is replaced no sooner than this: where brokers reject every token, the issuer is not to blame.
const REPLACE_REJECTED_AFTER: Duration = Duration::from_secs(30);

static REFRESHERS: LazyLock<Mutex<HashMap<TokenCredentials, Arc<Refresher>>>> = LazyLock::new(Mutex::default);

#[derive(Default)]
struct Refresher(Mutex<State>);

#[derive(Default)]
struct State {
    clients: Vec<Weak<dyn TokenClient>>,
    token: Option<Token>,
    /// Why the last attempt failed.
    problem: Option<String>,
    /// The problem that clients have been told of; none while a token is valid.
    reported: Option<String>,
    /// Whether brokers have rejected the token.
    rejected: bool,
}

/// Keeps a client supplied with tokens as long as it lives.
pub fn supply(credentials: &TokenCredentials, client: &Arc<impl TokenClient + 'static>) {
    let mut refreshers = lock(&REFRESHERS);
    let refresher = refreshers.entry(credentials.clone()).or_insert_with(|| {
        let refresher = Arc::<Refresher>::default();
        let (credentials, running) = (credentials.clone(), Arc::clone(&refresher));
        std::thread::spawn(move || running.run(&credentials));
        refresher
    });
    refresher.add(client);
}

/// Why clients with these credentials have no valid token; `None` while they have one.
pub fn problem(credentials: &TokenCredentials) -> Option<String> {
    let refresher = find(credentials)?;
    let state = lock(&refresher.0);
    if state.valid_token().is_some() { None } else { state.problem.clone() }
}

/// Brokers rejected the token, although it may not have expired: the issuer may have replaced its keys, or revoked it.
pub fn on_rejected(credentials: &TokenCredentials) {
    if let Some(refresher) = find(credentials) {
        lock(&refresher.0).rejected = true;
    }
}

fn find(credentials: &TokenCredentials) -> Option<Arc<Refresher>> {
    lock(&REFRESHERS).get(credentials).cloned()
}

impl Refresher {
    fn add(&self, client: &Arc<impl TokenClient + 'static>) {
        let mut state = lock(&self.0);
        let weak = Arc::downgrade(client);
        state.clients.push(weak);
        // Under the lock, so that a newer token cannot come before this one.
        match (state.valid_token(), &state.problem) {
            (Some(token), _) => set(&**client, Ok(token)),
            (None, Some(problem)) => set(&**client, Err(problem)),
            (None, None) => {}
        }
    }

    fn run(&self, credentials: &TokenCredentials) {
        let fetcher = Fetcher::new(credentials);
        let mut failures = 0;
        loop {
            let fetched = fetcher.as_ref().map_err(Clone::clone).and_then(Fetcher::fetch);
            failures = if fetched.is_ok() { 0 } else { failures + 1 };
            let pause = match &fetched {
                Ok(_) if fetcher.as_ref().is_ok_and(Fetcher::is_file) => READ_FILE_EVERY,
                Ok(token) => remaining(token).mul_f64(RENEW_AFTER).max(FIRST_PAUSE),
                Err(_) => retry_pause(failures),
            };
            self.distribute(fetched);
            if self.is_abandoned_within(credentials, pause) {
                return;
            }
        }
    }

    /// Sets the result on all clients.
    fn distribute(&self, fetched: Result<Token, TokenError>) {
        let fetched = fetched.map_err(|error| error.to_string());
        // Upgraded references are dropped outside of the lock: the last one closes its client, which takes a while.
        let clients: Vec<_> = {
            let mut state = lock(&self.0);
            if !state.on_fetched(&fetched) {
                return;
            }
            state.clients.iter().filter_map(Weak::upgrade).collect()
        };
        for client in &clients {
            set(&**client, fetched.as_ref().map_err(String::as_str));
        }
    }

    /// Waits until a token is due; returns true when no client is left, and then no client finds this refresher any more.
    fn is_abandoned_within(&self, credentials: &TokenCredentials, pause: Duration) -> bool {
        // Checked with both clocks: one stops while the machine is suspended, the other one can be set back.
        let (began, until) = (Instant::now(), SystemTime::now() + pause);
        while began.elapsed() < pause && SystemTime::now() < until {
            std::thread::sleep(TICK.min(pause.saturating_sub(began.elapsed())));
            let mut refreshers = lock(&REFRESHERS);
            let mut state = lock(&self.0);
            state.clients.retain(|client| client.strong_count() > 0);
            if state.clients.is_empty() {
                refreshers.remove(credentials);
                return true;
            }
            if state.rejected && began.elapsed() >= REPLACE_REJECTED_AFTER {
                return false;
            }
        }
        false
    }
}

impl State {
    fn valid_token(&self) -> Option<&Token> {
        self.token.as_ref().filter(|token| remaining(token) > Duration::ZERO)
    }

    /// Returns whether clients have to know. The token is kept when the fetch failed: it may still be valid.
    fn on_fetched(&mut self, fetched: &Result<Token, String>) -> bool {
        match fetched {
            Ok(token) => {
                if self.problem.take().is_some() {
                    tracing::info!("fetched a token for Kafka again");
                }
                let is_new = self.token.as_ref() != Some(token);
                self.token = Some(token.clone());
                self.rejected = false;
                self.reported.take().is_some() || is_new
            }
            Err(problem) => {
                if self.problem.as_ref() != Some(problem) {
                    tracing::warn!("cannot fetch a new token for Kafka: {problem}");
                }
                self.problem = Some(problem.clone());
                if self.valid_token().is_some() || self.reported.as_ref() == Some(problem) {
                    return false;
                }
                self.reported = Some(problem.clone());
                true
            }
        }
    }
}

/// The pause after this many failed attempts.
fn retry_pause(failures: u32) -> Duration {
    let doubled = FIRST_PAUSE.saturating_mul(1 << failures.saturating_sub(1).min(8));
    doubled.min(LONGEST_PAUSE).mul_f64(jitter())
}

/// Sets a token, or reports why there is none. A token that the client rejects is reported as well.
fn set(client: &dyn TokenClient, token: Result<&Token, &str>) {
    if let Err(error) = client.on_token(token) {
        let problem = format!("a Kafka client rejects its token: {error}");
        tracing::warn!("{problem}");
        // Without effect where this very report is rejected.
        client.on_token(Err(&problem)).ok();
    }
}

/// How long a token is valid from now.
fn remaining(token: &Token) -> Duration {
    let expires_at = Duration::from_millis(u64::try_from(token.expires_at).unwrap_or_default());
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    expires_at.saturating_sub(now)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::path::Path;

    use rdkafka::error::RDKafkaErrorCode;

    use super::*;
    use crate::config::TokenSource;

    /// Records what it was given.
    #[derive(Default)]
    struct Client(Mutex<Vec<Result<String, String>>>);

    impl TokenClient for Client {
        fn on_token(&self, token: Result<&Token, &str>) -> Result<(), kafka_admin::Error> {
            lock(&self.0).push(token.map(|token| token.value.clone()).map_err(str::to_owned));
            Ok(())
        }
    }

    impl Client {
        fn until(&self, wanted: impl Fn(&Result<String, String>) -> bool) {
            let deadline = Instant::now() + Duration::from_secs(120);
            while !lock(&self.0).last().is_some_and(&wanted) {
                assert!(Instant::now() < deadline, "{:?}", lock(&self.0));
                std::thread::sleep(Duration::from_millis(20));
            }
        }
    }

    fn credentials(file: &Path) -> TokenCredentials {
        let lifetime = Some(Duration::from_secs(3_600));
        TokenCredentials { source: TokenSource::File(file.into()), lifetime, extensions: BTreeMap::new() }
    }

    #[test]
    fn every_client_gets_each_token_and_the_reason_why_there_is_none() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("token");
        let credentials = credentials(&file);
        let first = Arc::new(Client::default());
        supply(&credentials, &first);
        first.until(|given| given.as_ref().is_err_and(|problem| problem.contains("cannot be read")));
        assert!(problem(&credentials).unwrap().contains("cannot be read"));

        std::fs::write(&file, "one\n").unwrap();
        first.until(|given| given.as_deref() == Ok("one"));
        assert_eq!(problem(&credentials), None);
        let second = Arc::new(Client::default());
        supply(&credentials, &second);
        assert_eq!(*lock(&second.0), [Ok("one".to_owned())], "immediately");

        std::fs::write(&file, "two").unwrap();
        for client in [&first, &second] {
            client.until(|given| given.as_deref() == Ok("two"));
        }
        // It is no longer renewed, but still valid.
        std::fs::remove_file(&file).unwrap();
        let refresher = Arc::clone(&lock(&REFRESHERS)[&credentials]);
        let deadline = Instant::now() + Duration::from_secs(120);
        while lock(&refresher.0).problem.is_none() {
            assert!(Instant::now() < deadline, "the missing file is not reported");
            std::thread::sleep(Duration::from_millis(20));
        }
        assert_eq!(problem(&credentials), None);
        let third = Arc::new(Client::default());
        supply(&credentials, &third);
        assert_eq!(*lock(&third.0), [Ok("two".to_owned())]);
        assert_eq!(lock(&second.0).last(), Some(&Ok("two".to_owned())));
    }

    #[test]
    fn a_refresher_without_clients_ends() {
        let folder = tempfile::tempdir().unwrap();
        let credentials = credentials(&folder.path().join("token"));
        let client = Arc::new(Client::default());
        supply(&credentials, &client);
        client.until(|given| given.is_err());
        drop(client);
        let deadline = Instant::now() + Duration::from_secs(120);
        while lock(&REFRESHERS).contains_key(&credentials) {
            assert!(Instant::now() < deadline, "the refresher still exists");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Accepts no token.
    #[derive(Default)]
    struct Strict(Mutex<Vec<String>>);

    impl TokenClient for Strict {
        fn on_token(&self, token: Result<&Token, &str>) -> Result<(), kafka_admin::Error> {
            let problem = token.map_err(str::to_owned);
            match problem {
                Ok(_) => Err(kafka_admin::Error::Refused {
                    code: RDKafkaErrorCode::InvalidArgument,
                    message: "too odd".to_owned(),
                }),
                Err(problem) => {
                    lock(&self.0).push(problem);
                    Ok(())
                }
            }
        }
    }

    #[test]
    fn a_client_that_rejects_its_token_knows_why_it_has_none() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("token");
        std::fs::write(&file, "one").unwrap();
        let client = Arc::new(Strict::default());
        supply(&credentials(&file), &client);
        let deadline = Instant::now() + Duration::from_secs(120);
        while lock(&client.0).is_empty() {
            assert!(Instant::now() < deadline, "nothing is reported");
            std::thread::sleep(Duration::from_millis(20));
        }
        let reported = lock(&client.0).join("; ");
        assert!(
            reported.starts_with("a Kafka client rejects its token: ") && reported.contains("too odd"),
            "{reported}"
        );
    }

    #[test]
    fn pauses_between_failures_grow_to_a_bound() {
        assert!(retry_pause(1) < retry_pause(3));
        for failures in [4, 9, 1_000] {
            assert!(retry_pause(failures) < Duration::from_secs(10), "{failures}");
        }
    }
}
