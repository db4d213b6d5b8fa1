//! The service's connections: a pool for commands, a small one for lists, and their replacement after an outage.
//!
//! No connection may be waited for without a bound. The driver offers neither TCP keepalive nor a user timeout, and its
//! pool pings each connection that is returned for as long as TCP takes to give up: a quarter of an hour after the network
//! went silent. So each ping has a bound here, and after an outage the probe replaces the pools as a whole. What has waited
//! for an answer since before the end of the outage is given up soon after it: it would keep its principal's share of the
//! connections from requests that can be served.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, Instant};

use basket::application::ports::PortError;
use sqlx::pool::PoolConnection;
use sqlx::postgres::{PgConnectOptions, PgConnection, PgPoolOptions};
use sqlx::{Connection, PgPool, Postgres, Transaction};
use tokio::sync::watch;

use super::servers::{Limits, Servers, prepare};
use crate::metrics::Connections;

/// A request that finds no free connection for this long is told to come back later.
const CONNECTION_WITHIN: Duration = Duration::from_secs(2);
/// A connection that was used so lately is taken to be alive: a ping before each use would be a round trip per command.
const TRUSTED_FOR: Duration = Duration::from_secs(1);
/// How long a connection may take to answer a ping before it is used again: a dead one leaves time for a new one.
const IDLE_ANSWERS_WITHIN: Duration = Duration::from_millis(500);
/// How long a connection may take to answer after its use. A statement whose caller has gone may still run: rather than
/// wait for its end, the pool opens another connection.
const RETURNED_WITHIN: Duration = Duration::from_secs(1);
/// How long statements in progress on a replaced pool may take to end: longer than the longest of them.
const REPLACED_WITHIN: Duration = Duration::from_secs(30);
/// Lists get one connection of so many: they may all be slow without a command having to wait.
const ONE_FOR_LISTS_OF: u32 = 4;

/// How many of so many connections are not for lists.
pub fn for_commands(connections: u32) -> u32 {
    connections.saturating_sub((connections / ONE_FOR_LISTS_OF).max(1)).max(1)
}

/// The service's connections to its database. Clones share them.
#[derive(Clone)]
pub struct Database(Arc<Shared>);

struct Shared {
    connections: u32,
    pools: RwLock<Pools>,
    /// What began before this gets no answer any more.
    lost_before: watch::Sender<Option<Instant>>,
}

/// Whether it was done cannot be told: only the idempotency key tells.
#[derive(Debug, thiserror::Error)]
#[error("no answer since before an outage of the database; its connection was given up")]
struct Lost;

#[derive(Clone)]
struct Pools {
    commands: PgPool,
    lists: PgPool,
    /// How often one of their connections has answered.
    answers: Arc<AtomicU64>,
}

impl Database {
    /// At most `connections` at once. None is opened before it is needed.
    pub fn new(servers: &Servers, connections: u32) -> Database {
        let pools = RwLock::new(Pools::open(servers.first(), connections));
        Database(Arc::new(Shared { connections, pools, lost_before: watch::Sender::new(None) }))
    }

    /// A connection for a command, or for a read of one row.
    pub async fn connection(&self) -> Result<PoolConnection<Postgres>, sqlx::Error> {
        self.open(|pools| async move { pools.commands.acquire().await }).await
    }

    /// A connection for a list.
    pub async fn list_connection(&self) -> Result<PoolConnection<Postgres>, sqlx::Error> {
        self.open(|pools| async move { pools.lists.acquire().await }).await
    }

