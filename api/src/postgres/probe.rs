//! Queries the database twice per second, over a separate connection, so that neither slow requests nor exhausted pools
//! decide whether the service is ready. It finds the server that accepts writes, and replaces the pools when they hang.

use std::time::{Duration, Instant};

use sqlx::postgres::{PgConnectOptions, PgConnection};
use tokio::sync::watch;

use super::database::Database;
use super::privileges::{Lacking, check};
use super::servers::{Limits, NoServer, PROMPT, ServerError, Servers, Session, place};
use crate::metrics::Metrics;

/// A database that is down is noticed within two seconds. A query is one round trip, except for the first of a session.
const LOOK_EVERY: Duration = Duration::from_millis(500);
const LOOK_WITHIN: Duration = Duration::from_secs(1);
const FIRST_LOOK_WITHIN: Duration = Duration::from_secs(2);
/// How long after an outage whatever survived it has its answer: longer than all but slow statements take. What has none by
/// then is given up, and the pools with it: the driver waits without a bound for a connection that went silent.
const SETTLED_AFTER: Duration = Duration::from_secs(1);

/// What the service knows of its database.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum State {
    /// It was not looked at yet.
    Unknown,
    /// It accepts what the service does.
    Usable,
    /// It does not, for this reason.
    Unusable(String),
}

/// Why the database cannot be used.
#[derive(Debug, thiserror::Error)]
enum ProbeError {
    #[error(transparent)]
    NoServer(#[from] NoServer),
    #[error("PostgreSQL at {0}: {1}")]
    Lacking(String, Lacking),
    #[error("PostgreSQL at {0} does not answer")]
    Silent(String),
}

impl ProbeError {
    /// A server answers, but accepts no writes: the connections of the pools may lead to the same one.
    fn only_reads(&self) -> bool {
        match self {
            ProbeError::NoServer(error) => error.only_reads(),
            ProbeError::Lacking(_, Lacking::Server(error)) => {
                matches!(error, ServerError::Standby | ServerError::ReadOnly)
            }
            ProbeError::Lacking(..) | ProbeError::Silent(_) => false,
        }
    }
}

/// Looks at the database as long as it is polled.
pub struct Probe {
    servers: Servers,
    database: Database,
    session: Option<Session>,
    pools: PoolsAsSeen,
    /// The end of an outage, until what was in progress has ended.
    recovered: Option<Recovered>,
}

/// The end of an outage.
#[derive(Clone, Copy, Debug)]
struct Recovered {
    at: Instant,
    /// The pools were outdated, and have been replaced.
    replaced: bool,
}

/// What is known of the pools while the probe has lost its connection.
struct PoolsAsSeen {
    /// The server that they lead to.
    server: String,
    /// How often they had answered at the last look that failed, if it was the last look.
    answers: Option<u64>,
    /// A server that accepts no writes was met since the last look that succeeded.
    only_reads: bool,
}

impl PoolsAsSeen {
    /// Whether new connections are better than those of the pools: they lead elsewhere, or none of them has answered since
    /// the probe lost its own.
    fn are_outdated(&self, server: &str, answers: u64) -> bool {
        self.server != server || self.only_reads || self.answers == Some(answers)
    }
}

impl Probe {
    /// Looks at `servers`, and sees to it that `database` leads to one that can be used.
    pub fn new(servers: Servers, database: Database) -> Probe {
        let server = place(servers.first());
        let pools = PoolsAsSeen { server, answers: None, only_reads: false };
        Probe { servers, database, session: None, pools, recovered: None }
    }

    /// Looks until the program ends, and tells `state`.
    pub async fn run(mut self, metrics: Metrics, state: watch::Sender<State>) {
        loop {
            let seen =
                self.look().await.map_or_else(|error| State::Unusable(error.to_string()), |()| State::Usable);
            if state.send_replace(seen.clone()) != seen {
                match seen {
                    State::Unusable(reason) => tracing::error!(reason, "the database cannot be used"),
                    _ => tracing::info!("the database can be used"),
                }
            }
            metrics.database_connections(self.database.connections());
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    async fn look(&mut self) -> Result<(), ProbeError> {
        let looked = self.try_look().await;
        if let Err(error) = &looked {
            self.pools.only_reads |= error.only_reads();
            self.pools.answers = Some(self.database.answers());
            self.recovered = None;
        }
        looked
    }

    /// A session that fails is dropped, not closed: its farewell might hang.
    async fn try_look(&mut self) -> Result<(), ProbeError> {
        let (mut session, is_new) = match self.session.take() {
            Some(session) => (session, false),
            None => (self.servers.connect(Limits::COMMANDS, PROMPT).await?, true),
        };
        let place = place(&session.server);
        let bound = if is_new { FIRST_LOOK_WITHIN } else { LOOK_WITHIN };
        let examined = tokio::time::timeout(bound, examine(&mut session.sql, is_new)).await;
        let examined = examined.map_err(|_| ProbeError::Silent(place.clone()))?;
        examined.map_err(|lacking| ProbeError::Lacking(place.clone(), lacking))?;
        self.replace_pools(&session.server, is_new);
        self.pools = PoolsAsSeen { server: place, answers: None, only_reads: false };
        self.session = Some(session);
        Ok(())
    }

    /// Outdated pools are replaced at once, others after what has survived the outage has ended. What has no answer by then
    /// is given up.
    fn replace_pools(&mut self, server: &PgConnectOptions, is_new: bool) {
        let outdated = is_new && self.pools.are_outdated(&place(server), self.database.answers());
        if outdated {
            self.database.replace(server);
        }
        if is_new && self.pools.answers.is_some() {
            self.recovered = Some(Recovered { at: Instant::now(), replaced: outdated });
        } else if let Some(recovered) = self.recovered.take_if(|it| it.at.elapsed() >= SETTLED_AFTER) {
            if !recovered.replaced {
                self.database.replace(server);
            }
            self.database.give_up(recovered.at);
        }
    }
}

async fn examine(sql: &mut PgConnection, is_new: bool) -> Result<(), Lacking> {
    check(sql).await?;
    if is_new {
        // Before the first command: a row in the default partition would keep its month from getting one.
        let maintain = sqlx::query("SELECT command_log_maintain(NULL)");
        maintain.execute(sql).await.map_err(ServerError::from)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pools_are_replaced_when_they_hang_or_lead_elsewhere() {
        let seen = |answers, only_reads| PoolsAsSeen { server: "a".to_owned(), answers, only_reads };
        assert!(!seen(None, false).are_outdated("a", 0), "nothing was lost");
        assert!(!seen(Some(3), false).are_outdated("a", 4), "they have answered meanwhile");
        assert!(seen(Some(3), false).are_outdated("a", 3), "they hang, or nothing uses them");
        assert!(seen(Some(3), false).are_outdated("b", 4), "the primary is another server");
        assert!(seen(Some(3), true).are_outdated("a", 4), "sessions that were read-only stay so");
    }
}
