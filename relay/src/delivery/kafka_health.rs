//! Whether Kafka responds: to producers, to queries, and to authentication.

use std::time::{Duration, Instant};

use super::{Broker, ProducerReports};
use crate::error::{ErrorKind, RelayError};
use crate::kafka::query::Query;
use crate::kafka::scanner::Reachability;
use crate::kafka::watchdog::{Activity, Watchdog, WatchdogAction};
use crate::status::KafkaAnswers;

/// How often to log that authentication with a broker fails.
const WARN_EVERY: Duration = Duration::from_secs(60);

#[derive(Default)]
pub(super) struct KafkaHealth {
    answers: KafkaAnswers,
    watchdog: Watchdog,
    /// Acknowledgements since the last tick of the watchdog.
    acked_since_tick: usize,
    /// Whether all brokers seemed to be down since the last tick.
    brokers_down: bool,
    /// Why authentication with a broker failed, until another broker responds.
    auth_error: Option<String>,
    /// When this was last logged.
    auth_error_logged: Option<Instant>,
}

impl KafkaHealth {
    pub(super) fn answers(&self) -> KafkaAnswers {
        self.answers
    }

    /// Producers reported `acks` outcomes, and this.
    pub(super) fn on_reports(&mut self, reports: &ProducerReports, acks: usize) {
        self.acked_since_tick += acks;
        self.brokers_down |= reports.brokers_down;
    }

    /// TLS or SASL with one broker failed. If no other broker responds either, the result of the query started here
    /// ends the session.
    pub(super) fn on_auth_error(&mut self, why: String, now: Instant, broker: &impl Broker) {
        if self.auth_error_logged.is_none_or(|at| now.saturating_duration_since(at) >= WARN_EVERY) {
            self.auth_error_logged = Some(now);
            tracing::warn!(
                "authentication with a Kafka broker failed: {why}; check the broker's certificate and the relay's \
                 Kafka credentials"
            );
        }
        self.auth_error = Some(why);
        self.probe(broker);
    }

    /// Queries whether Kafka is reachable, unless such a query is running.
    pub(super) fn probe(&mut self, broker: &impl Broker) {
        if self.watchdog.claim_probe() {
            broker.query(Query::Reachability { of_producers: false });
        }
    }

    /// Called at every tick. `sent` is the number of records in flight.
    pub(super) fn on_tick(
        &mut self,
        now: Instant,
        sent: usize,
        broker: &impl Broker,
    ) -> Result<(), RelayError> {
        let activity = match std::mem::take(&mut self.acked_since_tick) {
            0 if sent == 0 => Activity::Idle,
            0 => Activity::Waiting,
            _ => Activity::Acknowledged,
        };
        if activity == Activity::Acknowledged {
            self.answers = KafkaAnswers::Yes;
        }
        match self.watchdog.tick(now, activity, std::mem::take(&mut self.brokers_down)) {
            WatchdogAction::None => Ok(()),
            WatchdogAction::Probe => {
                // A stranded producer matters only while it has records to send and gets no acknowledgements.
                let of_producers = activity == Activity::Waiting;
                broker.query(Query::Reachability { of_producers });
                Ok(())
            }
            WatchdogAction::Rebuild => {
                let what = "Kafka is reachable, but acknowledges none of the records in flight";
                Err(RelayError::new(ErrorKind::DeliveryFailed, what))
            }
        }
    }

    /// The result of a query whether Kafka is reachable.
    pub(super) fn on_reachability(&mut self, reachability: Reachability) -> Result<(), RelayError> {
        self.answers = match reachability {
            Reachability::ClientStranded => {
                let what = "Kafka is reachable, but a client of this session knows no broker address that still works";
                return Err(RelayError::new(ErrorKind::DeliveryFailed, what));
            }
            Reachability::Up => KafkaAnswers::Yes,
            Reachability::Down => KafkaAnswers::No,
        };
        let is_up = self.answers == KafkaAnswers::Yes;
        self.watchdog.on_probed(Instant::now(), is_up);
        match self.auth_error.take().filter(|_| !is_up) {
            Some(why) => Err(RelayError::new(ErrorKind::KafkaAuthenticationFailed, why)),
            None => Ok(()),
        }
    }
}