    /// Begins a transaction. Dropping it rolls it back.
    pub async fn begin(&self) -> Result<Transaction<'static, Postgres>, sqlx::Error> {
        self.open(|pools| async move { pools.commands.begin().await }).await
    }

    /// Pools that are replaced while one of their connections is waited for are closed: the new ones may have one.
    async fn open<T, F: Future<Output = Result<T, sqlx::Error>>>(
        &self,
        open: impl Fn(Pools) -> F,
    ) -> Result<T, sqlx::Error> {
        match open(self.pools()).await {
            Err(sqlx::Error::PoolClosed) => open(self.pools()).await,
            opened => opened,
        }
    }

    /// How often a connection has answered: the count stays the same while all of them hang, and while none is used.
    pub fn answers(&self) -> u64 {
        self.pools().answers.load(Ordering::Relaxed)
    }

    /// Awaits `work` on these connections, and fails if an outage has left it without an answer.
    pub async fn unless_lost<T, E: From<PortError>>(
        &self,
        work: impl Future<Output = Result<T, E>>,
    ) -> Result<T, E> {
        let began = Instant::now();
        let mut lost_before = self.0.lost_before.subscribe();
        tokio::select! {
            biased;
            done = work => done,
            // The sender lives as long as this database.
            _ = lost_before.wait_for(|lost| lost.is_some_and(|lost| began < lost)) => {
                Err(PortError::Unavailable(Box::new(Lost)).into())
            }
        }
    }

    /// Opens new connections from now on, to `server`. Work in progress ends on the old ones, if it can.
    pub fn replace(&self, server: &PgConnectOptions) {
        let fresh = Pools::open(server, self.0.connections);
        let replaced = {
            let mut pools = self.0.pools.write().unwrap_or_else(PoisonError::into_inner);
            std::mem::replace(&mut *pools, fresh)
        };
        tokio::spawn(async move { replaced.close(REPLACED_WITHIN).await });
    }

    /// Work that began before the end of an outage fails.
    pub fn give_up(&self, end_of_outage: Instant) {
        self.0.lost_before.send_replace(Some(end_of_outage));
    }

    /// Closes the connections; gives up those that do not end within `bound`.
    pub async fn close(&self, bound: Duration) {
        self.pools().close(bound).await;
    }

    /// What is open now.
    pub fn connections(&self) -> Connections {
        let Pools { commands, lists, .. } = self.pools();
        let open = [&commands, &lists].map(|pool| usize::try_from(pool.size()).unwrap_or(usize::MAX));
        let idle = commands.num_idle() + lists.num_idle();
        Connections { idle, used: open.iter().sum::<usize>().saturating_sub(idle) }
    }

    fn pools(&self) -> Pools {
        self.0.pools.read().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Pools {
    fn open(server: &PgConnectOptions, connections: u32) -> Pools {
        let for_commands = for_commands(connections);
        let for_lists = connections.saturating_sub(for_commands).max(1);
        let answers = Arc::default();
        Pools {
            commands: pool(server, for_commands, Limits::COMMANDS, &answers),
            lists: pool(server, for_lists, Limits::LISTS, &answers),
            answers,
        }
    }

    async fn close(self, bound: Duration) {
        let closed = async { tokio::join!(self.commands.close(), self.lists.close()) };
        if tokio::time::timeout(bound, closed).await.is_err() {
            tracing::warn!("database connections that do not answer were given up");
        }
    }
}

fn pool(server: &PgConnectOptions, size: u32, limits: Limits, answers: &Arc<AtomicU64>) -> PgPool {
    let answers = Arc::clone(answers);
    PgPoolOptions::new()
        .max_connections(size)
        .acquire_timeout(CONNECTION_WITHIN)
        .test_before_acquire(false)
        .after_connect(move |connection, _| {
            Box::pin(async move {
                prepare(connection, limits).await.map_err(|error| sqlx::Error::Configuration(error.into()))
            })
        })
        .before_acquire(|connection, used| {
            Box::pin(async move {
                if used.idle_for >= TRUSTED_FOR {
                    ping(connection, IDLE_ANSWERS_WITHIN).await?;
                }
                Ok(true)
            })
        })
        .after_release(move |connection, _| {
            let answers = Arc::clone(&answers);
            Box::pin(async move {
                ping(connection, RETURNED_WITHIN).await?;
                answers.fetch_add(1, Ordering::Relaxed);
                Ok(true)
            })
        })
        .connect_lazy_with(server.clone())
}

/// An error makes the pool drop the connection without a farewell that might hang.
async fn ping(connection: &mut PgConnection, bound: Duration) -> Result<(), sqlx::Error> {
    let answered = tokio::time::timeout(bound, connection.ping()).await;
    answered.unwrap_or_else(|_| Err(sqlx::Error::Io(std::io::ErrorKind::TimedOut.into())))
}

#[cfg(test)]
mod tests {
    use std::future::{pending, ready};
    use std::str::FromStr;

    use futures::FutureExt;

    use super::*;

    #[tokio::test]
    async fn work_from_before_an_outage_fails_and_later_work_continues() {
        let servers = Servers::from_str("postgres://basket@127.0.0.1:1/none").unwrap();
        let database = Database::new(&servers, 4);
        let mut before = Box::pin(database.unless_lost(pending::<Result<(), PortError>>()));
        assert!(before.as_mut().now_or_never().is_none(), "nothing is lost");
        let end_of_outage = Instant::now();
        let mut later = Box::pin(database.unless_lost(pending::<Result<(), PortError>>()));
        assert!(later.as_mut().now_or_never().is_none());
        database.give_up(end_of_outage);
        assert!(matches!(before.await, Err(PortError::Unavailable(_))));
        assert!(later.as_mut().now_or_never().is_none(), "it began after the outage");
        let done = database.unless_lost(ready(Ok::<_, PortError>(1)));
        assert!(matches!(done.await, Ok(1)));
    }
}
